"""Training checkpoints: saved in the background, atomic, restorable under another sharding.

A run folder holds `model.json` (the model's kind and configuration), `tokenizer.json` (or none,
for bytes), and `checkpoints/<step>/` with the items "params" and "rest" (step and optimizer state),
so that generation reads the parameters alone, and `digests.json`, the SHA-256 of each of their
files.
"""

import asyncio
import json
import os
import re
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from pangu_jax.checkpoint.quiet_logs import QuietLogs
from pangu_jax.core.config import read_json, save_config
from pangu_jax.core.digest import sha256
from pangu_jax.core.errors import InputError
from pangu_jax.core.run_folder import SETTINGS, Claim, open_run
from pangu_jax.core.spec import abstract, check
from pangu_jax.core.tree import check_all_finite, flatten
from pangu_jax.models import registry
from pangu_jax.sharding.layout import Layout, shardings

MODEL = "model.json"
CHECKPOINTS = "checkpoints"
DESCRIPTION = "_CHECKPOINT_METADATA"
DIGESTS = "digests.json"
DISCARDED = ".discarded"
UNFINISHED = ".orbax-checkpoint-tmp"


def claim(folder: str | Path) -> Claim:
    """Claims a run's folder, before anything in it is read or written.

    Raises:
      InputError: it cannot be made, or another process trains there.
    """
    return Claim(folder, "training in")


def begin(
    cfg: Any, folder: str | Path, settings: dict[str, Any], *, free: Collection[str] = ()
) -> Claim:
    """Opens a run that trains a model (`run_folder.open_run`), and keeps its description.

    Args:
      cfg: the model of a new run.
      folder: the run's folder; made if missing.
      settings: JSON values and configs, by the names that errors use.
      free: names whose values may differ when it is resumed.

    Raises:
      InputError: as `open_run`.
    """
    held = open_run(folder, settings, free=free, doing="training in")
    try:
        if not (held.folder / MODEL).exists():
            save_model(cfg, held.folder)
    except BaseException:
        held.close()
        raise
    return held


def discard(folder: str | Path) -> None:
    """Removes the checkpoints and settings of a run that is no longer needed.

    Its metrics stay. A kill in between leaves either the whole run, or one that starts anew.

    Raises:
      InputError: they cannot be removed, or another process trains there.
    """
    with claim(folder) as held:
        old = held.folder / f".{CHECKPOINTS}{DISCARDED}"
        try:
            shutil.rmtree(old, ignore_errors=True)
            if (held.folder / CHECKPOINTS).exists():
                (held.folder / CHECKPOINTS).rename(old)
            (held.folder / SETTINGS).unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"cannot remove the run in {folder}: {error.strerror}") from error
        shutil.rmtree(old, ignore_errors=True)


