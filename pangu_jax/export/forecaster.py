"""A trained forecaster as one function: windows in, forecast and interval out, in data units."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.checkpoint.forecaster import Forecaster
from pangu_jax.export.program import Bundle, Program
from pangu_jax.models import timepro
from pangu_jax.nn.how import HOW, How
from pangu_jax.ops import deform_sample


def forms(model: Forecaster, given: How) -> How:
    """Export forms for this many series: small grids are sampled by a product, not by lookup."""
    cfg = model.cfg.model
    shape = (1, cfg.mixer.patches, len(model.cfg.names), cfg.channels)
    small = deform_sample.choose("cpu", shape) == "dense"
    own = {"deform_sample": "dense"} if small else {}
    return dataclasses.replace(given, impl=dict(given.impl or {}) | own)


def bundle(
    model: Forecaster,
    *,
    batch: Any = 1,
    how: How = HOW,
    windows: Any = None,
    seed: int = 0,
) -> Bundle:
    """A forecaster's one program, "forecast", with the stored half widths as constants.

    Args:
      model: the forecaster.
      batch: B, a number, or a symbolic dimension of jax.export.
      how: implementations in the exported function.
      windows: real windows, float [windows, T, V] in the units of the data, at least B of them, to
        compare on besides random walks.
      seed: of the random windows.
    """
    cfg = model.cfg
    params = {
        "members": list(model.params),
        "mean": np.asarray(cfg.mean, np.float32),
        "std": np.asarray(cfg.std, np.float32),
        "half_width": np.asarray(model.half_width, np.float32),
    }

    def bound(how: How) -> Any:
        return lambda params, x: forecast(params, x, cfg=cfg.model, how=how)

    shape = (cfg.model.look_back, len(cfg.names))
    rows = batch if isinstance(batch, int) else 2
    walk = np.random.default_rng(seed).normal(size=(rows, *shape)).cumsum(1)
    samples = {"random": {"x": (walk * cfg.std + cfg.mean).astype(np.float32)}}
    if windows is not None:
        samples["real"] = {"x": np.asarray(windows[:rows], np.float32)}
    program = Program(
        "forecast",
        bound(how),
        {"x": jax.ShapeDtypeStruct((batch, *shape), jnp.float32)},
        jax.jit(bound(HOW)),
        samples,
    )
    facts = {
        "kind": "forecaster",
        "look_back": cfg.model.look_back,
        "horizon": cfg.model.horizon,
        "variates": len(cfg.names),
        "intervals": "fixed",
    }
    when = f", those at {cfg.tracked_to}" if cfg.tracked_to else ""
    note = f"intervals keep the forecaster's stored widths{when}: nothing adapts them to newer data"
    return Bundle(params, (program,), facts, (note,))


def forecast(
    params: dict[str, Any],
    x: jax.Array,
    *,
    cfg: timepro.TimeProConfig,
    how: How = HOW,
) -> dict[str, jax.Array]:
    """The mean forecast of all members, with the interval that was calibrated for it, not tracked.

    Args:
      params: {"members": [one tree per seed], "mean", "std": [V], "half_width": [H, V]}.
      x: float32 [B, T, V], windows in the units of the data.
      cfg: the model.
      how: implementations.

    Returns:
      "forecast", "low" and "high", float32 [B, H, V].
    """
    scaled = (x - params["mean"]) / params["std"]
    members = [timepro.apply(p, scaled, cfg=cfg, how=how) for p in params["members"]]
    middle = sum(members) / len(members) * params["std"] + params["mean"]
    width = jnp.broadcast_to(params["half_width"], middle.shape)
    return {"forecast": middle, "low": middle - width, "high": middle + width}
