"""What commands take: a module each, which their help is made of; they import no jax."""