class Store:
    """The checkpoints of one run; a context manager that waits for what is still being written.

    A checkpoint is a folder named by its step. It is written under another name, given the digests
    of its files and then its name when it is complete, and renamed again before it is deleted, so
    that at any moment, even after a crash, every such folder is readable; the digests reveal disk
    failures.
    """

    def __init__(self, folder: str | Path | Claim, *, keep: int = 2, writes: bool = True):
        """Opens, or begins, the checkpoints below the run's folder.

        Args:
          folder: the run's folder, or the claim of it that the caller holds.
          keep: number of latest checkpoints kept.
          writes: whether this is the process that trains the run: it alone may write, and it
            clears away what one that was killed left half-done.

        Raises:
          InputError: the folder cannot be made, or another process is writing there.
        """
        run = folder.folder if isinstance(folder, Claim) else Path(folder).absolute()
        self.folder = run / CHECKPOINTS
        self._abandoned = False
        self._claims: list[Claim] = []
        if writes and jax.process_index() == 0:
            own = [] if isinstance(folder, Claim) else [claim(run)]
            try:
                self._claims = [*own, Claim(self.folder, "training in")]
            except InputError:
                for held in own:
                    held.close()
                raise
            self._tidy()
        self._failed = False
        self._hush = QuietLogs()
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=False,
            todelete_subdir=DISCARDED,
            read_only=not writes,
            temporary_path_class=_Digested,
        )
        try:
            self._manager = ocp.CheckpointManager(self.folder, options=options)
        except Exception as error:  # it reads every checkpoint's description, and checks no types
            self._failed = True
            self._give_up()
            raise InputError(
                f"cannot read {self._undescribed()}: a checkpoint's description is damaged"
            ) from error

    def __enter__(self) -> "Store":
        """Returns itself."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Waits until every checkpoint is complete on disk.

        Raises:
          InputError: the last one could not be written; not raised over another exception.
        """
        try:
            if not self._abandoned:
                self._manager.close()
        except Exception as error:
            if kind is None:
                raise self._failure(error) from error
        finally:
            if self._claims:
                self._tidy()
            self._give_up()

    def steps(self) -> list[int]:
        """The steps of all whole checkpoints on disk, in order."""
        return _steps(self.folder)

    def latest(self) -> int | None:
        """The step of the newest whole checkpoint, or None."""
        return max(self.steps(), default=None)

    def save(self, step: int, params: Any, rest: Any) -> None:
        """Writes a checkpoint in the background; it appears whole or not at all.

        The arrays may be donated as soon as this returns.

        Args:
          step: its number; saving a step again does nothing.
          params: tree of arrays.
          rest: tree of arrays: step and optimizer state.

        Raises:
          InputError: it, or the one before it, cannot be written (full disk, lost folder); earlier
            ones are untouched.
        """
        self.wait()
        if step in self.steps():
            return
        if jax.default_backend() == "cpu":  # there "copying to the host" may be no copy at all
            params, rest = jax.tree.map(jnp.copy, (params, rest))
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params), rest=ocp.args.StandardSave(rest)
        )
        try:
            self.folder.stat()  # the library would begin a lost folder anew, and mix two runs
            self._manager.save(step, args=items)
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise self._failure(error, step) from error

    def wait(self) -> None:
        """Waits until the checkpoint being written is complete on disk.

        Raises:
          InputError: it could not be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
            if self._claims and not self._claims[-1].holds():
                # Lost as a save began: the library has created the folder again in its place.
                raise FileNotFoundError("the folder was moved or deleted")
        except Exception as error:
            raise self._failure(error) from error
        if self._claims:
            self._tidy()

    def abandon(self) -> None:
        """Gives up without waiting, as another process of the run is gone and would not answer."""
        self._abandoned = True

    def restore(self, step: int, params: Any, rest: Any = None) -> tuple[Any, Any]:
        """Reads a checkpoint into templates of `jax.ShapeDtypeStruct`, with their shardings.

        Args:
          step: step of the checkpoint.
          params: template of the parameters.
          rest: template of step and optimizer state; None leaves them unread.

        Returns:
          The parameters, and the rest or None.

        Raises:
          InputError: there is no such checkpoint, it is damaged, or it is of another model; says
            which leaf differs.
        """
        if step not in self.steps():
            raise InputError(f"{self.folder} has no checkpoint of step {step}")
        self._verify(step, ("params",) if rest is None else ("params", "rest"))
        self._compare(step, params)
        items = {"params": ocp.args.StandardRestore(params)}
        if rest is not None:
            items["rest"] = ocp.args.StandardRestore(rest)
        try:
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
        except Exception as error:  # orbax and tensorstore raise many kinds; none is ours to fix
            self._failed = True
            raise InputError(f"cannot read {self.folder / str(step)}: {_reason(error)}") from error
        return found["params"], found["rest"] if rest is not None else None

    def _give_up(self) -> None:
        for held in reversed(self._claims):
            held.close()
        self._hush.close(failed=self._failed)

    def _undescribed(self) -> Path:
        """The file in which the library describes a checkpoint, of the first that is damaged."""
        for path in sorted(self.folder.glob(f"*/{DESCRIPTION}")):
            try:
                if isinstance(read_json(path)["item_handlers"], dict):
                    continue
            except (InputError, TypeError, KeyError):
                pass
            return path
        return self.folder

    def _tidy(self) -> None:
        """Removes discarded checkpoints, and leftovers of interrupted saves."""
        for path in (self.folder / DISCARDED, *self.folder.glob(f"*{UNFINISHED}*")):
            shutil.rmtree(path, ignore_errors=True)

    def _failure(self, error: Exception, step: int | None = None) -> InputError:
        self._failed = True
        what = "save" if step is None else f"save step {step}"
        kept = self.latest()
        rest = "no earlier checkpoint is there" if kept is None else f"step {kept} is kept"
        return InputError(f"cannot {what} to {self.folder}: {_reason(error)}; {rest}")

    def _verify(self, step: int, items: Sequence[str]) -> None:
        """Checks the files of these items, each process its share of them."""
        place = self.folder / str(step)
        if not (place / DIGESTS).exists():
            return  # saved before there were digests
        listed = read_json(place / DIGESTS)
        known = {name.split("/")[0] for name in listed} if isinstance(listed, dict) else set()
        if not known.issuperset(items):
            raise InputError(f"cannot read {place / DIGESTS}: it does not list the files' SHA-256")
        names = sorted(name for name in listed if name.split("/")[0] in items)
        for name in names[jax.process_index() :: jax.process_count()]:
            try:
                same = sha256(place / name) == listed[name]
            except OSError as error:
                raise InputError(f"cannot read {place / name}: {error.strerror}") from error
            if not same:
                older = max((s for s in self.steps() if s < step), default=None)
                way = "" if older is None else f"; delete {place} to go back to step {older}"
                raise InputError(
                    f"cannot read {place / name}: it is damaged, not the file that was saved{way}"
                )

    def _compare(self, step: int, template: Any) -> None:
        """Names the first leaf whose shape differs: restoring would silently pad or cut it."""
        place = self.folder / str(step) / "params"
        try:
            with ocp.StandardCheckpointer() as reader:
                stored = _stored_shapes(reader.metadata(place))
        except Exception as error:
            self._failed = True
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


class NullStore:
    """A `Store` that saves nothing, for runs without checkpoints."""

    def __enter__(self) -> "NullStore":
        """Returns itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Does nothing."""

    def latest(self) -> None:
        """Always None."""

    def save(self, step: int, params: Any, rest: Any) -> None:
        """Does nothing."""

    def wait(self) -> None:
        """Returns at once."""

    def abandon(self) -> None:
        """Does nothing."""


class _Digested(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A checkpoint while it is written: before it gets its name, it gets its files' digests.

    The library calls this in its background thread, in one process, once all have written theirs.
    It uses the class for the items within a checkpoint, too, which get none of their own.
    """

    async def finalize(self) -> None:
        """Writes the digests and renames the folder."""
        if self.get_final().parent.name == CHECKPOINTS:
            await asyncio.to_thread(_save_digests, Path(self.get()))
        await super().finalize()


