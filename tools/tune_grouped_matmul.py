"""Finds the settings of the kernels for grouped products on this GPU, for the shapes of a layer.

    python tools/tune_grouped_matmul.py --width 5120 --hidden 1344 --experts 64 --rows 131072

Prints the entries of `SETTINGS` in pangu_jax/ops/kernels/grouped_matmul_mosaic.py, each with its
TFLOP/s for unevenly shared rows (busiest expert about twice the mean), best first.
"""

import argparse
import itertools
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pangu_jax.ops.kernels.grouped_matmul_mosaic import Tile, matmul, outer


def counts(rows, experts):
    """Rows of each expert: random shares whose largest is about twice their mean."""
    shares = np.random.default_rng(0).uniform(0.2, 1.8, experts)
    found = np.floor(shares / shares.sum() * rows).astype(np.int32)
    found[0] += rows - found.sum()
    return jnp.asarray(found)


def seconds(run, *arrays):
    """The shortest of some calls; None where the kernel does not fit the chip."""
    try:
        compiled = jax.jit(run).lower(*arrays).compile()
        jax.block_until_ready(compiled(*arrays))
    except Exception as error:
        return None, str(error).splitlines()[0][:80]
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arrays))
        times.append(time.perf_counter() - start)
    return min(times), ""


def forms(options):
    """(form, the product, its arrays) of every product of a layer."""
    width, hidden, experts, rows = options.width, options.hidden, options.experts, options.rows
    sizes = counts(rows, experts)
    keys = iter(jax.random.split(jax.random.key(0), 4))

    def draw(*shape):
        return jax.random.normal(next(keys), shape, jnp.bfloat16)

    wide, narrow = draw(rows, width), draw(rows, hidden)
    into, back = draw(experts, width, hidden), draw(experts, hidden, width)
    plain, turned = partial(matmul, transpose=False), partial(matmul, transpose=True)
    yield "plain", plain, (wide, into, sizes), hidden
    yield "plain", plain, (narrow, back, sizes), width
    yield "transposed", turned, (wide, back, sizes), hidden
    yield "transposed", turned, (narrow, into, sizes), width
    yield "outer", outer, (wide, narrow, sizes), hidden
    yield "outer", outer, (narrow, wide, sizes), width


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=5120)
    parser.add_argument("--hidden", type=int, default=1344)
    parser.add_argument("--experts", type=int, default=64)
    parser.add_argument("--rows", type=int, default=131072)
    parser.add_argument("--seconds", type=float, default=60, help="for each product")
    options = parser.parse_args()
    flops = 2 * options.rows * options.width * options.hidden
    for form, product, arrays, columns in forms(options):
        start, found = time.perf_counter(), []
        contracted = arrays[0].shape[1]
        grid = itertools.product((128,), (192, 128, 64), (64, 128), (4, 5, 3, 6), (2, 4, 8, 1))
        for m, n, k, steps, together in grid:
            tile = Tile(m, n, k, steps, together)
            if columns % n or (form == "outer" and contracted % m):
                continue
            if time.perf_counter() - start > options.seconds:
                break
            taken, why = seconds(partial(product, tile=tile), *arrays)
            if taken:
                found.append((taken, tile))
            else:
                print("#", form, *tile, why, flush=True)
        for taken, tile in sorted(found)[:3]:
            print(
                f'    ("{form}", {contracted}, {columns}): {tile},  # {flops / taken / 1e12:.0f}',
                flush=True,
            )


if __name__ == "__main__":
    main()
