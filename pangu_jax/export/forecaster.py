"""A trained forecaster as one function: windows in, forecast and interval out, in data units."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.checkpoint.forecaster import Forecaster
from pangu_jax.export.program import Bundle, Program
from pangu_jax.models import timepro
from pangu_jax.ops import deform_sample


def forms(model: Forecaster, given: Mapping[str, str]) -> dict[str, str]:
    """Export forms for this many series: small grids are sampled by a product, not by lookup."""
    cfg = model.cfg.model
    shape = (1, cfg.mixer.patches, len(model.cfg.names), cfg.channels)
    small = deform_sample.choose("cpu", shape) == "dense"
    return {**given, **({"deform_sample": "dense"} if small else {})}


def bundle(
    model: Forecaster,
    *,
    batch: Any = 1,
    impl: Mapping[str, str] | None = None,
    windows: Any = None,
    seed: int = 0,
) -> Bundle:
    """A forecaster's one program, "forecast", with the stored half widths as constants.

    Args:
      model: the forecaster.
      batch: B, a number, or a symbolic dimension of jax.export.
      impl: {operator: implementation} of the exported function.
      windows: real windows float [N, T, V] in the units of the data, to compare on beside random
        walks; N is at least B.
      seed: of the random windows.
    """
    cfg = model.cfg
    params = {
        "members": list(model.params),
        "mean": np.asarray(cfg.mean, np.float32),
        "deviation": np.asarray(cfg.deviation, np.float32),
        "half_width": np.asarray(model.half_width, np.float32),
    }

    def bound(impl: Any) -> Any:
        return lambda params, x: forecast(params, x, cfg=cfg.model, impl=impl)

    shape = (cfg.model.look_back, len(cfg.names))
    rows = batch if isinstance(batch, int) else 2
    walk = np.random.default_rng(seed).normal(size=(rows, *shape)).cumsum(1)
    samples = {"random": {"x": (walk * cfg.deviation + cfg.mean).astype(np.float32)}}
    if windows is not None:
        samples["real"] = {"x": np.asarray(windows[:rows], np.float32)}
    program = Program(
        "forecast",
        bound(None if impl is None else dict(impl)),
        {"x": jax.ShapeDtypeStruct((batch, *shape), jnp.float32)},
        jax.jit(bound(None)),
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
    impl: dict[str, str] | None = None,
) -> dict[str, jax.Array]:
    """The mean forecast of all members, with the interval that was calibrated for it, not tracked.

    Args:
      params: {"members": [one tree a seed], "mean", "deviation": [V], "half_width": [H, V]}.
      x: float32 [B, T, V], windows in the units of the data.
      cfg: the model.
      impl: {operator: implementation}.

    Returns:
      "forecast", "low" and "high", float32 [B, H, V].
    """
    scaled = (x - params["mean"]) / params["deviation"]
    members = [timepro.apply(p, scaled, cfg=cfg, impl=impl) for p in params["members"]]
    middle = sum(members) / len(members) * params["deviation"] + params["mean"]
    width = jnp.broadcast_to(params["half_width"], middle.shape)
    return {"forecast": middle, "low": middle - width, "high": middle + width}
