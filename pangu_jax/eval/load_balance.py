"""Load balance of a router over experts and over the devices that hold them.

Experts are placed on devices in order: device d of n holds the experts d * E/n to
(d+1) * E/n - 1. In shapes, E counts experts and k the experts that each token uses.
"""

import dataclasses

import numpy as np
from einops import rearrange, reduce

from pangu_jax.core.errors import InputError


def device_load(
    ids: np.ndarray, *, experts: int, devices: int, mask: np.ndarray | None = None
) -> np.ndarray:
    """(Token, expert) pairs that each device computes.

    Args:
      ids: int [T, k], the k experts of each token.
      experts: E.
      devices: number of devices that hold the experts; it divides E.
      mask: bool [T], false for padding; None for none.

    Returns:
      int [devices].

    Raises:
      InputError: `devices` does not divide the experts.
    """
    if devices < 1 or experts % devices:
        raise InputError(f"{experts} experts cannot be spread evenly over {devices} devices")
    load = expert_load(ids, experts=experts, mask=mask)
    return reduce(load, "(device e) -> device", "sum", device=devices)


def expert_load(ids: np.ndarray, *, experts: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Tokens that each expert computes: int [E]; see `device_load` for the arguments.

    Raises:
      InputError: an id that is not an expert.
    """
    ids = ids if mask is None else ids[mask]
    if ids.size and not 0 <= ids.min() <= ids.max() < experts:
        raise InputError(f"ids holds {ids.min()} to {ids.max()}; experts are 0 to {experts - 1}")
    return np.bincount(ids.reshape(-1), minlength=experts)


def imbalance_score(
    ids: np.ndarray, *, experts: int, devices: int, mask: np.ndarray | None = None
) -> float:
    """(most loaded device - least loaded device) / tokens; 0 is perfect balance.

    See `device_load` for the arguments.

    Raises:
      InputError: no token is left outside the mask.

    Source: arXiv 2505.21411, equations 3-4.
    """
    load = device_load(ids, experts=experts, devices=devices, mask=mask)
    tokens = len(ids) if mask is None else int(mask.sum())
    if not tokens:
        raise InputError("ids holds no token outside the mask; a score needs at least one")
    return float(load.max() - load.min()) / tokens


def straggler(load: np.ndarray) -> float:
    """Largest over mean of loads, [devices] or [E]: how much the fullest one delays a step."""
    return float(load.max() / load.mean())


def variation(load: np.ndarray) -> float:
    """Coefficient of variation of the loads inside each group, averaged over the groups.

    A group without load counts as even.

    Args:
      load: [..., G, E/G].
    """
    return float(np.mean(load.std(-1) / np.where(load.any(-1), load.mean(-1), 1)))


def coactivation(ids: np.ndarray, *, experts: int, mask: np.ndarray | None = None) -> np.ndarray:
    """Number of tokens that use both experts of each pair: int64 [E, E], loads on the diagonal."""
    ids = ids if mask is None else ids[mask]
    used = np.zeros((len(ids), experts), np.float32)  # exact up to 2^24 tokens
    used[np.arange(len(ids))[:, None], ids] = 1
    return np.rint(used.T @ used).astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Balance:
    """Balance over many batches of one size.

    Attributes:
      tokens: size of a batch.
      devices: number of devices that hold the experts.
      score: mean imbalance score.
      score_std: its standard deviation over batches.
      straggler: mean of most loaded over mean device.
      batches: number of batches.
    """

    tokens: int
    devices: int
    score: float
    score_std: float
    straggler: float
    batches: int


def over_batches(
    ids: np.ndarray,
    *,
    experts: int,
    devices: int,
    tokens: int,
    most: int = 200,
    seed: int = 0,
) -> Balance:
    """Balance over disjoint random batches of `tokens` tokens, as a serving batch would mix them.

    Args:
      ids: int [T, k], the k experts of each of many tokens.
      experts: E.
      devices: number of devices that hold the experts.
      tokens: size of a batch.
      most: maximum number of batches.
      seed: of the drawing.

    Raises:
      InputError: there are fewer than `tokens` tokens.
    """
    batches = min(most, len(ids) // tokens)
    if not batches:
        raise InputError(f"{len(ids)} tokens do not make one batch of {tokens}")
    order = np.random.default_rng(seed).permutation(len(ids))[: batches * tokens]
    loads = [
        device_load(part, experts=experts, devices=devices)
        for part in rearrange(ids[order], "(batch t) k -> batch t k", t=tokens)
    ]
    scores = [(load.max() - load.min()) / tokens for load in loads]
    return Balance(
        tokens,
        devices,
        float(np.mean(scores)),
        float(np.std(scores)),
        float(np.mean([straggler(load) for load in loads])),
        batches,
    )


def uniform_choices(
    tokens: int, *, experts: int, active: int, distinct: bool = True, seed: int = 0
) -> np.ndarray:
    """Draws experts uniformly, as a perfectly unskewed ordinary router would: int [T, k].

    Args:
      tokens: T.
      experts: E.
      active: k, experts per token.
      distinct: whether a token's experts differ; False draws independently, as in the paper's
        experiment (arXiv 2505.21411, section 2.1).
      seed: of the drawing.
    """
    rng = np.random.default_rng(seed)
    if not distinct:
        return rng.integers(0, experts, (tokens, active))
    return np.argpartition(rng.random((tokens, experts)), active - 1, axis=1)[:, :active]
