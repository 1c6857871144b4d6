"""Pooling settings of a sentence-transformers folder.

modules.json lists the steps, each with a folder of its own: the model, pooling, and scaling to
length 1. sentence_bert_config.json says where texts are truncated, and
config_sentence_transformers.json which prompts are prepended to them.
"""

import dataclasses
from typing import Any, TypeVar

from pangu_jax.checkpoint.hf.families.family import Sidecars
from pangu_jax.core.errors import InputError
from pangu_jax.models.embedder import EmbedderConfig
from pangu_jax.models.encoder import EncoderConfig

Model = TypeVar("Model", EncoderConfig, EmbedderConfig)

MODULES, TEXTS = "modules.json", "sentence_bert_config.json"
PROMPTS, TOKENIZER = "config_sentence_transformers.json", "tokenizer_config.json"
POOLING = "1_Pooling"
_STEPS = ("Transformer", "Pooling", "Normalize")

# {what 1_Pooling/config.json calls it: what we do, None for what we do not}
_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_lasttoken": "last",
    "pooling_mode_mean_sqrt_len_tokens": None,
    "pooling_mode_weightedmean_tokens": "weighted",
}
_NAMES = {
    "cls": "cls", "mean": "mean", "max": "max", "lasttoken": "last", "weightedmean": "weighted",
}  # fmt: skip


def read_sidecars(cfg: Model, beside: Sidecars) -> Model:
    """The model, with its pooling if the folder has a modules.json.

    Raises:
      InputError: a file is not in sentence-transformers' format, or asks for something that the
        model does not do; names the file and what it asks for.
    """
    where, modules = beside(MODULES)
    if modules is None:
        return cfg
    steps = _steps(where, modules)
    if len(steps) < 2:
        return cfg
    where, pooling = beside(f"{steps[1]}/config.json")
    pooling = _object(where, pooling)
    return dataclasses.replace(
        cfg,
        **_pool_prefix(where, pooling, cfg),
        pooling=_pooling(where, pooling, cfg.width),
        normalize=len(steps) > 2,
        text_length=_text_length(cfg, beside),
        prefix=_prefix(*beside(PROMPTS)),
    )


def write_sidecars(cfg: EncoderConfig | EmbedderConfig) -> dict[str, Any]:
    """{file name: JSON value} for `read_sidecars`; {} for a model with unspecified pooling."""
    if cfg.pooling is None:
        return {}
    paths = ("", POOLING, "2_Normalize")[: 3 if cfg.normalize else 2]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{step}"}
        for i, (path, step) in enumerate(zip(paths, _STEPS, strict=False))
    ]
    pooling = {name: own == cfg.pooling for name, own in _FLAGS.items()}
    if isinstance(cfg, EmbedderConfig):
        pooling["include_prompt"] = cfg.pool_prefix
    found = {
        MODULES: modules,
        f"{POOLING}/config.json": {"word_embedding_dimension": cfg.width, **pooling},
        TEXTS: {"max_seq_length": cfg.text_length, "do_lower_case": False},
    }
    if cfg.prefix:
        found[PROMPTS] = {"prompts": {"default": cfg.prefix}, "default_prompt_name": "default"}
    return found


