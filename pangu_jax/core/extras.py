"""Optional dependencies: whether they are installed, and how to install them."""

import importlib.util

from pangu_jax.core.errors import InputError


def installing(extra: str) -> str:
    """The command that installs an extra, one of those in pyproject.toml."""
    return f"pip install 'pangu-jax[{extra}]'"


def check_extra(extra: str, *modules: str, by: str) -> None:
    """Checks that the modules of an extra are installed; imports none of them.

    Args:
      extra: its name in pyproject.toml, such as "serve".
      *modules: those that are needed, at the top level.
      by: what needs them, such as "serving", for the message.

    Raises:
      InputError: some are missing; the message names them and says what installs them.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{by} needs {', '.join(missing)}: {installing(extra)}")
