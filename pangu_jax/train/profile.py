"""Profiles a few training steps: where their time and memory go."""

import collections
import gzip
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from pangu_jax.core.errors import InputError

# The parts of a step, by the name scopes that the layers, the loss and the step open.
PARTS = ("attention", "moe", "mlp", "embed", "head", "optimizer")
SKIPPED = 2  # steps before the trace: the first ones warm up


class Profiler:
    """Traces steps into a folder for TensorBoard, XProf and Perfetto, and reports on them.

    The trace lies below the folder in plugins/profile/<time>/: `*.xplane.pb` is what
    `tensorboard --logdir FOLDER` (with the profile plug-in) reads, and `*.trace.json.gz` can be
    dropped on ui.perfetto.dev.
    """

    def __init__(self, folder: str | Path, *, steps: int = 5, tell: Callable[[str], Any] = print):
        """Prepares a profiler; it does nothing until the steps are watched.

        Args:
          folder: folder for the trace; made if missing.
          steps: steps to trace, after two that are not.
          tell: called with the lines of the report.
        """
        self.folder, self.steps, self.tell = Path(folder), steps, tell
        self._done = 0
        self._tracing = False

    def watch(self, step: Callable) -> Callable:
        """The same jitted step, compiled ahead so that its parts and its memory can be named."""

        def watched(state: Any, *rest: Any) -> tuple[Any, Any]:
            if not self._done:
                self._compiled = step.lower(state, *rest).compile()
                self._held = _bytes_held(state)
            if self._done == SKIPPED:
                jax.block_until_ready(state)
                self._start()
            out = self._compiled(state, *rest)
            self._done += 1
            if self._tracing and self._done == SKIPPED + self.steps:
                jax.block_until_ready(out)
                self._stop()
            return out

        return watched

    def close(self) -> None:
        """Ends a trace that the run's end cut short."""
        if self._tracing:
            self._stop()

    def _start(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self.folder))
        except (OSError, RuntimeError) as error:
            raise InputError(f"cannot trace into {self.folder}: {error}") from error
        self._tracing, self._begun = True, time.monotonic()

    def _stop(self) -> None:
        steps, self._tracing = self._done - SKIPPED, False
        seconds = (time.monotonic() - self._begun) / max(steps, 1)
        jax.profiler.stop_trace()
        for line in self._report(seconds, max(steps, 1)):
            self.tell(line)

    def _report(self, seconds: float, steps: int) -> list[str]:
        lines = [f"profile: {1e3 * seconds:.1f} ms per step over {steps} steps"]
        times = part_times(self.folder, self._compiled.as_text())
        total = sum(times.values())
        if total:
            lines.append("  time of the compiled operations, summed over devices and threads:")
        for part, busy in times.most_common():
            lines.append(
                f"    {part:20} {busy / total:6.1%}  {busy / steps / 1e3:10.2f} ms per step"
            )
        lines.append("  memory of a device:")
        lines += [f"    {name:20} {_size(size)}" for name, size in self._memory().items()]
        lines.append(f"  {self.folder} holds the trace: tensorboard --logdir {self.folder}, or")
        lines.append("  drop its .trace.json.gz on ui.perfetto.dev")
        return lines

    def _memory(self) -> dict[str, int]:
        found = dict(self._held)
        plan = self._compiled.memory_analysis()
        if plan is not None:
            found["work of the step"] = plan.temp_size_in_bytes
        stats = jax.local_devices()[0].memory_stats() or {}
        if "peak_bytes_in_use" in stats:
            found["peak so far"] = stats["peak_bytes_in_use"]
        return found


def part_times(folder: str | Path, compiled: str) -> collections.Counter[str]:
    """Microseconds of the newest trace by part of the step, forward and backward apart.

    Args:
      folder: folder of the trace.
      compiled: the text of the compiled program, which names the scope of each operation.
    """
    times: collections.Counter[str] = collections.Counter()
    for (_, scope), busy in operation_times(folder, compiled).items():
        times[part(scope)] += busy
    return times


def operation_times(folder: str | Path, compiled: str) -> collections.Counter[tuple[str, str]]:
    """Microseconds of the newest trace by operation: its name, and its scope in the program.

    Args:
      folder: folder of the trace.
      compiled: the text of the compiled program.
    """
    scopes = dict(re.findall(r'%?([\w.\-]+) = [^\n]*?op_name="([^"]*)"', compiled))
    module = re.match(r"HloModule ([\w.\-]+)", compiled)
    times: collections.Counter[tuple[str, str]] = collections.Counter()
    traces = sorted(Path(folder).glob("plugins/profile/*/*.trace.json.gz"))
    if not traces or module is None:
        return times
    with gzip.open(traces[-1], "rt", encoding="utf-8") as file:
        events = json.load(file)["traceEvents"]
    for event in events:
        arguments = event.get("args") or {}
        name = arguments.get("hlo_op", "")
        # Loops and calls contain the operations that are counted by themselves.
        if arguments.get("hlo_module") != module[1] or re.match("while|call|conditional", name):
            continue
        times[name, scopes.get(name, "")] += event.get("dur", 0)
    return times


def part(scope: str) -> str:
    """The part of the step that a scope, such as jit(step)/jvp(attention)/dot_general, is in."""
    words = re.findall(r"\w+", scope)
    found = next((name for name in PARTS if name in words), "other")
    if found in ("optimizer", "other"):
        return found
    return f"{found}, backward" if "transpose" in words else f"{found}, forward"


def _bytes_held(state: Any) -> dict[str, int]:
    """The memory of a state on the first local device."""
    device = jax.local_devices()[0]

    def held(tree: Any) -> int:
        shards = (s for leaf in jax.tree.leaves(tree) for s in leaf.addressable_shards)
        return sum(s.data.nbytes for s in shards if s.device == device)

    return {"parameters": held(state.params), "optimizer's state": held(state.opt_state)}


def _size(size: int) -> str:
    return f"{size / 1e9:10.3f} GB" if size >= 1e8 else f"{size / 1e6:10.3f} MB"
