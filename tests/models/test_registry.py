"""Kinds of models: each with its files' name, there and back, and refused where it is unknown."""

import json

import pytest

from pangu_jax.core import config
from pangu_jax.core.errors import InputError
from pangu_jax.models import decoder, encoder, registry, timepro
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.mlp import MlpConfig

DECODER = decoder.DecoderConfig(16, 8, (LayerConfig(AttentionConfig(2, 1, 4), mlp=MlpConfig(8)),))
ENCODER = encoder.EncoderConfig(16, 8, (encoder.bert_layer(2, 4, 8, "gelu"),), pooling="last")
TIMEPRO = timepro.TimeProConfig(16, 4, 1, 16, 8, 8)


@pytest.mark.parametrize(
    ("name", "cfg"), [("decoder", DECODER), ("encoder", ENCODER), ("timepro", TIMEPRO)]
)
def test_every_kind_goes_through_json_under_its_name(name, cfg):
    written = json.loads(json.dumps(registry.to_json(cfg)))
    assert written["kind"] == name and registry.from_json(written) == cfg
    assert registry.kind_of(cfg) is registry.KINDS[name]
    own = {"decoder": decoder, "encoder": encoder, "timepro": timepro}[name].spec(cfg)
    assert config.to_json(cfg).keys() == written.keys() - {"kind"}  # which no configuration has
    assert registry.spec(cfg) == own


def test_what_names_no_kind_is_a_decoder():
    old = config.to_json(DECODER)
    assert registry.from_json(old) == DECODER and "kind" not in old
    for sandwich, place in ((True, "sandwich"), (False, "pre")):
        (layer,) = old["layers"]
        layer = {k: v for k, v in layer.items() if not k.startswith(("norm", "dropout"))}
        found = registry.from_json({**old, "layers": [{**layer, "sandwich_norm": sandwich}]})
        assert found.layers[0].norm_place == place
    with pytest.raises(InputError, match="unknown field 'sandwich_norm'"):
        registry.from_json({**old, "kind": "decoder", "layers": [{**layer, "sandwich_norm": True}]})
    with pytest.raises(InputError, match=r"layers\[0\] has an unknown field 'sandwich_norm'"):
        registry.from_json({**old, "layers": [{**layer, "sandwich_norm": "yes"}]})


@pytest.mark.parametrize("kind", ["perceiver", "", 3, True, None, ["decoder"], {"decoder": 1}])
def test_another_kind_is_refused_with_those_that_are_known(kind):
    with pytest.raises(InputError) as error:
        registry.from_json({**registry.to_json(DECODER), "kind": kind}, "run/model.json")
    assert str(error.value) == (
        f"run/model.json names the kind of model {kind!r}; "
        "known: decoder, encoder, embedder, thinker, timepro"
    )


def test_the_fields_of_one_kind_are_not_those_of_another():
    with pytest.raises(InputError, match=r"x has an unknown field 'vocab'; known: look_back"):
        registry.from_json({**registry.to_json(DECODER), "kind": "timepro"}, "x")
    with pytest.raises(InputError, match=r"x must be an object that describes a model, got \[1\]"):
        registry.from_json([1], "x")
    with pytest.raises(InputError, match="a LayerConfig describes no model; known: decoder, enc"):
        registry.to_json(DECODER.layers[0])
