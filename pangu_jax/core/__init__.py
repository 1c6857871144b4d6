"""Parameter specs, tree paths, configs, errors: what every other room builds on."""
