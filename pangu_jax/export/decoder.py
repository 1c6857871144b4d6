"""A decoder as two functions with an explicit key-value cache: prefill and one decoding step.

Rows of a batch are independent: a prompt is padded on the right, token i of a row is in slot i of
its cache, and each row has its own length. Slots past a row's length are never attended to,
and the next tokens overwrite it, so padding leaves no trace. Layers are written out one by one,
each with its own parameters and cache, so models of unequal layers export like any other.

A model of latent thoughts thinks in its prefill, a fixed number of them: states are fed back, one
step each, and the ids that follow are read, so that decoding goes on as after any prompt, as many
slots further on ("filled" among the facts).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.export.program import Bundle, Program, check_profiles
from pangu_jax.models import decoder, transformer
from pangu_jax.models.decoder import DecoderConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.ops import cache_write


@dataclasses.dataclass(frozen=True)
class Thinking:
    """Latent thoughts and ids that a model reads between a prompt and its answer.

    Attributes:
      thoughts: number of states that are fed back, at least one.
      feedback: `feedback(params, state)`: state [B, D] to the next input embedding [B, D].
      tail: ids that follow the thoughts.
    """

    thoughts: int
    feedback: Callable[[dict[str, Any], jax.Array], jax.Array]
    tail: tuple[int, ...]

    @property
    def slots(self) -> int:
        """Slots of the cache that thoughts and tail take."""
        return self.thoughts + len(self.tail)


def prefill(
    params: dict[str, Any],
    tokens: jax.Array,
    length: jax.Array,
    *,
    cfg: DecoderConfig,
    slots: int,
    thinking: Thinking | None = None,
    gap: int = 0,
    how: How = HOW,
) -> dict[str, jax.Array]:
    """Processes prompts, then computes thoughts about them.

    Args:
      params: tree of `transformer.by_layer`.
      tokens: int32 [B, T], padded on the right with any ids.
      length: int32 [B], tokens of each row, 1 to T.
      cfg: the model.
      slots: S >= T, slots of the caches it returns.
      thinking: follows each row's prompt; None for nothing.
      gap: positions that stay free behind each row's prompt.
      how: implementations, and the type of the activations and caches.

    Returns:
      "logits": float32 [B, V] for the token after each row's last, or after its tail; "key_i",
      "value_i" of layer i: [B, S, K, C].
    """
    room = slots - tokens.shape[1]
    if thinking is None:
        logits, caches = decoder.prefill(params, tokens, length, gap=gap, cfg=cfg, how=how)
        return {"logits": logits, **_named(caches, room)}
    options = {"cfg": cfg, "how": how}
    state, caches = decoder.prefill_state(params, tokens, length, gap=gap, **options)
    caches = jax.tree.map(lambda rows: jnp.pad(rows, ((0, 0), (0, room), (0, 0), (0, 0))), caches)
    tail = decoder.embed(params, jnp.asarray(thinking.tail, jnp.int32)[None], **options)[0]
    for number in range(thinking.slots):
        if number < thinking.thoughts:
            x = thinking.feedback(params, state[:, 0])[:, None]
        else:
            x = jnp.broadcast_to(tail[number - thinking.thoughts], state.shape)
        state, caches = decoder.step_state(params, x, length + number, caches, **options)
    logits = decoder.logits(params, state, **options)[:, 0]
    return {"logits": logits, **_named(caches)}


def step(
    params: dict[str, Any],
    token: jax.Array,
    position: jax.Array,
    *,
    cfg: DecoderConfig,
    how: How = HOW,
    **cache: jax.Array,
) -> dict[str, jax.Array]:
    """Processes one more token of every row.

    Args:
      params: tree of `transformer.by_layer`.
      token: int32 [B].
      position: int32 [B], tokens of each row so far: the slot to write.
      cfg: the model.
      how: implementations, and the type of the activations.
      **cache: "past_key_i", "past_value_i" of each layer, [B, S, K, C].

    Returns:
      "logits": float32 [B, V] for the next token; "key_i", "value_i": the caches with the new row.
    """
    caches = [
        {"key": cache[f"past_key_{i}"], "value": cache[f"past_value_{i}"]}
        for i in range(len(cfg.layers))
    ]
    logits, caches = decoder.step(params, token, position, caches, cfg=cfg, how=how)
    return {"logits": logits, **_named(caches)}


def _named(caches, room: int = 0) -> dict[str, jax.Array]:
    """Caches by name, "key_i" and "value_i" of layer i, with `room` more slots."""
    wide = ((0, 0), (0, room), (0, 0), (0, 0))
    return {
        f"{name}_{i}": jnp.pad(rows, wide) if room else rows
        for i, cache in enumerate(caches)
        for name, rows in cache.items()
    }


def default_slots(cfg: DecoderConfig, profiles: Sequence[int], thinking: int = 0) -> int:
    """Twice the longest prompt with its thoughts, within the model's context if that fits them."""
    longest = max(profiles) + thinking
    return max(longest, min(cfg.max_length, 2 * longest))


