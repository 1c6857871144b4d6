"""Layers' states at thoughts, and how probability lies on sets of ids."""

import jax
import numpy as np
import pytest

from pangu_jax.cli.latent_probe import Options, _lines
from pangu_jax.core.errors import InputError
from pangu_jax.data.prosqa import by_distance, draw_graph, write
from pangu_jax.models.thinker import ThinkerConfig, from_decoder, project
from pangu_jax.reasoning.latent.answer import think
from pangu_jax.reasoning.latent.curriculum import ALL, Phase
from pangu_jax.reasoning.latent.lens import normed, spread, states_by_layer
from pangu_jax.reasoning.latent.probe import Target, lens_ranks
from pangu_jax.reasoning.latent.registry import METHODS


def test_every_layers_states_are_those_of_the_naive_form(naive, model, markers, problems):
    params, cfg = model
    phase, method = Phase(1, 2, ALL), METHODS["coconut"]
    thoughts = think(params, problems, method, phase, markers, cfg=cfg, batch=2)
    raw = states_by_layer(params, problems, thoughts, method, phase, markers, cfg=cfg, batch=2)
    found = normed(params, raw, cfg=cfg)
    assert found.shape == (3, 2, 2, 8)
    np.testing.assert_allclose(found[:, -1], thoughts, rtol=1e-4, atol=1e-5)
    row = method.slots(problems[1], phase, markers, 0)
    x = naive.inputs(params, row.prefix, 2, (), cfg)
    one = naive.layer(
        jax.tree.map(lambda leaf: leaf[0], params["runs"][0]), x, cfg.layers[0].attention, cfg
    )
    want = naive.norm(params["norm"]["scale"], one, cfg.norm_eps)
    np.testing.assert_allclose(found[1, 0], want[-3:-1], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(raw[1, 0], np.asarray(one)[-3:-1], rtol=1e-4, atol=1e-5)


def test_projected_thoughts_are_made_of_the_last_layers_states(model, markers, problems):
    params, cfg = model
    thinker = ThinkerConfig(cfg, projection=cfg.width)
    params = from_decoder(params, thinker, key=jax.random.key(1))
    phase, method = Phase(1, 2, ALL), METHODS["codi"]
    thoughts = think(params, problems, method, phase, markers, cfg=cfg, batch=2)
    raw = states_by_layer(params, problems, thoughts, method, phase, markers, cfg=cfg, batch=2)
    states = normed(params, raw, cfg=cfg)
    np.testing.assert_allclose(project(params, states[:, -1]), thoughts, rtol=1e-4, atol=1e-5)
    assert np.abs(states[:, -1] - thoughts).max() > 0.1
    thoughts, states = (np.concatenate([x, x]) for x in (thoughts, states))
    target = Target("answer", np.arange(6), np.array([1, 2, 3, 1, 2, 3]))
    lines = list(_lines(Options("run"), params, cfg, [target], thoughts, states[:, -1]))
    want = 1 + np.median(lens_ranks(params, states[:, -1], target.ids, cfg=cfg), axis=0)
    assert [line["lens"] for line in lines] == want.tolist()


def test_mass_and_spread_are_those_of_a_softmax_by_hand(model):
    params, cfg = model
    states = np.random.default_rng(0).normal(size=(3, 2, 8)).astype(np.float32)
    sets = [(1, 4, 5), (), (7,)]
    found = spread(params, states, sets, cfg=cfg)
    scores = np.einsum("bnd,dv->bnv", states, params["head"]["kernel"]).astype(np.float64)
    chances = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    first, last = chances[0][:, [1, 4, 5]], chances[2][:, 7]
    np.testing.assert_allclose(found.mass, (first.sum(-1) + last) / 2, rtol=1e-5)
    part = first / first.sum(-1, keepdims=True)
    entropy = -(part * np.log(part)).sum(-1)
    np.testing.assert_allclose(found.effective, (np.exp(entropy) + 1) / 2, rtol=1e-5)
    assert (found.problems, found.size) == (2, 2.0)
    # A head that knows nothing spreads evenly.
    even = spread(params, 0 * states[:1], sets[:1], cfg=cfg)
    np.testing.assert_allclose(even.mass, 3 / 16, rtol=1e-6)
    np.testing.assert_allclose(even.effective, 3.0, rtol=1e-6)
    with pytest.raises(InputError, match="no set of ids"):
        spread(params, states, [(), (), ()], cfg=cfg)


def test_nodes_by_distance_are_those_of_the_graph():
    for seed in range(3):
        rng = np.random.default_rng(seed)
        graph = draw_graph(rng)
        problem = write(graph, rng)
        found = by_distance(problem.question)
        assert found is not None
        near, never = found
        for number, step in enumerate(problem.steps):
            end = step.split()[-1].rstrip(".")
            assert end in near[number] and end not in set().union(*near[:number])
        assert problem.answer.split()[-1].rstrip(".") in near[len(problem.steps) - 1]
        reached = {graph.root}
        for start, end in sorted(graph.edges, key=lambda edge: edge[1]):  # parents come first
            reached |= {end} if start in reached else set()
        assert sum(map(len, near)) == len(reached) - 1
        named = {node for edge in graph.edges for node in edge}
        assert len(never) == len(named - reached)
    asked = "Every apus is a bpus. Tom is a apus. Rex is a bpus. Is Tom a bpus or cpus?\n"
    assert by_distance(asked) == ([{"apus"}, {"bpus"}], {"Rex"})
    assert by_distance("3 * 4") is None
