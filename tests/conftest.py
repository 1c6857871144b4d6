"""Eight virtual CPU devices for every test, and where real data lies."""

import gc
import os
from pathlib import Path

# Before jax is imported anywhere.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import pytest


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data; tests that need it are skipped without."""
    root = os.environ.get("PANGU_JAX_DATA")
    if not root:
        pytest.skip("PANGU_JAX_DATA is not set: real data files are not at hand")
    return Path(root) / "data"


@pytest.fixture(autouse=True, scope="module")
def _forget_compilations():
    """Compiled functions of a finished module only take memory."""
    yield
    jax.clear_caches()
    gc.collect()


# Tests with these markers run when they are asked for, by `-m parity` or `-m slow`.
ASKED = {
    "parity": "compares with torch: run `make parity`",
    "slow": "takes minutes: run `make slow`",
}


def pytest_collection_modifyitems(config, items):
    """Leaves out what was not asked for."""
    for marker, reason in ASKED.items():
        if marker not in (config.getoption("-m") or ""):
            skip = pytest.mark.skip(reason=reason)
            for item in items:
                if marker in item.keywords:
                    item.add_marker(skip)