def latest_step(folder: str | Path) -> int | None:
    """The step of a run's newest whole checkpoint, or None."""
    return max(_steps(Path(folder) / CHECKPOINTS), default=None)


def _steps(place: Path) -> list[int]:
    try:
        names = [p.name for p in place.iterdir() if p.is_dir()]
    except OSError:
        return []
    return sorted(int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name))


def _save_digests(place: Path) -> None:
    files = sorted(path for path in place.glob("*/**/*") if path.is_file())
    digests = {path.relative_to(place).as_posix(): sha256(path) for path in files}
    with (place / DIGESTS).open("w", encoding="utf-8") as file:
        json.dump(digests, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _reason(error: BaseException) -> str:
    """A short reason for an error: the operating system's own if there is one."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    code = re.search(r"os_error_code='(\d+)'", text)
    if code:
        return os.strerror(int(code[1]))
    if not text and error.__cause__ is not None:
        return _reason(error.__cause__)
    text = text.split(" See full TensorStore details")[0]  # pages of them
    return text.splitlines()[0][:300] if text else repr(error)


def _stored_shapes(metadata: Any) -> dict[str, tuple[int, ...]]:
    tree = getattr(metadata, "item_metadata", metadata)
    tree = getattr(tree, "tree", tree)
    leaves = flatten(tree, is_leaf=lambda x: hasattr(x, "shape"))
    return {name: tuple(leaf.shape) for name, leaf in leaves.items()}


def save_model(cfg: Any, folder: str | Path) -> None:
    """Writes a model's kind and configuration into a run folder."""
    save_config(registry.to_json(cfg), Path(folder) / MODEL)


def load_model(folder: str | Path) -> Any:
    """Reads a model's configuration, of whatever kind, from a run folder.

    Raises:
      InputError: there is none, or its kind is unknown.
    """
    path = Path(folder) / MODEL
    return registry.from_json(read_json(path), str(path))


def restore_params(
    folder: str | Path,
    *,
    step: int | None = None,
    dtype: Any = None,
    layout: Layout | None = None,
) -> tuple[Any, Any]:
    """Parameters and configuration of a run, without its optimizer state.

    Args:
      folder: the run's folder.
      step: step of the checkpoint; None takes the latest.
      dtype: type of the parameters; None keeps float32.
      layout: placement of the arrays; None is the default device.

    Raises:
      InputError: the folder holds no checkpoint, or a damaged one, or values that are not finite.
    """
    cfg = load_model(folder)
    if not (Path(folder) / CHECKPOINTS).is_dir():
        raise InputError(f"{folder} has no folder {CHECKPOINTS}")
    spec = registry.spec(cfg)
    with Store(folder, writes=False) as store:
        step = store.latest() if step is None else step
        if step is None:
            raise InputError(f"{folder} holds no finished checkpoint yet")
        params, _ = store.restore(step, template(abstract(spec, dtype), spec, layout))
    check_all_finite(params, f"{folder}, step {step}")
    return check(spec, params, str(folder)), cfg


def template(shapes: Any, spec: Any, layout: Layout | None) -> Any:
    """Shapes with the sharding of each leaf: that of `layout`, or one device."""
    if layout is None:
        where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        placed = jax.tree.map(lambda _: where, shapes)
    else:
        placed = shardings(spec, layout)
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed
    )
