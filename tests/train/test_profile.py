"""A profile names the parts of a step, and its trace is where it says."""

import gzip
import json

import pytest

from pangu_jax.checkpoint.store import load_model
from pangu_jax.cli.main import main
from pangu_jax.core.spec import count
from pangu_jax.models import decoder
from pangu_jax.train.profile import part, part_times


@pytest.mark.parametrize(
    ("scope", "want"),
    [
        ("jit(step)/jvp(attention)/dot_general", "attention, forward"),
        ("jit(step)/transpose(jvp(while))/body/transpose(jvp(moe))/mul", "moe, backward"),
        ("jit(step)/optimizer/add", "optimizer"),
        ("jit(step)/jvp(head)/while/body/dot_general", "head, forward"),
        ("jit(step)/reduce_sum", "other"),
        ("", "other"),
    ],
)
def test_a_scope_is_in_a_part(scope, want):
    assert part(scope) == want


def test_times_are_summed_by_part_without_loops_and_other_programs(tmp_path):
    program = (
        "HloModule jit_step, entry\n"
        '  %dot.1 = f32[] dot(), metadata={op_name="jit(step)/jvp(attention)/dot_general"}\n'
        '  fusion.2 = f32[] fusion(), metadata={op_name="jit(step)/optimizer/add"}\n'
        '  %while.3 = f32[] while(), metadata={op_name="jit(step)/while"}\n'
    )
    events = [
        {"dur": 5, "args": {"hlo_op": "dot.1", "hlo_module": "jit_step"}},
        {"dur": 7, "args": {"hlo_op": "dot.1", "hlo_module": "jit_step"}},
        {"dur": 3, "args": {"hlo_op": "fusion.2", "hlo_module": "jit_step"}},
        {"dur": 90, "args": {"hlo_op": "while.3", "hlo_module": "jit_step"}},
        {"dur": 80, "args": {"hlo_op": "dot.1", "hlo_module": "jit_other"}},
        {"dur": 70, "name": "python"},
    ]
    for moment, found in (("2026_01_02", events), ("2026_01_01", events[:1])):  # the newest counts
        place = tmp_path / "plugins" / "profile" / moment
        place.mkdir(parents=True)
        with gzip.open(place / "x.trace.json.gz", "wt") as file:
            json.dump({"traceEvents": found}, file)
    assert part_times(tmp_path, program) == {"attention, forward": 12, "optimizer": 3}


@pytest.mark.long
def test_train_profile_writes_a_trace_and_says_where_time_and_memory_go(tiny_run, tmp_path, capsys):
    text = tmp_path / "a.txt"
    text.write_text("some text to train on. " * 100)
    out = ["--out", str(tmp_path / "run"), "--init", str(tiny_run), "--held-out", "0"]
    more = ["--steps", "8", "--batch", "2", "--length", "16", "--profile"]
    with pytest.raises(SystemExit) as end:
        main(["train", "--data", str(text), *out, *more])
    assert end.value.code == 0
    err = capsys.readouterr().err
    assert "ms per step over 5 steps" in err
    for name in ("attention, forward", "attention, backward", "mlp, forward", "head", "optimizer"):
        assert name in err, err
    for name in ("parameters", "optimizer's state", "work of the step"):
        assert name in err
    assert f"{4 * count(decoder.spec(load_model(tiny_run))) / 1e6:.3f} MB" in err  # of float32
    places = list((tmp_path / "run" / "profile").glob("plugins/profile/*/*"))
    assert {"".join(p.suffixes[-2:]) for p in places} >= {".xplane.pb", ".json.gz"}
