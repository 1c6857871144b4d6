"""Chats with a trained model: answers are streamed, and the conversation is remembered."""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pangu_jax.decode.sampling_config import SamplingConfig


@dataclass(frozen=True)
class Options:
    """Which model to chat with, and how."""

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A run folder, or a folder in the Hugging Face layout."""
    message: str | None = None
    """Say this, print the answer and end; None reads lines from the terminal or a pipe."""
    system: str | None = None
    """The system message."""
    template: str = "auto"
    """Chat template: pangu, llama3, chatml; "auto" takes the checkpoint's own."""
    mode: str | None = None
    """How much to think, where the template has modes: slow, fast, auto."""
    thinking: bool = True
    """Show the thinking too; it is never part of what the model remembers."""
    history: str | None = None
    """A .json file to load the conversation from and save it to."""
    max_new_tokens: Annotated[int, tyro.conf.arg(aliases=["--max-new"])] = 1024
    """Maximum number of tokens per answer."""
    sampling: SamplingConfig = SamplingConfig(temperature=0.6, top_k=50, top_p=0.95)
    seed: int = 0
    """Sampling seed."""
    tokenizer: str | None = None
    """"bytes" or a tokenizer.json; None takes the checkpoint's own."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters, activations and cache."""
