"""Files of every kind, changed at random: read as they are, or refused in one sentence."""

import importlib.util
import sys
from pathlib import Path

import pytest

CASES = 50


def _load():
    folder = Path(__file__).with_name("fuzz")
    spec = importlib.util.spec_from_file_location(
        "fuzz", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module
    spec.loader.exec_module(module)
    return module


fuzz = _load()


@pytest.mark.long(but=5)
@pytest.mark.parametrize("name", fuzz.KINDS)
def test_a_changed_file_is_read_or_refused_in_one_sentence(name, tmp_path):
    found = list(fuzz.run(fuzz.KINDS[name], tmp_path, range(CASES)))
    assert not [outcome for outcome in found if outcome.wrong]
    ends = [outcome.end for outcome in found]
    assert len(ends) == CASES and ends.count("refused") >= CASES // 10, ends


def test_there_are_many_kinds_and_cases():
    assert len(fuzz.KINDS) >= 24 and CASES >= 50
