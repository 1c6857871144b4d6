"""Runs `pangu-jax backends`; its options are in `cli/options/backends.py`."""

import importlib.metadata
import json
import shutil
from dataclasses import asdict

import jax

from pangu_jax.cli.options.backends import Options
from pangu_jax.core.extras import installing
from pangu_jax.core.platform import target
from pangu_jax.export.implementations import choices


def main(options: Options) -> None:
    """Prints the platforms, the runtimes, and the choices with their reasons."""
    found = here()
    chosen = choices(options.platform)
    if options.json:
        print(json.dumps({**found, "choices": [asdict(c) for c in chosen]}))
        return
    for name, what in found.items():
        print(f"{name:12} {what}")
    print(f"\nchoices on {options.platform or target()}:")
    width = max(len(c.example) for c in chosen)
    names = max(len(c.operator) for c in chosen)
    forms = max(len(c.implementation) for c in chosen)
    for c in chosen:
        print(f"{c.operator:{names}}  {c.example:{width}}  {c.implementation:{forms}}  {c.reason}")


def here() -> dict[str, str]:
    """What is on this machine: {platform or runtime: what it is, or why it is missing}."""
    found = {"jax": jax.__version__}
    for platform in ("cpu", "gpu", "tpu"):
        found["cuda" if platform == "gpu" else platform] = _devices(platform)
    found["onnx"] = _version("onnx")
    found["onnxruntime"] = _runtime()
    atc = shutil.which("atc")
    found["atc"] = atc or "not on the PATH: export --target ascend writes a script to run elsewhere"
    return found


def _devices(platform: str) -> str:
    try:
        devices = jax.devices(platform)
    except RuntimeError:
        return "no device"
    return f"{len(devices)} x {devices[0].device_kind}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed: {installing('export')}"


def _runtime() -> str:
    try:
        import onnxruntime
    except ImportError:
        return _version("onnxruntime")
    return f"{onnxruntime.__version__}: {', '.join(onnxruntime.get_available_providers())}"
