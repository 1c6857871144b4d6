"""What the benches of several devices share: layouts, the machine's own rates, a roofline of it."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from collectives import calls, received  # beside this file
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from moe_block import seconds  # beside this file

from pangu_jax.core.files import atomic_write
from pangu_jax.sharding.layout import Layout
from pangu_jax.sharding.mesh import make_mesh, parse_mesh
from pangu_jax.sharding.rules import preset

AXES = {"ddp": "data", "fsdp": "fsdp", "expert": "expert", "tensor": "tensor"}
# By the vendor's data sheet of the SXM module: dense bfloat16, memory, NVLink in one direction.
PUBLISHED = {"NVIDIA H200": {"tflops": 989, "tb_per_s": 4.8, "gb_per_s": 450}}


def named(name, devices):
    """The rules and sizes that ep, ep+tp and fsdp+ep stand for; other names as they are.

    Two devices have no product of two axes: there ep+tp is tensor alone, and fsdp+ep fsdp alone.
    """
    half = max(devices // 2, 1)
    pair = min(devices, 2)
    known = {
        "ep": f"expert@expert={devices}",
        "ep+tp": f"expert+tensor@expert={half},tensor={pair}",
        "fsdp+ep": f"fsdp+expert@fsdp={pair},expert={half}",
    }
    return known.get(name, name)


def layout_of(name):
    """The layout of `rules@axis=size,...`, or of one of AXES over all devices."""
    rules, _, sizes = name.partition("@")
    if not sizes and rules not in AXES:
        raise SystemExit(
            f"{name}: give ep, ep+tp, fsdp+ep, one of {' '.join(AXES)}, or rules@axis=size,..."
        )
    axes = parse_mesh(sizes) if sizes else {AXES[rules]: jax.device_count()}
    return Layout(make_mesh(**axes), preset(rules))


def spread(load, devices):
    """The busiest expert and the busiest device over the mean; `load` [..., E] is by expert.

    Of several layers the mean of each: devices wait for each other in every layer.
    """
    load = np.asarray(load, np.float64)
    load = load.reshape(-1, load.shape[-1])
    by_device = load.reshape(len(load), devices, -1).sum(2)
    return [float((x.max(1) / x.mean(1)).mean()) for x in (load, by_device)]


def difference(found, want):
    """How far two trees of arrays are apart, in float32.

    Returns:
      {"all": the norm of the difference over that of the second tree, "worst": of the leaf in which
      that is greatest}.
    """
    pairs = list(zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True))
    squares = [_squares(a, jax.device_put(b, a.sharding)) for a, b in pairs]
    squares = np.float64([[float(x) for x in pair] for pair in squares])
    off, whole = squares.sum(0)
    by_leaf = squares[:, 0] / np.maximum(squares[:, 1], 1e-30)
    return {"all": float((off / whole) ** 0.5), "worst": float(by_leaf.max() ** 0.5)}


@jax.jit
def _squares(a, b):
    a, b = (x.astype(jnp.float32) for x in (a, b))
    return ((a - b) ** 2).sum(), (b**2).sum()


def rates():
    """What this machine reaches: a product, a copy, and collectives as large as a block's tokens.

    Returns:
      {"tflops": of a bfloat16 product, "tb_per_s": read and written, "gb_per_s": {collective:
      received by a device}, "latency": {collective: seconds of the smallest}, "published": the
      same by the data sheet, where it is known}.
    """
    large = jax.default_backend() != "cpu"
    size = 8192 if large else 512
    key = jax.random.key(0)
    a = jax.random.normal(key, (size, size), jnp.bfloat16)
    taken = _timed(jax.jit(jnp.matmul), a, a)[0]
    x = jax.random.normal(key, (2**30 if large else 2**22,), jnp.bfloat16)
    copied = _timed(jax.jit(lambda x: x + 1), x)[0]
    found = {"tflops": 2e-12 * size**3 / taken, "tb_per_s": 4e-12 * x.size / copied}
    found |= {"gb_per_s": {}, "latency": {}}
    found["published"] = PUBLISHED.get(jax.devices()[0].device_kind, {})
    del a, x
    mesh = make_mesh(expert=jax.device_count())
    for shape in ((16384, 5120) if large else (256, 64), (8, 8)):
        rows = shape[0] * mesh.size
        x = jnp.ones((rows, shape[1]), jnp.bfloat16)
        x = jax.device_put(x, NamedSharding(mesh, P("expert")))
        for kind, run in _collectives(mesh).items():
            taken, program = _timed(run, x)
            if shape[0] > 8:
                found["gb_per_s"][kind] = sum(received(program).values()) / 1e9 / taken
            else:
                found["latency"][kind] = taken
    return found


def _timed(run, *given):
    """Seconds of a call, and the compiled program."""
    program = run.lower(*given).compile()
    return seconds(lambda: program(*given), jax.block_until_ready, 10), program


def _collectives(mesh):
    """{collective: a program over all devices}; none on one device."""
    bodies = {
        "all-gather": lambda x: jax.lax.all_gather(x, "expert", tiled=True),
        "reduce-scatter": lambda x: jax.lax.psum_scatter(x, "expert", tiled=True),
        "all-reduce": lambda x: jax.lax.psum(x, "expert"),
        "all-to-all": lambda x: jax.lax.all_to_all(x, "expert", 0, 0, tiled=True),
    }
    form = {"mesh": mesh, "in_specs": P("expert"), "out_specs": P("expert"), "check_vma": False}
    return {
        kind: jax.jit(jax.shard_map(body, **form)) for kind, body in bodies.items() if mesh.size > 1
    }


def simulated(found, parts, program):
    """A roofline: what a program takes by the machine's rates, without overlap.

    Args:
      found: from `rates`.
      parts: (FLOPs, bytes read and written) of each part of a device's work.
      program: compiled; its collectives are what it says.

    Returns:
      {"seconds", "compute", "memory", "communication"}: each part takes the longer of its FLOPs and
      its bytes, and the last three say what the sum is made of.
    """
    compute = memory = 0.0
    for flops, moved in parts:
        by = flops / found["tflops"] / 1e12, moved / found["tb_per_s"] / 1e12
        compute, memory = (compute + by[0], memory) if by[0] >= by[1] else (compute, memory + by[1])
    sent, number = received(program), calls(program)
    wire = sum(size / found["gb_per_s"][kind] / 1e9 for kind, size in sent.items() if size)
    wire += sum(number[kind] * found["latency"][kind] for kind, size in sent.items() if size)
    total = compute + memory + wire
    return {"seconds": total, "compute": compute, "memory": memory, "communication": wire}


def fits(program, there, devices):
    """Whether every device that a compiled program runs on has memory left for it.

    Asked first, as where one device alone runs out of memory the others wait for it for ever.

    Args:
      program: compiled.
      there: whether its arguments are in memory already.
      devices: how many it runs on, the first ones.
    """
    memory = program.memory_analysis()
    wanted = memory.temp_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    wanted += 0 if there else memory.argument_size_in_bytes
    stats = [device.memory_stats() for device in jax.devices()[:devices]]
    left = [x["bytes_limit"] - x["bytes_in_use"] for x in stats if x and "bytes_limit" in x]
    return all(wanted < 0.97 * x for x in left)


FULL = {"failed": "out of memory"}


def unless_full(run, *given):
    """What `run(*given)` gives, or None where a device's memory does not suffice."""
    try:
        return run(*given)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None


