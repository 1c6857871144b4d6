"""A message is one line that can be read, whatever it quotes."""

import pytest

from pangu_jax.core.errors import InputError


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("a.csv line 3: 'x' is no number", "a.csv line 3: 'x' is no number"),
        ("two\nlines\r\n and a\ttab", "two lines and a tab"),
        ("no \x00 zero, no \x1b[31mred, no \u2028, no \ud800", r"no \x00 zero, no \x1b[31mred, no "
         r"\u2028, no \ud800"),
        ("é and 系统 stay", "é and 系统 stay"),
        (ValueError("what another library said\n"), "what another library said"),
    ],
)  # fmt: skip
def test_it_is_one_line(given, shown):
    assert str(InputError(given)) == shown


def test_what_is_too_long_is_cut_in_its_middle():
    found = str(InputError(f"a.csv: {'9' * 200_000} is no number"))
    assert found.startswith("a.csv: 999") and found.endswith("999 is no number")
    assert "… …" in found and len(found) < 200
    found = str(InputError(f"a.csv has no column 'x'; it has {', '.join(map(str, range(10**5)))}"))
    assert found.startswith("a.csv has no column 'x'") and found.endswith("99999")
    assert len(found) < 620
    path = "/" + "/".join(["folder"] * 40)
    assert path in str(InputError(f"{path} is empty"))
