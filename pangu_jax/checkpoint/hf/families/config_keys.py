"""Reading and writing the keys of a config.json that most families share."""

import math
from collections.abc import Sequence
from typing import Any

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.models.transformer import MOST_LAYERS
from pangu_jax.nn.attention import AttentionConfig
from pangu_jax.nn.block import LayerConfig
from pangu_jax.nn.rotary import Llama3Scaling, RopeConfig

Config = dict[str, Any]

REQUIRED = object()

# Keys that some family reads. On export they are rewritten; all others survive unchanged.
UNDERSTOOD = [
    "add_eos",
    "architectures",
    "attention_bias",
    "attn_logit_softcapping",
    "bias",
    "decoder_sparse_step",
    "final_logit_softcapping",
    "head_dim",
    "hidden_act",
    "hidden_activation",
    "hidden_size",
    "intermediate_size",
    "is_causal",
    "is_mask_instruction",
    "latent_attention_config",
    "layer_norm_eps",
    "layer_types",
    "mask_type",
    "max_position_embeddings",
    "mlp_bias",
    "mlp_only_layers",
    "model_type",
    "moe_intermediate_size",
    "norm_topk_prob",
    "num_attention_heads",
    "num_experts",
    "num_experts_per_tok",
    "num_hidden_layers",
    "num_key_value_heads",
    "num_labels",
    "num_local_experts",
    "original_max_position_embeddings",
    "padding_side",
    "partial_rotary_factor",
    "per_layer_config",
    "query_pre_attn_scalar",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "shared_expert_intermediate_size",
    "sliding_window",
    "text_config",
    "tie_word_embeddings",
    "type_vocab_size",
    "use_sliding_window",
    "vocab_size",
]

# Options that change the model and that no family here has, or name other files.
_ABSENT = (
    "quantization_config",
    "sandwich_norm",
    "param_sink_number",
    "transformers_weights",
    "use_bidirectional_attention",
)

# Kinds of attention that `layer_types` names.
FULL, SLIDING = "full_attention", "sliding_attention"

_KINDS = {int: "a whole number", float: "a number", bool: "true or false", dict: "an object"}


def read(config: Config, name: str, kind: Any, default: Any = REQUIRED) -> Any:
    """The value of one key; null counts as absent.

    Raises:
      InputError: it is absent without a default, of another kind, or greater than makes sense.
    """
    value = config.get(name)
    if value is None:
        if default is REQUIRED:
            raise InputError(f"lacks {name}")
        return default
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if kind is float and isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{name} must be a finite number, got {value}")
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise InputError(f"{name} must be {_KINDS[kind]}, got {value!r:.40}")
    if kind is int:  # here, before anything is made in that number
        most = MOST_LAYERS if name == "num_hidden_layers" else 2**31 - 1
        check_size(name, value, least=-(2**31), most=most)
    return value


def read_nullable(config: Config, name: str, kind: Any, default: Any) -> Any:
    """The value of a key that null turns off; an absent one has the default.

    Raises:
      InputError: see `read`.
    """
    return None if name in config and config[name] is None else read(config, name, kind, default)


def read_kinds(config: Config, kinds: tuple[str, ...]) -> list[str]:
    """The entries of `layer_types`; none if absent.

    Raises:
      InputError: it is not a list, or names another kind of attention than these.
    """
    layers = config.get("layer_types") or []
    if not isinstance(layers, list):
        raise InputError(f"layer_types must be a list, got {layers!r:.40}")
    others = set(map(str, layers)) - set(kinds)
    if others:
        names = ", ".join(sorted(others))
        raise InputError(f"layer_types has {names}; only {' and '.join(kinds)} is supported")
    return layers


def read_layers(config: Config, name: str) -> set[int]:
    """A list of layer numbers; empty if absent.

    Raises:
      InputError: it is not a list of whole numbers.
    """
    value = config.get(name) or []
    if not isinstance(value, list) or not all(type(item) is int for item in value):
        raise InputError(f"{name} must be a list of layer numbers, got {value!r:.40}")
    return set(value)


def refuse_unsupported(config: Config, kinds: tuple[str, ...] = (FULL,)) -> None:
    """Raises for options that change the computation in ways the family does not have.

    Args:
      config: the keys.
      kinds: names allowed in `layer_types`.

    Raises:
      InputError: names the key.
    """
    act = config.get("hidden_act") or "silu"
    if act not in ("silu", "swish"):
        raise InputError(f"hidden_act {act!r} is not supported; only silu is")
    if read(config, "use_sliding_window", bool, False):
        raise InputError("use_sliding_window is true; this family's windows are not supported")
    read_kinds(config, kinds)
    refuse_given(config)


def refuse_given(config: Config, names: Sequence[str] = _ABSENT) -> None:
    """Raises for options that no model here has.

    Raises:
      InputError: names the key.
    """
    for name in names:
        if config.get(name):
            raise InputError(f"{name} is {config[name]!r:.40}, which is not supported")


