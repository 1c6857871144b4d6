import sys
import tomllib
from pathlib import Path

import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.extras import check_extra, installing

ROOT = Path(__file__).parents[2]


def test_what_is_installed_passes_without_being_imported():
    name = "this"  # which prints when it is imported
    assert name not in sys.modules
    check_extra("serve", "json", name, by="serving")
    assert name not in sys.modules


def test_all_that_is_missing_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "json", None)
    with pytest.raises(InputError) as raised:
        check_extra("serve", "json", "sys", "no_such_module", by="serving")
    assert str(raised.value) == (
        "serving needs json, no_such_module: pip install 'pangu-jax[serve]'"
    )


def test_the_extras_that_the_package_names_are_in_pyproject():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = extras["optional-dependencies"]
    texts = [path.read_text() for path in sorted((ROOT / "pangu_jax").rglob("*.py"))]
    for start in ('check_extra("', 'installing("', "pangu-jax["):
        for text in texts:
            for rest in text.split(start)[1:]:
                name = rest.split('"')[0].split("]")[0]
                assert name in known or name == "{extra}", name
    assert installing("serve") == "pip install 'pangu-jax[serve]'"