def bundle(
    params: dict[str, Any],
    cfg: DecoderConfig,
    *,
    profiles: Sequence[int] = (128,),
    slots: int | None = None,
    batch: Any = 1,
    how: How = HOW,
    prompts: Sequence[Sequence[int]] = (),
    thinking: Thinking | None = None,
    gap: int = 0,
    seed: int = 0,
) -> Bundle:
    """A decoder's programs: one prefill for each prompt length, and the decoding step.

    Args:
      params: tree of `decoder.spec(cfg)`.
      cfg: the model.
      profiles: prompt lengths T, each a static graph.
      slots: S of the cache, prompt and new tokens together; None is `default_slots`.
      batch: B, a number, or a symbolic dimension of jax.export.
      how: implementations in the exported functions, and the type of the activations and caches.
      prompts: real prompts to compare on, besides random ids.
      thinking: done by prefill after a prompt, which ends where thinking begins.
      gap: positions that stay free behind a prompt, for a model that learned to answer so far from
        it; windows do not count them.
      seed: of the random inputs.

    Raises:
      InputError: a profile or number of slots that the model or the graphs cannot have.
    """
    profiles = tuple(sorted(set(profiles)))
    check_profiles(cfg.max_length, profiles)
    more = 0 if thinking is None else thinking.slots
    slots = default_slots(cfg, profiles, more) if slots is None else slots
    if slots < max(profiles) + more:
        thought = f" and {more} slots of thoughts" if more else ""
        raise InputError(
            f"a cache of {slots} slots is too short for the profile {max(profiles)}{thought}"
        )
    # Graphs hold no scatter, whoever chose the other operators.
    impl = {"cache_write": cache_write.EXPORT, **(how.impl or {})}
    how = dataclasses.replace(how, impl=impl)
    options = {"cfg": cfg, "how": how}
    usual = {"cfg": cfg, "how": dataclasses.replace(how, impl=None)}
    tree = transformer.by_layer(
        jax.tree.map(np.asarray, params)
    )  # views, where they are on the host
    kind = how.dtype or jnp.dtype(tree["embed"]["table"].dtype)
    caches = {
        f"past_{part}_{i}": jax.ShapeDtypeStruct(
            (batch, slots, layer.attention.kv_heads, layer.attention.head_dim), kind
        )
        for i, layer in enumerate(cfg.layers)
        for part in ("key", "value")
    }
    row = jax.ShapeDtypeStruct((batch,), jnp.int32)
    reads = {"slots": slots, "thinking": thinking, "gap": gap}
    samples = _Samples(cfg, batch if isinstance(batch, int) else 2, seed)
    programs = []
    for length in profiles:
        tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
        programs.append(
            Program(
                f"prefill_{length}",
                _bound(prefill, **reads, **options),
                {"tokens": tokens, "length": row},
                jax.jit(_bound(prefill, **reads, **usual)),
                samples.prefill(length, prompts),
            )
        )
    inputs = {"token": row, "position": row, **caches}
    states = {
        name: _after(programs[0].reference, tree, sample, more)
        for name, sample in programs[0].samples.items()
        if profiles[0] + more < slots
    }
    functions = _bound(step, **options), jax.jit(_bound(step, **usual))
    programs.append(Program("decode", functions[0], inputs, functions[1], states))
    facts = {
        "kind": "decoder",
        "layers": len(cfg.layers),
        "vocab": cfg.vocab,
        "profiles": list(profiles),
        "slots": slots,
        **({"filled": more} if more else {}),
    }
    return Bundle(tree, tuple(programs), facts)


def _bound(function: Any, **options: Any) -> Any:
    return lambda params, **inputs: function(params, **inputs, **options)


def _after(run: Any, params: Any, sample: Mapping[str, Any], more: int) -> dict[str, np.ndarray]:
    """The inputs of the step that follows a prefill."""
    with jax.default_matmul_precision("highest"):
        out = run(params, **sample)
    caches = {f"past_{n}": np.asarray(x) for n, x in out.items() if n != "logits"}
    token = np.asarray(out["logits"].argmax(-1), np.int32)
    return {"token": token, "position": sample["length"] + np.int32(more), **caches}


class _Samples:
    """Inputs to compare on: random ids, and prompts the user or the tokenizer knows."""

    def __init__(self, cfg: DecoderConfig, batch: int, seed: int):
        self.cfg, self.batch, self.rng = cfg, batch, np.random.default_rng(seed)

    def prefill(self, length: int, prompts: Sequence[Sequence[int]]) -> dict[str, dict]:
        """One batch of random ids, and one that begins with real prompts."""
        kinds = [("random", ()), *([("real", prompts)] if len(prompts) else [])]
        return {name: self._batch(length, rows) for name, rows in kinds}

    def _batch(self, length: int, prompts: Sequence[Sequence[int]]) -> dict[str, np.ndarray]:
        tokens = self.rng.integers(0, self.cfg.vocab, (self.batch, length)).astype(np.int32)
        lengths = self.rng.integers(max(1, length // 2), length + 1, self.batch).astype(np.int32)
        for row, prompt in zip(range(self.batch), prompts, strict=False):
            kept = list(prompt)[:length]
            tokens[row, : len(kept)] = kept
            lengths[row] = len(kept)
        return {"tokens": tokens, "length": lengths}
