"""An exported model of latent thoughts answers in onnxruntime as it does here."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.core.config import save_config
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import is_spec
from pangu_jax.data.tokenizer import ByteTokenizer
from pangu_jax.export import decoder as export_decoder
from pangu_jax.export.ascend.profile import profile, violations
from pangu_jax.export.implementations import export_forms
from pangu_jax.models import decoder
from pangu_jax.models.presets import byte_model
from pangu_jax.models.transformer import by_layer
from pangu_jax.nn.how import How
from pangu_jax.reasoning.latent.answer import given_part, solve
from pangu_jax.reasoning.latent.curriculum import ALL, Phase
from pangu_jax.reasoning.latent.exported import asking
from pangu_jax.reasoning.latent.feedback import FEEDBACK
from pangu_jax.reasoning.latent.registry import METHODS
from pangu_jax.reasoning.latent.slots import Encoded, encode, markers_of
from pangu_jax.reasoning.latent.train import RUN, Trained

TOOL = Path(__file__).parents[3] / "tools" / "generate_onnx.py"
THOUGHTS, NEW = 3, 6


@pytest.fixture(scope="module")
def tool():
    """tools/generate_onnx.py, as a module."""
    pytest.importorskip("onnxruntime")
    spec = importlib.util.spec_from_file_location("generate_onnx", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def asked(problems):
    """Questions whose answers differ."""
    return [Encoded(problem.question, (), ()) for problem in problems]


def written_down(folder, method, phase, longest=None):
    trained = Trained(method, phase, "t", None, 1, 1, NEW, longest_question=longest)
    save_config(trained, folder / RUN)
    return asking(folder, ByteTokenizer())


def test_another_tokenizer_than_the_run_s_is_refused(tmp_path):
    trained = Trained("cot", Phase(1), "t", None, 1, 1, NEW, tokenizer="1a2b")
    save_config(trained, tmp_path / RUN)
    with pytest.raises(InputError, match=r"bytes is not the tokenizer that .* is 1a2b"):
        asking(tmp_path, ByteTokenizer())


@pytest.mark.long
@pytest.mark.onnx
@pytest.mark.parametrize("unmarked", [False, True])
def test_graphs_think_and_answer_as_solve_does(tool, model, markers, asked, tmp_path, unmarked):
    from pangu_jax.export.artifact import save
    from pangu_jax.export.onnx.write import export

    params, cfg = model
    markers = dataclasses.replace(markers, stop=9)  # an id that it does not begin with
    phase, method = Phase(1, THOUGHTS, ALL, unmarked=unmarked), METHODS["coconut"]
    rows = [given_part(method.slots(x, phase, markers, 0)) for x in asked]
    thinking = export_decoder.Thinking(THOUGHTS, lambda params, state: state, rows[0].tail)
    bundle = export_decoder.bundle(
        params, cfg, profiles=(9,), slots=24, how=How(impl=export_forms()), thinking=thinking
    )
    artifact, compared, lowered = export(bundle, tmp_path)
    save(artifact, tmp_path)
    assert max(row.relative for row in compared) <= 2e-5
    for name, made in lowered.items():
        assert not violations(name, made.graph.nodes, profile("cann-8.0"))
    graphs = tool.Model(tmp_path)
    assert graphs.facts["filled"] == THOUGHTS + (not unmarked)
    options = {"cfg": cfg, "max_new_tokens": NEW}
    wanted = solve(params, asked, method, phase, markers, **options)
    found = [tuple(graphs.generate(row.prefix, NEW, (markers.stop,))) for row in rows]
    assert found == [one.ids for one in wanted] and len(set(found)) > 1
    # The thoughts matter: others give other answers.
    still = solve(params, asked, method, phase, markers, exchange=lambda x, key: 0 * x, **options)
    assert found != [one.ids for one in still]


@pytest.mark.long
@pytest.mark.onnx
def test_graphs_leave_the_gap_of_internalized_chains(tool, open_model, markers, asked, tmp_path):
    from pangu_jax.export.artifact import save
    from pangu_jax.export.onnx.write import export

    params, cfg = open_model
    markers, method = dataclasses.replace(markers, stop=9), METHODS["icot"]
    options = {"cfg": cfg, "max_new_tokens": NEW}
    found = []
    for gap in (0, 7):
        phase = Phase(1, 0, ALL, chain_room=gap)
        rows = [given_part(method.slots(x, phase, markers, 0)) for x in asked]
        bundle = export_decoder.bundle(
            params, cfg, profiles=(9,), slots=24, how=How(impl=export_forms()), gap=gap
        )
        folder = tmp_path / str(gap)
        folder.mkdir()
        artifact, compared, _ = export(bundle, folder)
        save(artifact, folder)
        assert max(row.relative for row in compared) <= 2e-5
        graphs = tool.Model(folder)
        wanted = solve(params, asked, method, phase, markers, **options)
        found.append([tuple(graphs.generate(row.prefix, NEW, (markers.stop,))) for row in rows])
        assert found[-1] == [one.ids for one in wanted]
    assert found[0] != found[1]


def test_what_a_caller_must_know_is_the_row_of_the_last_stage(tmp_path):
    from pangu_jax.data.chain_of_thought import Problem

    tokenizer = ByteTokenizer()
    markers = markers_of(tokenizer)
    for name, phase, thoughts in (
        ("coconut", Phase(1, 2, ALL), 2),
        ("coconut", Phase(1, 2, ALL, unmarked=True), 2),
        ("pause", Phase(1, 2, ALL), 0),
        ("pause", Phase(1, 2, ALL, unmarked=True), 0),
        ("no-cot", Phase(1, 0, ALL), 0),
        ("codi", Phase(1, 2, ALL), 2),
    ):
        found = written_down(tmp_path, name, phase)
        question = tokenizer.encode("12?" + found.facts["ending"])
        prompt = (*found.facts["begin"], *question, *found.facts["suffix"])
        row = METHODS[name].slots(encode(Problem("12?", (), "3"), tokenizer), phase, markers, 0)
        given = row.tail[: row.given]
        assert found.facts["mark"] == markers.answer and name in found.note
        # What a question of the longest length takes of a profile, if the run says what that is.
        assert found.longest == 0
        assert written_down(tmp_path, name, phase, len(question)).longest == len(prompt)
        assert {**dict.fromkeys(("coconut", "codi"), "2 thoughts"), "pause": "2 pauses"}.get(
            name, "no thoughts"
        ) in found.note
        if thoughts:
            assert (prompt, found.thinking.tail) == (row.prefix, given)
            assert found.thinking.thoughts == thoughts
            assert found.thinking.feedback is FEEDBACK[METHODS[name].feedback]
        else:
            assert prompt == (*row.prefix, *given) and found.thinking is None
        assert found.gap == 0 and "further" not in found.note
    kept = written_down(tmp_path, "icot", Phase(1, 0, ALL, chain_room=7))
    assert kept.gap == 7 and kept.note.endswith("learned to write then, 7 positions further on")


def test_thoughts_take_slots_of_the_cache(tmp_path):
    cfg = byte_model(8, 1, 1, 1, 8, 8, 64)
    params = jax.tree.map(lambda s: jnp.zeros(s.shape), decoder.spec(cfg), is_leaf=is_spec)
    thinking = export_decoder.Thinking(3, lambda params, state: state, (1,))
    options = {"profiles": (8,), "thinking": thinking}
    with pytest.raises(Exception, match="11 slots is too short for the profile 8 and 4 slots of"):
        export_decoder.bundle(params, cfg, slots=11, **options)
    assert export_decoder.default_slots(cfg, (8,), 4) == 24
    found = export_decoder.bundle(params, cfg, slots=13, **options)
    sample = found.programs[-1].samples["random"]
    np.testing.assert_array_equal(
        sample["position"], found.programs[0].samples["random"]["length"] + 4
    )
    assert json.dumps(found.facts)


@pytest.mark.parametrize("tail", [None, (4, 2)])
def test_what_follows_a_prompt_stands_behind_the_gap(open_model, tail):
    params, cfg = open_model
    layers, prompt, thought = by_layer(params), (3, 5, 1), 6
    row = params["embed"]["table"][thought]
    thinking = tail and export_decoder.Thinking(
        1, lambda params, state: jnp.broadcast_to(row, state.shape), tail
    )
    after = (thought, *tail) if tail else ()
    read = {"cfg": cfg, "slots": 12, "gap": 7}
    found = export_decoder.prefill(
        layers, jnp.array([[*prompt, 0]]), jnp.array([3]), thinking=thinking, **read
    )
    caches = {f"past_{name}": value for name, value in found.items() if name != "logits"}
    at = len(prompt) + len(after)
    next_one = export_decoder.step(layers, jnp.array([2]), jnp.array([at]), cfg=cfg, **caches)

    ids = jnp.array([[*prompt, *after, 2]])
    positions = jnp.arange(at + 1) + 7 * (jnp.arange(at + 1) >= len(prompt))
    states = decoder.apply(params, ids, cfg=cfg, positions=positions[None]).hidden
    wanted = decoder.logits(params, states, cfg=cfg)[0]
    np.testing.assert_allclose(found["logits"][0], wanted[-2], atol=1e-4)
    np.testing.assert_allclose(next_one["logits"][0], wanted[-1], atol=1e-4)