def _object(where: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        found = "is not there" if value is None else f"holds {value!r:.40}"
        raise InputError(f"{where} must hold an object, it {found}")
    return value


def _steps(where: str, modules: Any) -> list[str]:
    """The paths of the steps, which are some of `_STEPS` in their order."""
    entries = modules if isinstance(modules, list) else [None]
    if not all(isinstance(x, dict) and isinstance(x.get("type"), str) for x in entries):
        raise InputError(f"{where} must be a list of modules, each with a type")
    kinds = [entry["type"].rsplit(".", 1)[-1] for entry in entries]
    for kind, entry in zip(kinds, entries, strict=True):
        if kind not in _STEPS:
            raise InputError(
                f"{where} has the module {entry['type']:.80}, which is not supported; "
                f"{', '.join(_STEPS)} are"
            )
    paths = [entry.get("path", "") for entry in entries]
    if kinds != [*_STEPS[: len(kinds)]] or not all(isinstance(path, str) for path in paths):
        raise InputError(
            f"{where} has the modules {', '.join(kinds)}; they must be {', '.join(_STEPS)}, or the "
            "first of these"
        )
    if paths and paths[0]:
        raise InputError(f"{where} has its Transformer in {paths[0]!r}; it must be in the folder")
    return paths


def _pooling(where: str, config: dict[str, Any], width: int) -> Any:
    size = config.get("word_embedding_dimension", config.get("embedding_dimension", width))
    if size != width:
        raise InputError(f"{where} pools states of {size!r:.20}, config.json says {width}")
    if "pooling_mode" in config:
        named = config["pooling_mode"]
        modes = named if isinstance(named, list) else [named]
        found = [(str(mode), _NAMES.get(str(mode))) for mode in modes]
    else:
        # sentence-transformers takes the mean unless it is told not to.
        usual = {"pooling_mode_mean_tokens": True}
        flags = {**usual, **{k: v for k, v in config.items() if k.startswith("pooling_mode_")}}
        for name, value in flags.items():
            if not isinstance(value, bool):
                raise InputError(f"{where}: {name} must be true or false, got {value!r:.20}")
        found = [(name, _FLAGS.get(name)) for name, on in flags.items() if on]
    if len(found) != 1:
        names = ", ".join(name for name, _ in found) or "nothing"
        raise InputError(f"{where} asks for {names}; exactly one way of pooling is supported")
    name, kind = found[0]
    if kind is None:
        raise InputError(
            f"{where} asks for {name}; cls, mean, max, weightedmean and lasttoken are supported"
        )
    return kind


def _pool_prefix(where: str, config: dict[str, Any], cfg: Model) -> dict[str, bool]:
    """Whether the prompt's tokens are pooled too, which is a field of embedders."""
    found = config.get("include_prompt", True)
    known = (True, False) if isinstance(cfg, EmbedderConfig) else (True,)
    if not isinstance(found, bool) or found not in known:
        raise InputError(
            f"{where} has include_prompt {found!r:.20}; "
            f"only {' and '.join(str(x).lower() for x in known)} is supported"
        )
    return {"pool_prefix": found} if isinstance(cfg, EmbedderConfig) else {}


def _text_length(cfg: Model, beside: Sidecars) -> int | None:
    """The length in tokens to truncate texts to: as stated, else the tokenizer's, if it is less."""
    where, texts = beside(TEXTS)
    texts = {} if texts is None else _object(where, texts)
    if texts.get("do_lower_case"):
        raise InputError(f"{where} has do_lower_case true, which is not supported")
    length = texts.get("max_seq_length")
    if length is None:
        where, tokenizer = beside(TOKENIZER)
        usual = {} if tokenizer is None else _object(where, tokenizer)
        length = usual.get("model_max_length")
        if isinstance(length, int | float) and length >= cfg.max_length:
            return None  # files state a huge number for no bound
        if length is None:
            return None
    if type(length) is not int or not 1 <= length <= cfg.max_length:
        raise InputError(
            f"{where} cuts texts to {length!r:.20} tokens, the model takes 1 to {cfg.max_length}"
        )
    return length


def prompts(where: str, config: Any) -> dict[str, str]:
    """Named prompts of config_sentence_transformers.json, called `where` in errors.

    Raises:
      InputError: it holds something else.
    """
    found = {} if config is None else _object(where, config).get("prompts") or {}
    if not isinstance(found, dict) or not all(isinstance(x, str) for x in found.values()):
        raise InputError(f"{where} has prompts that are no object of texts")
    return found


def _prefix(where: str, config: Any) -> str:
    found = prompts(where, config)
    name = None if config is None else config.get("default_prompt_name")
    if name is None:
        return ""
    if not isinstance(name, str) or name not in found:
        raise InputError(f"{where} has the default_prompt_name {name!r:.40}, but no such prompt")
    return found[name]
