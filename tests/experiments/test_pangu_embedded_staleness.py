"""The experiment on staleness: its questions, its lengths and its tables; nothing is compiled."""

from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from experiments.pangu_embedded import arithmetic, staleness, staleness_report
from experiments.pangu_embedded.config import ARMS, Learning, Speed, Staleness
from pangu_jax.decode.engine import Answer
from pangu_jax.study.cells import Cells


def told(text):
    ids = np.array(arithmetic.ids(text), np.int32)
    return Answer(ids, *np.zeros((2, len(ids)), np.float32), np.zeros(len(ids), np.int32), "stop")


def test_questions_are_right_and_none_that_is_learned_from_is_held_out():
    questions = arithmetic.Questions(2, 0)
    found = [questions.of(number) for number in range(300)]
    for text, answer in found:
        assert eval(text[:-1]) == int(answer)
    rng = np.random.default_rng(0)
    held = {arithmetic.question(rng, 2, held_out=True)[0] for _ in range(300)}
    assert not held & {text for text, _ in found} and len({t for t, _ in found}) > 200
    # Nor is one whose numbers stand the other way round, as its answer is the same.
    pairs = [
        {frozenset(text[:-1].split("+")) for text in texts}
        for texts in (held, {text for text, _ in found})
    ]
    assert not pairs[0] & pairs[1]
    right = found[0][1]
    answers = [told(right), told("1" + right), told(right[:-1])]
    assert questions.reward(0, answers) == [1.0, 0.0, 0.0]
    assert questions.prompt(0) == arithmetic.ids(found[0][0]) == questions.prompt(0)


def test_rows_count_answers_alone():
    rows = arithmetic._rows(np.random.default_rng(0), 2)
    text = ["".join(arithmetic.ALPHABET[i] for i in row) for row in rows["labels"]]
    for line, mask in zip(text, rows["mask"], strict=True):
        answer = "".join(np.array(list(line))[mask == 1])
        assert answer.endswith("\n") and "=" + answer in line


def test_tables_and_plots_hold_what_cells_gave(tmp_path, monkeypatch):
    speed = Speed(1, 16, 20, mean=20.0, batch=2, group=2, slots=4, bounds=(0, 2), seeds=(0, 1))
    learning = Learning(1, 32, 1, 3, seeds=(0, 1))
    results = {}
    for bound, seed, seconds in ((0, 0, 30.0), (2, 0, 20.0), (0, 1, 36.0), (2, 1, 20.0)):
        ages = [20] if bound == 0 else [10, 8, 2]
        results[f"speed/{bound}/{seed}"] = {
            **{"seconds_of_run": seconds, "trained": 10.0 + bound},
            **{"generator_idle": 0.5, "ages": ages},
        }
    for seed in (0, 1):
        results[f"base/{seed}"] = {"right": 0.4 + seed / 10}
        for place, arm in enumerate(ARMS):
            results[f"{arm}/{seed}"] = {
                **{"right": 0.7 + place / 10, "gain": 0.3, "mean_age": 1.0, "largest_age": 2}
            }
    lines = staleness_report.speeds(speed, results, [0, 1]).splitlines()
    assert lines[2].startswith("| 0 | 33.0 ± 4.2 | 0.500 | 1.00 ± 0.00 | 1.00 ± 0.00 |")
    faster = float(lines[3].split("|")[5].split("±")[0])
    assert lines[3].startswith("| 2 | 20.0 ± 0.0 | 0.600 | 1.65 ± 0.21 |") and 1.1 < faster < 2.0
    # Each seed's own lengths, and its own synchronous run's cost of a token.
    alone = [staleness_report.speeds(speed, results, [seed]).splitlines()[3] for seed in (0, 1)]
    each = [float(line.split("|")[5]) for line in alone]
    assert each[0] != each[1] and np.mean(each) == pytest.approx(faster, abs=0.011)
    lines = staleness_report.learned(results, [0, 1]).splitlines()
    assert lines[2].startswith("| from solutions | 0.450 ± 0.071 |")
    assert (
        lines[4] == "| s = 4, corrected | 0.800 ± 0.000 | 0.800, 0.800 | 0.300 ± 0.000 | 1.00 | 2 |"
    )
    both = Staleness(speed, learning)
    text = staleness_report.text(both, results)
    assert "| 0 | 33.0 ± 4.2 |" in text and "0.450 ± 0.071" in text
    drawn = {}
    monkeypatch.setattr(Figure, "savefig", lambda figure, *a, **k: drawn.update({figure: k}))
    written = staleness_report.write_report(tmp_path, both, results).read_text()
    assert all(part in written for part in text.split("\n\n"))
    assert all(f"(plots/{name}.png)" in written for name in ("speed", "learning"))
    (speed_axes,), (learning_axes,) = (figure.axes for figure in drawn)
    measured, simulated = (points.lines[0] for points in speed_axes.containers)
    assert list(measured.get_xdata()) == [0, 2]
    assert list(measured.get_ydata()) == pytest.approx([1.0, 1.65])
    assert simulated.get_ydata()[1] == pytest.approx(faster, abs=0.005)
    assert [label.get_text() for label in learning_axes.get_yticklabels()][1:] == list(ARMS)
    means = [np.mean(points.lines[0].get_xdata()) for points in learning_axes.containers]
    # Of 1,024 questions, so a share is rounded to one of their number.
    assert means == pytest.approx([0.45, 0.7, 0.8, 0.9], abs=1e-3)
    del results["speed/2/0"], results[f"{next(iter(ARMS))}/1"]
    text = staleness_report.text(both, results)  # what is whole
    assert "| 0 | 36.0 |" in text and "30.0" not in text and "| from solutions | 0.400 |" in text
    assert "30.0" not in staleness_report.write_report(tmp_path, both, results).read_text()
    assert staleness_report.text(both, {}) == ""


def test_seconds_of_an_arm_are_those_of_all_its_stretches(tmp_path, monkeypatch):
    """A run that goes on tells the updates of before, too, with the seconds that they took."""

    def resumed(*given, on_update, **rest):
        for seconds in (40.0, 2.5):  # the first before it was stopped
            on_update({"seconds": seconds, "reward": 1.0, "ages": [0, 1]})
        return SimpleNamespace(params=None)

    stubs = {"train": resumed, "_opened": lambda *_: None, "accuracy": lambda *_: 1}
    for name, stub in stubs.items():
        monkeypatch.setattr(staleness, name, stub)
    cells = Cells(tmp_path, {"base/0": {"right": 0.5}})
    arm = next(iter(ARMS))
    found = staleness._arm(Learning(1, 32, 1, 3, seeds=(0,)), tmp_path, cells, arm, 0)
    assert found["run_seconds"] == 42.5 and found["gain"] == 0.5 and found["largest_age"] == 1
