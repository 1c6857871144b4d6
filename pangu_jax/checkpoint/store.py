"""Training checkpoints: saved in the background, atomic, restorable under another sharding.

A run folder holds `model.json` (the model's configuration), `tokenizer.json` (or none, for bytes),
and `checkpoints/<step>/` with the items "params" and "rest" (step and optimiser state), so that
generation reads the parameters alone.
"""

import logging
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from pangu_jax.core.config import load_config, save_config
from pangu_jax.core.errors import InputError
from pangu_jax.core.spec import abstract, check
from pangu_jax.core.tree import flatten
from pangu_jax.models import decoder
from pangu_jax.sharding.layout import Layout, shardings

MODEL = "model.json"
CHECKPOINTS = "checkpoints"


class Store:
    """The checkpoints of one run; a context manager that waits for what is still being written."""

    def __init__(self, folder: str | Path, *, keep: int = 2):
        """Opens, or begins, the checkpoints below the run's folder.

        Args:
          folder: the run's folder.
          keep: how many of the latest checkpoints stay.

        Raises:
          InputError: the folder cannot be made.
        """
        # The library reports every save at INFO and its plans at WARNING; a run has its own lines.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.folder = Path(folder).absolute() / CHECKPOINTS
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot make {self.folder}: {error.strerror}") from error
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=False)
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self) -> "Store":
        """Gives itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits until every checkpoint is whole on disk."""
        self._manager.close()

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return self._manager.latest_step()

    def save(self, step: int, params: Any, rest: Any) -> None:
        """Writes a checkpoint in the background; it appears whole or not at all.

        The arrays may be given up (donated) as soon as this returns.

        Args:
          step: its number; saving a step again does nothing.
          params: tree of arrays.
          rest: tree of arrays: step and optimiser state.

        Raises:
          InputError: it cannot be written (full disk, lost folder); earlier ones are untouched.
        """
        if step in self._manager.all_steps():
            return
        if jax.default_backend() == "cpu":  # there "copying to the host" may be no copy at all
            params, rest = jax.tree.map(jnp.copy, (params, rest))
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params), rest=ocp.args.StandardSave(rest)
        )
        try:
            self._manager.save(step, args=items)
        except (OSError, ValueError) as error:
            raise InputError(f"cannot save step {step} to {self.folder}: {error}") from error

    def wait(self) -> None:
        """Returns once what is being written is whole on disk.

        Raises:
          InputError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise InputError(f"cannot save to {self.folder}: {error}") from error

    def restore(self, step: int, params: Any, rest: Any = None) -> tuple[Any, Any]:
        """Reads a checkpoint into templates of `jax.ShapeDtypeStruct`, with their shardings.

        Args:
          step: which one.
          params: template of the parameters.
          rest: template of step and optimiser state; None leaves them unread.

        Returns:
          The parameters, and the rest or None.

        Raises:
          InputError: there is no such checkpoint, it is damaged, or it is of another model; says
            which leaf differs.
        """
        if step not in self._manager.all_steps():
            raise InputError(f"{self.folder} has no checkpoint of step {step}")
        self._compare(step, params)
        items = {"params": ocp.args.StandardRestore(params)}
        if rest is not None:
            items["rest"] = ocp.args.StandardRestore(rest)
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise many kinds; none is ours to fix
            reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
            raise InputError(f"cannot read {self.folder / str(step)}: {reason[:300]}") from error
        return found["params"], found["rest"] if rest is not None else None

    def _compare(self, step: int, template: Any) -> None:
        """Names the first leaf whose shape differs: restoring would pad or cut it in silence."""
        place = self.folder / str(step) / "params"
        try:
            with ocp.StandardCheckpointer() as reader:
                stored = _stored_shapes(reader.metadata(place))
        except Exception as error:
            raise InputError(f"cannot read {place}: it is damaged or incomplete") from error
        if not stored:
            raise InputError(f"cannot read {place}: it is damaged or incomplete")
        wanted = {name: tuple(leaf.shape) for name, leaf in flatten(template).items()}
        for name in sorted(wanted.keys() | stored.keys()):
            if wanted.get(name) != stored.get(name):
                raise InputError(
                    f"{place} is of another model: {name} has shape "
                    f"{stored.get(name, 'none')}, the configuration says {wanted.get(name, 'none')}"
                )


def _stored_shapes(metadata: Any) -> dict[str, tuple[int, ...]]:
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)
    leaves = flatten(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}


def save_model(cfg: decoder.DecoderConfig, folder: str | Path) -> None:
    """Writes the model's configuration into a run folder."""
    save_config(cfg, Path(folder) / MODEL)


def load_model(folder: str | Path) -> decoder.DecoderConfig:
    """Reads the model's configuration from a run folder.

    Raises:
      InputError: there is none, or it is not a decoder's.
    """
    return load_config(decoder.DecoderConfig, Path(folder) / MODEL)


def restore_params(
    folder: str | Path,
    *,
    step: int | None = None,
    dtype: Any = None,
    layout: Layout | None = None,
) -> tuple[Any, decoder.DecoderConfig]:
    """Parameters and configuration of a run, without its optimiser state.

    Args:
      folder: the run's folder.
      step: which checkpoint; None takes the latest.
      dtype: type of the parameters; None keeps float32.
      layout: where they live; None is the default device.

    Raises:
      InputError: the folder holds no checkpoint, or a damaged one.
    """
    cfg = load_model(folder)
    if not (Path(folder) / CHECKPOINTS).is_dir():
        raise InputError(f"{folder} has no folder {CHECKPOINTS}")
    spec = decoder.spec(cfg)
    with Store(folder) as store:
        step = store.latest() if step is None else step
        if step is None:
            raise InputError(f"{folder} holds no finished checkpoint yet")
        params, _ = store.restore(step, template(abstract(spec, dtype), spec, layout))
    return check(spec, params, str(folder)), cfg


def template(shapes: Any, spec: Any, layout: Layout | None) -> Any:
    """Shapes with where each leaf is to live: split as `layout` says, or on one device."""
    if layout is None:
        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        placed = jax.tree.map(lambda _: where, shapes)
    else:
        placed = shardings(spec, layout)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed
    )
