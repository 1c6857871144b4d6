"""The registry of families, looked up by name or by config.json."""

from typing import Any

from pangu_jax.checkpoint.hf.families import (
    bare,
    bert,
    gemma2,
    llama,
    mistral,
    nv_embed,
    pangu_embedded,
    pangu_pro_moe,
    qwen2,
    qwen3,
    qwen3_moe,
)
from pangu_jax.checkpoint.hf.families.family import Family
from pangu_jax.core.errors import InputError

_MODULES = (llama, mistral, gemma2, qwen2, qwen3, qwen3_moe, pangu_embedded, pangu_pro_moe)
_BARE = (llama, mistral, gemma2, qwen2, qwen3)
FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        *(module.FAMILY for module in _MODULES),
        bert.FAMILY,
        bert.CLASSIFIER,
        *(bare.bare(module.FAMILY) for module in _BARE),
        nv_embed.FAMILY,
    )
}

_V2 = "its router scores are sigmoids with a correction bias, it has sandwich norms and sink tokens"
REFUSED = {
    "PanguProMoEV2ForCausalLM": f"it does not group its experts: {_V2}",
    "PanguUltraMoEForCausalLM": f"its attention is latent (MLA), and {_V2}",
}


def named(name: str) -> Family:
    """The family of that name.

    Raises:
      InputError: an unknown name.
    """
    if name not in FAMILIES:
        raise InputError(f"unknown model family {name!r}; known: {', '.join(FAMILIES)}")
    return FAMILIES[name]


def recognize(config: dict[str, Any]) -> Family:
    """The family that `architectures` of a config.json names.

    Raises:
      InputError: it names none, one that cannot be run, or an unknown one.
    """
    names = config.get("architectures")
    known = {family.architecture: family for family in FAMILIES.values()}
    texts = isinstance(names, list) and all(isinstance(name, str) for name in names)
    if not texts or not names:
        found = "nothing" if names is None else repr(names)[:60]
        raise InputError(f"architectures must name one of {', '.join(known)}; got {found}")
    for name in names:
        if name in REFUSED:
            raise InputError(f"architecture {name} is not supported: {REFUSED[name]}")
        if name in known:
            return known[name]
    found = ", ".join(map(str, names))
    raise InputError(f"architecture {found} is not known; known: {', '.join(known)}")
