"""Importing changes nothing: no device, no environment, no jax option, no foreign library."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pangu_jax

CODE = """
import importlib, os, pkgutil, sys
environment = dict(os.environ)
import jax, numpy
from jax._src import xla_bridge
options = dict(jax.config.values)
import pangu_jax
names = [m.name for m in pkgutil.walk_packages(pangu_jax.__path__, "pangu_jax.")]
# Imported where they are used: jax's module for Mosaic sets a variable, builders need an extra.
late = [n for n in names if n.startswith("pangu_jax.ops.kernels.") or n.endswith(".wikitext2")]
for name in names:
    if name not in late:
        importlib.import_module(name)
assert not set(late) & set(sys.modules), "what is for later was imported"
assert dict(os.environ) == environment, "the environment was changed"
changed = {k: v for k, v in jax.config.values.items() if k in options and v != options[k]}
assert not changed, changed
found = {"torch", "transformers", "tensorflow", "tensorflow_datasets", "onnx"} & set(sys.modules)
assert not found, found
for name in late:
    importlib.import_module(name)
assert not xla_bridge.backends_are_initialized(), "a device was touched"
print(len(names))
"""


def test_importing_every_module_changes_nothing():
    # The platform must be jax's own choice here, as a user has it.
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    command = [sys.executable, "-W", "error", "-c", CODE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    files = [f for f in Path(pangu_jax.__file__).parent.rglob("*.py") if f.name != "__init__.py"]
    assert int(done.stdout) >= len(files)


# What a distribution is imported as; flatbuffers by jax, which does not ask for it, for jax.export.
IMPORTED_AS = {"orbax-checkpoint": "orbax", "protobuf": "google", "flatbuffers": "jax"}


def test_what_is_installed_with_the_package_is_what_it_imports():
    root = Path(pangu_jax.__file__).parent
    file = Path(__file__).parents[1] / "pyproject.toml"
    project = tomllib.loads(file.read_text(encoding="utf-8"))["project"]
    extras = (e for n, e in project["optional-dependencies"].items() if n not in ("test", "parity"))
    names = lambda lines: {re.match(r"[\w-]+", line)[0].lower() for line in lines}  # noqa: E731
    used = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                used |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                used.add(node.module.split(".")[0])
    always = names(project["dependencies"])
    assert {name for name in always if IMPORTED_AS.get(name, name) not in used} == set()
    optional = {name.replace("-", "_") for extra in extras for name in names(extra)}
    known = {IMPORTED_AS.get(name, name) for name in always} | optional | {"pangu_jax"}
    # These come with jax, pydantic and math-verify.
    assert used - known - set(sys.stdlib_module_names) == {"ml_dtypes", "pydantic_core", "sympy"}


def test_the_package_says_that_it_is_typed():
    assert (Path(pangu_jax.__file__).parent / "py.typed").is_file()
