"""The experiment on word problems: what is learned and tested on, rows, cells, report."""

import json
import re
import shutil

import numpy as np
import pytest

from experiments.pangu_embedded import smollm2_report, smollm2_rl, smollm2_transformers
from experiments.pangu_embedded.word_problems import Drawn, read
from experiments.pangu_embedded.worked_solutions import Solutions
from pangu_jax.core.errors import InputError

SVAMP = [
    ("Jo has 8 pens", "How many pens are 3 such boxes of 2?", "( ( 8.0 - 2.0 ) * 3.0 )", 18.0),
    ("Al had 9 figs. He ate 4.", "How many figs are left?", "( 9.0 - 4.0 )", 5.0),
    ("Di read 7 pages a day", "How many pages in 2 days?", "( 7.0 * 2.0 )", 14.0),
]
ASDIV = [
    ("Two hens lay 3 eggs each.", "How many eggs?", "6 (eggs)", "2*3=6"),
    ("Bo is 7.", "How old is he in 2 years?", "9 (years)", "7+2=9"),
    ("A rope of 5 m is halved.", "How long is a half?", "2.5 (m)", "5/2=2.5"),
    ("Sid has 4 cards.", "How many has he with 6 more?", "10 (cards)", "4+6=10"),
    ("Who has more, Al or Jo?", "Al has 3, Jo 2.", "Al", "3 > 2"),
]
MULTIARITH = [("Ed had 12 nuts and ate 5. How many are left?", 7), ("3 bags of 4. How many?", 12)]


def gsm8k(*questions):
    return [{"question": q, "answer": f"It is 1+{i}=<<1+{i}={1 + i}>>{1 + i}.\n#### {1 + i}"}
            for i, q in enumerate(questions)]  # fmt: skip