def read_attention(
    config: Config, *, bias: bool = False, out_bias: bool | None = None, qk_norm: bool = False
) -> AttentionConfig:
    """Head structure; `bias` is that of q, k and v, `out_bias` (None: the same) that of o.

    Raises:
      InputError: the numbers of heads do not divide one another or the hidden size.
    """
    width, heads = read(config, "hidden_size", int), read(config, "num_attention_heads", int)
    if heads < 1 or width < 1:
        raise InputError(f"num_attention_heads {heads} and hidden_size {width} must be at least 1")
    groups = read(config, "num_key_value_heads", int, heads)
    if groups < 1 or heads % groups:
        raise InputError(f"num_key_value_heads {groups} must divide num_attention_heads {heads}")
    size = read(config, "head_dim", int, 0)
    if not size and width % heads:
        raise InputError(f"num_attention_heads {heads} must divide hidden_size {width}")
    return AttentionConfig(
        kv_heads=groups,
        q_per_kv=heads // groups,
        head_dim=size or width // heads,
        query_bias=bias,
        key_bias=bias,
        value_bias=bias,
        out_bias=bias if out_bias is None else out_bias,
        qk_norm=qk_norm,
    )


def read_rope(config: Config, theta: Any, length: int) -> RopeConfig:
    """Rotary positions, from `rope_theta` and `rope_scaling` or the newer `rope_parameters`.

    Args:
      config: the keys.
      theta: the base if the file has none, or REQUIRED.
      length: the longest context, which Llama-3 scaling falls back to.

    Raises:
      InputError: another scaling than none or llama3, a partial rotation, or the two disagree.
    """
    keys = [key for key in ("rope_scaling", "rope_parameters") if config.get(key)]
    found = [_read_rope(config, key, theta, length) for key in keys or ["rope_parameters"]]
    if found[0] != found[-1]:
        raise InputError(
            f"rope_scaling and rope_parameters disagree: {found[0]} and {found[-1]}; transformers "
            "takes rope_scaling and forgets the other, its rope_theta too; keep one of them"
        )
    return found[0]


def _read_rope(config: Config, key: str, theta: Any, length: int) -> RopeConfig:
    rope = read(config, key, dict, {})
    own = read(rope, "rope_theta", float, None)
    theta = read(config, "rope_theta", float, theta) if own is None else own
    for holder in (rope, config):
        if read(holder, "partial_rotary_factor", float, 1.0) != 1.0:
            raise InputError("partial_rotary_factor other than 1 is not supported")
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if any(isinstance(value, dict) for value in rope.values()):
        raise InputError(f"{key} differs between kinds of layers, which is not supported")
    if kind not in ("default", "llama3"):
        raise InputError(f"{key} of type {kind!r:.40} is not supported; default and llama3 are")
    if kind == "default":
        return RopeConfig(theta)
    factors = [read(rope, f, float) for f in ("factor", "low_freq_factor", "high_freq_factor")]
    # Beside the others it comes first, as in transformers.
    name = "original_max_position_embeddings"
    original = read(config, name, int, None) or read(rope, name, int, length)
    return RopeConfig(theta, Llama3Scaling(*factors, original))


def read_decoder(
    config: Config,
    layers: tuple[LayerConfig, ...],
    *,
    theta: Any = 10000.0,
    eps: float = 1e-6,
    length: int = 2048,
    kinds: tuple[str, ...] = (FULL,),
) -> DecoderConfig:
    """The model around its layers.

    Args:
      config: the keys.
      layers: one per layer.
      theta: the family's default, or REQUIRED.
      eps: the family's default.
      length: the family's default of the longest context.
      kinds: names allowed in `layer_types`.

    Raises:
      InputError: a key is missing, of the wrong kind or not supported.
    """
    refuse_unsupported(config, kinds)
    if not read(config, "is_causal", bool, True):
        raise InputError(
            "is_causal is false, so it is no decoder; where tokens see both ways, architectures "
            "must name a model without a head, such as MistralModel"
        )
    length = read(config, "max_position_embeddings", int, length)
    return DecoderConfig(
        vocab=read(config, "vocab_size", int),
        width=read(config, "hidden_size", int),
        layers=layers,
        rope=read_rope(config, theta, length),
        norm_eps=read(config, "rms_norm_eps", float, eps),
        tied=read(config, "tie_word_embeddings", bool, False),
        max_length=length,
    )


def write_decoder(cfg: DecoderConfig) -> Config:
    """The keys that every family has, taken from the model and its first layer."""
    attention = cfg.layers[0].attention
    return {
        "vocab_size": cfg.vocab,
        "hidden_size": cfg.width,
        "num_hidden_layers": len(cfg.layers),
        "num_attention_heads": attention.kv_heads * attention.q_per_kv,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": cfg.max_length,
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope.theta,
        "rope_scaling": write_scaling(cfg.rope.scaling),
        "tie_word_embeddings": cfg.tied,
    }


def dense_width(cfg: DecoderConfig) -> int | None:
    """Width of the first dense layer, None if there is none."""
    return next((layer.mlp.width for layer in cfg.layers if layer.mlp), None)


def dense_layers(cfg: DecoderConfig) -> list[int]:
    """Numbers of the dense layers."""
    return [i for i, layer in enumerate(cfg.layers) if layer.mlp]


def write_scaling(scaling: Llama3Scaling | None) -> Config | None:
    """The value of `rope_scaling`, None if there is none."""
    if scaling is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_length,
    }
