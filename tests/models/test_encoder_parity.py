"""Live against torch, on fresh encoders: states, scores, gradients, files. By `make parity`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint import hf
from pangu_jax.core import spec as specs
from pangu_jax.core.tree import flatten
from pangu_jax.models import encoder

pytestmark = pytest.mark.parity
ACTIVATIONS = ["gelu", "gelu_new", "relu", "silu"]


@pytest.fixture(scope="module")
def tool(golden_tool):
    return golden_tool("make_golden_encoder")


def ours(folder, inputs, **options):
    params, cfg = hf.load(folder, dtype=jnp.float32)
    tokens, valid, types = (np.asarray(x, np.int32) for x in inputs)

    @jax.jit
    def run(params):
        hidden = encoder.apply(params, tokens, valid > 0, cfg=cfg, token_types=types).hidden
        return hidden, encoder.scores(params, hidden, valid > 0)

    return *map(np.asarray, run(params)), valid > 0


@pytest.mark.parametrize("act", ACTIVATIONS)
def test_fresh_models(act, tool, tmp_path):
    sizes = {"num_attention_heads": 2, "type_vocab_size": 3, "layer_norm_eps": 1e-12}
    model = tool.build_bert(5, hidden_act=act, num_labels=1, **sizes)
    inputs = tool.sample_bert(5)
    want = tool.compute_bert(model, *inputs)
    model.save_pretrained(tmp_path)
    hidden, scores, valid = ours(tmp_path, inputs)
    assert scores.shape == (3, 1)
    assert np.abs(hidden - want["hidden"])[valid].max() <= 1e-5
    assert np.abs(scores - want["scores"]).max() <= 1e-5


def test_gradients(tool, tmp_path):
    """Of a loss on the scores and on every real hidden state, in each tensor of the file."""
    import torch

    model, inputs = tool.build_bert(6), tool.sample_bert(6)
    model.save_pretrained(tmp_path)
    params, cfg = hf.load(tmp_path, dtype=jnp.float32)
    tokens, valid, types = (np.asarray(x, np.int32) for x in inputs)
    rng = np.random.default_rng(0)
    on_hidden = rng.normal(size=(*tokens.shape, cfg.width)) * valid[..., None]
    on_scores = rng.normal(size=(3, 3))

    def loss(params):
        hidden = encoder.apply(params, tokens, valid > 0, cfg=cfg, token_types=types).hidden
        scores = encoder.scores(params, hidden, valid > 0)
        return (hidden * on_hidden).sum() + (scores * on_scores).sum()

    grads = jax.jit(jax.grad(loss))(params)
    given = {"input_ids": inputs[0], "attention_mask": inputs[1], "token_type_ids": inputs[2]}
    hidden, logits = model.bert(**given).last_hidden_state, model(**given).logits
    total = (hidden * torch.tensor(on_hidden)).sum() + (logits * torch.tensor(on_scores)).sum()
    total.backward()
    with torch.no_grad():  # a folder whose tensors are the gradients is read like any other
        for weight in model.parameters():
            weight.copy_(weight.grad)
    model.save_pretrained(tmp_path / "gradients")
    want = flatten(hf.load(tmp_path / "gradients", dtype=jnp.float32)[0])
    for name, grad in flatten(grads).items():
        first = int(name == "embed/table")  # torch gives the token of padding no gradient
        scale = max(float(jnp.abs(want[name]).max()), 1.0)
        assert float(jnp.abs(grad - want[name])[first:].max()) <= 2e-5 * scale, name


@pytest.mark.parametrize("family", ["bert", "bert-classifier"])
@pytest.mark.parametrize("pooler", [True, False])
def test_transformers_loads_what_is_written(family, pooler, tool, tmp_path):
    import torch
    import transformers

    classes = 3 if family == "bert-classifier" else 0
    layer = encoder.bert_layer(4, 8, 40, "relu")
    cfg = encoder.EncoderConfig(
        *(48, 32, (layer,) * 2, 24), pooling="max", pooler=pooler or classes > 0, classes=classes
    )
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s.shape) * 0.2, jnp.float32),
        encoder.spec(cfg),
        is_leaf=specs.is_spec,
    )
    hf.save(params, cfg, tmp_path / "out", family=family)
    kind = transformers.BertForSequenceClassification if classes else transformers.BertModel
    own = {} if cfg.pooler else {"add_pooling_layer": False}
    model, report = kind.from_pretrained(tmp_path / "out", output_loading_info=True, **own)
    assert not any(report[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokens, valid, types = tool.sample_bert(8)
    given = {"input_ids": tokens, "attention_mask": valid, "token_type_ids": types}
    with torch.no_grad():
        found = model.eval()(**given, output_hidden_states=True)
    arrays = tokens.numpy().astype(np.int32), valid.numpy() > 0
    types = types.numpy().astype(np.int32)
    states = encoder.apply(params, *arrays, cfg=cfg, token_types=types).hidden
    want = found.hidden_states[-1].numpy()
    assert np.abs(np.asarray(states) - want)[arrays[1]].max() <= 1e-5
    if classes:
        scores = encoder.classify(params, *arrays, cfg=cfg, token_types=types)
        assert np.abs(np.asarray(scores) - found.logits.numpy()).max() <= 1e-5
    assert hf.load(tmp_path / "out")[1] == cfg
