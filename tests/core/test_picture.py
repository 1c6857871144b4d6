import matplotlib
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.core.picture import picture


def draw(path, height=1.0):
    with picture(path, figsize=(2, 2)) as figure:
        figure.subplots().bar([0, 1], [height, 2.0])


@pytest.mark.parametrize(
    "name, first", [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?")]
)
def test_the_ending_says_the_format(name, first, tmp_path):
    draw(tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(first)


def test_an_svg_has_the_bytes_of_its_figure_and_settings_stay(tmp_path):
    before = dict(matplotlib.rcParams)
    for name, height in (("a.svg", 1.0), ("b.svg", 1.0), ("c.svg", 1.5)):
        draw(tmp_path / name, height)
    assert dict(matplotlib.rcParams) == before

    def ids(name):  # of clip paths, which are else drawn at random
        text = (tmp_path / name).read_text()
        return [part.split('"')[0] for part in text.split('id="')[1:]]

    assert ids("a.svg") == ids("b.svg")
    assert (tmp_path / "c.svg").read_text() != (tmp_path / "a.svg").read_text()


def test_what_fails_leaves_no_file(tmp_path):
    with pytest.raises(ZeroDivisionError), picture(tmp_path / "a.png"):
        _ = 1 / 0
    with pytest.raises(InputError, match=r"a\.gif ends in none of \.png, \.svg, \.pdf"):
        draw(tmp_path / "a.gif")
    assert not list(tmp_path.iterdir())