def _says(row, what):
    return all(row.get(name) == value for name, value in what.items())


class Results:
    """Rows in a file that is written anew with each; a file of the same settings goes on.

    Args:
      path: of the file, or None for none.
      settings: what must be equal for the file's rows to count.
    """

    def __init__(self, path, settings):
        self.path = path
        settings = json.loads(json.dumps(settings))
        self.found = {"settings": settings, "rows": []}
        if path and Path(path).exists():
            held = json.loads(Path(path).read_text("utf-8"))
            if held.get("settings") != settings:
                raise SystemExit(f"{path} holds results of other settings: give another --out")
            self.found = held

    def part(self, name, compute):
        """A part of the results besides rows, computed where it is not there yet."""
        if name not in self.found:
            self.found[name] = compute()
            self.write()
        return self.found[name]

    def row(self, **what):
        """The first row that says so, or None."""
        return next((row for row in self.found["rows"] if _says(row, what)), None)

    def has(self, **what):
        """Whether a row says so."""
        return self.row(**what) is not None

    def add(self, rows):
        """Adds rows and writes the file."""
        self.found["rows"] += rows
        self.write()

    def write(self):
        """Writes the file, if there is one."""
        if self.path:
            with atomic_write(self.path) as file:
                json.dump(self.found, file, indent=1)