def write(folder, *, training=(), asdiv=()):
    """A folder of all sets, with more to learn from as it is told."""
    named = ("Body", "Question", "Equation", "Answer")
    sets = {
        "gsm8k_train": gsm8k("Cy saves 3 dollars a week. How much in 4 weeks?", *training),
        "gsm8k_test": gsm8k("A pie has 8 slices. How many are 2 pies?", "How many are 3 cats?"),
        "svamp_test": [dict(zip(named, row, strict=True)) for row in SVAMP],
        "distill_svamp": [{"question": "Di read 7 pages a day How many pages in 2 days?"}],
        "multiarith": [{"input": question, "target": gold} for question, gold in MULTIARITH],
        "asdiv": [
            dict(zip(("body", "question", "answer", "formula"), row, strict=True))
            for row in (*ASDIV, *asdiv)
        ],
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    for name, rows in sets.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{name}.jsonl").write_text(lines)
    return folder


def test_no_question_of_a_test_is_learned_from(tmp_path):
    """One of each test is planted: as it is, in other letters and signs, with other numbers."""
    clean = read(write(tmp_path / "clean"), asdiv_tested=2)
    assert clean.dropped == {"GSM8K": 0, "SVAMP": 0, "ASDiv": 0}
    planted = (
        "A pie has 8 slices. How many are 2 pies?",
        "a pie has 1,050 slices; how many are twenty-five pies",
        "Al had forty figs. He ate 3.5 -- how many FIGS are left?",
        "Ed had 99 nuts, and ate 50! How many are left?",
        clean.tests["ASDiv"][0].question,
    )
    rows = [("Ed had 13 nuts", "and ate 2. How many are left?", "11", "13-2=11")]
    found = read(write(tmp_path / "planted", training=planted, asdiv=rows), asdiv_tested=2)
    inside = [x.question for x in found.tests["ASDiv"]]
    nuts = any("nuts" in question for question in inside)  # the hash may have put it there
    assert found.dropped["GSM8K"] == 5 - (clean.tests["ASDiv"][0].question not in inside)
    assert found.dropped["ASDiv"] == (not nuts)
    words = lambda text: re.findall(r"[a-z]{4,}", re.sub("forty|twenty|five", "", text.lower()))  # noqa: E731
    tested = [words(item.question) for items in found.tests.values() for item in items]
    for pool in found.training.values():
        assert pool and not [x for x in pool if words(x.item.question) in tested]


def test_sets_have_their_solutions_and_a_fixed_split(tmp_path):
    found = read(write(tmp_path / "data"), asdiv_tested=2)
    said = {name: [x.solution for x in pool] for name, pool in found.training.items()}
    assert said["GSM8K"] == ["It is 1+0=1.\nThe answer is \\boxed{1}."]
    assert said["SVAMP"] == ["7 * 2 = 14\nThe answer is \\boxed{14}."]
    for solution, problem in zip(said["ASDiv"], found.training["ASDiv"], strict=True):
        row = next(row for row in ASDIV if row[0] in problem.item.question)
        assert solution == f"{row[3]}\nThe answer is \\boxed{{{row[2].split()[0]}}}."
    assert [x.gold for x in found.tests["SVAMP"]] == ["18", "5"]
    assert [x.gold for x in found.tests["MultiArith"]] == ["7", "12"]
    assert {len(found.tests["ASDiv"]), len(found.training["ASDiv"])} == {2}, "Al is no number"
    lines = (tmp_path / "data" / "asdiv.jsonl").read_text().splitlines()
    (tmp_path / "data" / "asdiv.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    assert read(tmp_path / "data", asdiv_tested=2) == found
    with pytest.raises(InputError, match="no question of ASDiv"):
        read(tmp_path / "data", asdiv_tested=4)
    (tmp_path / "data" / "multiarith.jsonl").write_text('{"input": "How many?"}\n')
    with pytest.raises(InputError, match=r"multiarith\.jsonl.*no number"):
        read(tmp_path / "data", asdiv_tested=2)
    (tmp_path / "data" / "multiarith.jsonl").unlink()
    with pytest.raises(InputError, match=r"neither multiarith\.jsonl nor"):
        read(tmp_path / "data", asdiv_tested=2)


def test_solution_of_svamp_keeps_parentheses_that_count(tmp_path):
    folder = write(tmp_path / "data")
    asked = {"question": f"{SVAMP[0][0]} {SVAMP[0][1]}"}
    (folder / "distill_svamp.jsonl").write_text(json.dumps(asked) + "\n")
    (found,) = read(folder, asdiv_tested=2).training["SVAMP"]
    assert found.solution.startswith("(8 - 2) * 3 = 18\n")


def test_each_set_is_asked_as_often_and_whole_before_again(tmp_path):
    rows = gsm8k(*(f"{'abc'[i % 3] * (i + 1)}?" for i in range(5)))
    folder = write(tmp_path / "data", training=[row["question"] for row in rows])
    training = read(folder, asdiv_tested=2).training
    asked = [Drawn(training, 3).of(number) for number in range(36)]
    for place, pool in enumerate(training.values()):
        mine, known = asked[place::3], [x.item for x in pool]
        for turn in range(12 // len(known)):
            part = mine[turn * len(known) : (turn + 1) * len(known)]
            assert sorted(map(str, part)) == sorted(map(str, known))
    assert asked != [Drawn(training, 4).of(number) for number in range(36)]


def test_rows_learn_solutions_alone():
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, (30, 2))
    sizes[7] = (40, 2)
    examples = [tuple(rng.integers(1, 100, n).tolist() for n in pair) for pair in sizes]
    source = Solutions(examples, 32)
    assert source.left_out == 1
    learned, most = [], 0
    for index in range(len(source)):
        row = source[index]
        most = max(most, len(set(row["segments"].tolist()) - {0}))
        assert not row["labels"][row["weights"] == 0].any()
        for number in range(1, row["segments"].max() + 1):
            at = np.flatnonzero(row["segments"] == number)
            assert np.array_equal(at, np.arange(at[0], at[-1] + 1))
            assert row["positions"][at].tolist() == list(range(len(at)))
            counts = row["weights"][at] == 1
            said = row["labels"][at][counts].tolist()
            read_before = row["tokens"][at][: len(at) - len(said) + 1].tolist()
            learned.append((read_before, said))
            assert row["tokens"][at][len(read_before) :].tolist() == said[:-1]
    assert sorted(learned) == sorted((p, s) for p, s in examples if len(p) < 40)
    assert source.most == most + 1
    with pytest.raises(InputError, match="none of 1 solutions"):
        Solutions([([1], [2, 3])], 1)


def run(monkeypatch, *options):
    monkeypatch.setattr("sys.argv", ["smollm2_rl.py", *map(str, options)])
    smollm2_rl.main()


def kill_in_deletions(monkeypatch, out, options):
    """Ends the experiment as it clears away what was trained; that is then not trained again."""
    rmtree, discard = shutil.rmtree, smollm2_rl.store.discard

    def half(remove):
        def removes(path, **rest):
            if path in (out / "sft", out / "rl-0"):
                rmtree(path / "checkpoints")
                raise KeyboardInterrupt
            remove(path, **rest)

        return removes

    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(smollm2_rl.store, "discard", half(discard))
        run(monkeypatch, *options)
    monkeypatch.setattr(smollm2_rl.store, "discard", discard)
    monkeypatch.setattr(smollm2_rl, "train_language", pytest.fail)
    with pytest.raises(KeyboardInterrupt):
        monkeypatch.setattr(shutil, "rmtree", half(rmtree))
        run(monkeypatch, *options)
    monkeypatch.setattr(shutil, "rmtree", rmtree)
    monkeypatch.setattr(smollm2_rl, "train", pytest.fail)


@pytest.mark.long
def test_smoke_goes_through_every_cell_and_resumes(monkeypatch, capsys, tmp_path, tiny_run):
    beside = {"answers": 2, "same": 2, "same prompts": 2, "differ": [], "log-probability": 1e-5}
    asked = []
    monkeypatch.setattr(smollm2_rl, "compared", lambda *a, **k: asked.append(a) or dict(beside))
    out = tmp_path / "run"
    data = write(tmp_path / "data")
    options = ("--data", data, "--model", tiny_run, "--template", "chatml", "--out", out)
    run(monkeypatch, *options, "--minutes", 1e-9)
    assert "the time is over before split" in capsys.readouterr().err
    kill_in_deletions(monkeypatch, out, options)
    run(monkeypatch, *options)
    shown = capsys.readouterr().out
    results = json.loads((out / "results.json").read_text())
    assert list(results) == [
        *("split", "base", "sft", "sft accuracy", "rl/0", "rl accuracy/0", "transformers/0"),
    ]
    assert [len(results["base"][name]["right"]) for name in results["split"]["tests"]] == [2] * 4
    assert len(results["rl/0"]["reward"]) == 2 and sum(results["rl/0"]["ages"]) == 4
    assert sorted(path.name for path in out.glob("*model")) == ["rl-0-model", "sft-model"]
    assert len(asked) == 1 and asked[0][0] == out / "rl-0-model"
    assert "2 of 2 greedy answers are the same in every token" in shown
    run(monkeypatch, *options)
    assert shown == capsys.readouterr().out and len(asked) == 1, "nothing is computed twice"
    assert not (out / "rl-0").exists() and not (out / "sft" / "config.json").exists()
    with pytest.raises(InputError, match="another questions"):
        run(monkeypatch, "--data", write(tmp_path / "more", training=["Else?"]), *options[2:])


def test_report_has_shares_intervals_and_paired_gains(tmp_path, drawn):
    def column(first, second):
        rest = {"tokens": 10.0, "no answer": 1, "cut off": 2}
        return {"A": {"right": first, **rest}, "B": {"right": second, **rest}}

    results = {
        "split": {"tests": {"A": 4, "B": 4}, "training": {"C": 1200}, "dropped": {"C": 3}},
        "base": column("0000", "0001"),
        "sft accuracy": column("0101", "0001"),
        "rl accuracy/1": column("0111", "1110"),
        "rl/1": {"reward": [0.1, 0.2, 0.3, 0.4, 0.5], "ages": [3, 2], "seconds of updates": 7.0},
    }
    text = smollm2_report.text(results)
    assert "| A | 4 | 0.0 [0.0, 49.0] | 50.0 [15.0, 85.0] | 75.0 [30.1, 95.4] |" in text
    low = (
        100 * (2 * 1 / (1 + 1.96**2) - 1) / 4
    )  # of one change, a gain: Wilson's from 1 / (1 + z^2)
    assert f"| A | +25.0 [{low:+.1f}, +25.0], 1 and 0 |" in text
    assert "| B | +50.0 [" in text and "], 3 and 1 |" in text and "| B | 10, 50.0%, 25.0% |" in text
    assert "1,200 of C; 3 were dropped" in text
    assert (
        "by fifths 0.100, 0.200, 0.300, 0.400, 0.500; groups trained on: 3 of age 0, 2 of" in text
    )
    assert "transformers" not in text and smollm2_report.text({}).endswith("measured yet.")
    whole = smollm2_report.write(tmp_path, results).read_text()
    assert whole.startswith(text) and "(plots/accuracy.png)" in whole
    assert (tmp_path / "plots" / "accuracy.png").read_bytes()[:4] == b"\x89PNG"
    assert list(drawn) == ["A", "B"]
    for line in (line for line in text.splitlines() if line[:6] in ("| A | ", "| B | ")):
        if " | 4 | " not in line:
            continue
        points, beside = drawn[line[2]]
        assert list(points) == ["as it is", "solutions", "rewards, seed 1"] and not beside
        shown = [
            f"{100 * value:.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            for ((value, low, high),) in points.values()
        ]
        assert line.split(" | ")[2:] == [*shown[:-1], f"{shown[-1]} |"]


@pytest.mark.parity
def test_answers_are_those_of_transformers(tmp_path):
    import jax

    from pangu_jax.checkpoint import hf
    from pangu_jax.core.spec import init
    from pangu_jax.models import decoder
    from pangu_jax.nn.attention import AttentionConfig
    from pangu_jax.nn.block import LayerConfig
    from pangu_jax.nn.mlp import MlpConfig

    layer = LayerConfig(AttentionConfig(2, 1, 8), mlp=MlpConfig(32))
    cfg = decoder.DecoderConfig(97, 16, (layer,) * 2, max_length=64)
    params = jax.tree.map(lambda x: 4 * x, init(decoder.spec(cfg), key=jax.random.key(0)))
    hf.save(params, cfg, tmp_path / "model", family="llama")
    prompts = [[3, 5, 7], [11] * 9, [2], [30, 20, 10, 5]]
    found = smollm2_transformers.compared(
        tmp_path / "model", [""] * 4, prompts, stops=(1, 40), max_new_tokens=20, length=32
    )
    assert found["same"] == found["answers"] == 4 and not found["differ"]
    assert found["same prompts"] is None and found["log-probability"] < 1e-4
