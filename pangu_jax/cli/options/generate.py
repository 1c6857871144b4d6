"""Continues a prompt with a trained model, streaming; or answers every prompt of a file."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.decode.soft_thinking_config import SoftThinkingConfig


@dataclass(frozen=True)
class Options:
    """What to continue, and how."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, or a folder in the Hugging Face layout."""
    prompt: str | None = None
    """The text to continue; empty or None starts a new document."""
    prompts: str | None = None
    """A .jsonl file with one prompt per record, instead of --prompt; .gz too."""
    out: str | None = None
    """With --prompts: the .jsonl file to write; an existing one is resumed."""
    field: str = "prompt"
    """With --prompts: the key of the prompt in its record."""
    batch: int = 32
    """With --prompts: how many are decoded at once."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["--max-new"])] = 200
    """Maximum number of new tokens per prompt."""
    sampling: SamplingConfig = SamplingConfig()
    seed: int = 0
    """Sampling seed; has no effect with greedy decoding."""
    soft_thinking: bool = False
    """Think in mixtures of tokens before writing. Needs no training, but a model that thinks."""
    think_end: str | None = None
    """The text written after the thought; None takes the tokenizer's </think> or [unused17]. If it
    is one token, thinking ends where it is the likeliest."""
    soft: SoftThinkingConfig = SoftThinkingConfig()
    tokenizer: str | None = None
    """"bytes" or a tokenizer.json; None takes the checkpoint's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters, activations and cache."""
