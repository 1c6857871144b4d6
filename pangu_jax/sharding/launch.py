"""Multi-process runs: joining them, and the part of a batch that each process reads."""

import os
import sys
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from pangu_jax.core.errors import InputError
from pangu_jax.sharding.layout import Layout, batch_parts, batch_sharding
from pangu_jax.sharding.mesh import make_mesh, parse_mesh
from pangu_jax.sharding.rules import preset

# A process that hangs or whose machine is gone is noticed after so long; one that ends, at once.
HEARTBEAT_S = 30


def connect(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes of a run; call it before jax touches a device.

    Args:
      coordinator: "" for a run of one process, which does nothing; host:port of process 0; or
        "auto", where jax finds it and the two numbers out (Slurm, Open MPI, TPU pods, ...).
      processes: number of processes; None with "auto".
      process: index of this one, from 0; None with "auto".

    Raises:
      InputError: the numbers are inconsistent, or the other processes were not reached.
    """
    if not coordinator:
        if processes is not None or process is not None:
            raise InputError("--processes and --process need --coordinator host:port of process 0")
        return
    auto = coordinator == "auto"
    if not auto:
        _check(coordinator, processes, process)
    try:
        jax.distributed.initialize(
            None if auto else coordinator,
            processes,
            process,
            cluster_detection_method=None if auto else "deactivate",
            heartbeat_timeout_seconds=HEARTBEAT_S,
        )
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:300]
        raise InputError(f"process {process} cannot join the run at {coordinator}: {reason}") from (
            error
        )


def layout_of(mesh: str, rules: str) -> Layout | None:
    """The layout that a command's options describe; None is one device.

    Args:
      mesh: devices by axis, such as "fsdp=4,tensor=2"; "" is one device.
      rules: names of presets joined with "+".

    Raises:
      InputError: they describe none, or ask for one device in several processes.
    """
    if mesh:
        return Layout(make_mesh(**parse_mesh(mesh)), preset(rules))
    if jax.process_count() > 1:
        raise InputError("several processes need --mesh, such as fsdp=-1 for all devices")
    return None


def batch_share(layout: Layout | None, batch: int) -> tuple[int, int]:
    """(index, number of parts): this process's part of every batch, for `data.pipeline.batches`.

    Processes whose devices hold the same rows, as with tensor parallelism across processes, read
    the same part.

    Raises:
      InputError: the batch does not divide by the devices it is split over, or the layout cuts it
        so that processes share only some of their rows.
    """
    if layout is not None and batch % (parts := batch_parts(layout)):
        raise InputError(
            f"a batch of {batch} does not divide by the {parts} parts that this mesh splits it "
            f"into; devices would repeat one another's work: take a multiple of {parts}"
        )
    if layout is None or jax.process_count() == 1:
        return 0, 1
    rows: dict[int, set[tuple[int, int]]] = {}
    for device, index in batch_sharding((batch,), layout).devices_indices_map((batch,)).items():
        first, last, _ = index[0].indices(batch)
        rows.setdefault(device.process_index, set()).add((first, last))
    parts = sorted({tuple(sorted(part)) for part in rows.values()})
    covered = sum(last - first for part in parts for first, last in part)
    if covered != batch or len({sum(b - a for a, b in part) for part in parts}) > 1:
        raise InputError(
            f"a batch of {batch} is not cut evenly among {len(rows)} processes by this mesh and "
            "these rules; let data * fsdp be a multiple of the processes, and divide the batch"
        )
    return parts.index(tuple(sorted(rows[jax.process_index()]))), len(parts)


def check_equal(value: str, what: str) -> None:
    """Raises InputError where a process has another value than process 0, as of other files."""
    if jax.process_count() == 1:
        return
    mine = np.frombuffer(value.encode()[:64].ljust(64), np.uint8)
    if not np.array_equal(multihost_utils.broadcast_one_to_all(mine), mine):
        raise InputError(f"process {jax.process_index()} has {what} than process 0")


def from_first(value: np.ndarray) -> np.ndarray:
    """Broadcasts process 0's array; each process passes one of the same shape and dtype."""
    if jax.process_count() == 1:
        return value
    raw = np.frombuffer(np.ascontiguousarray(value).tobytes(), np.uint8)
    found = np.asarray(multihost_utils.broadcast_one_to_all(raw))
    return np.frombuffer(found.tobytes(), value.dtype).reshape(value.shape)


def gathered(tree: Any) -> Any:
    """A tree's arrays unchanged in one process; with several, each gets them whole, as numpy's."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(lambda x: multihost_utils.process_allgather(x, tiled=True), tree)


def together(what: str) -> None:
    """A barrier across processes; `what` names it and must be the same in all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def first_process() -> bool:
    """Whether this is process 0, which prints and writes shared files."""
    return jax.process_index() == 0


def leave(message: str, status: int) -> NoReturn:
    """Exits at once, without waiting for the other processes."""
    print(f"pangu-jax: process {jax.process_index()}: {message}", file=sys.stderr, flush=True)
    os._exit(status)


def _check(coordinator: str, processes: int | None, process: int | None) -> None:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise InputError(f"--coordinator must be host:port or auto, got {coordinator!r}")
    if processes is None or process is None or not 0 <= process < processes:
        raise InputError(
            f"--coordinator needs --processes and --process, a number from 0 up to one less; got "
            f"{processes} and {process}"
        )
