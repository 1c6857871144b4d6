"""Times a block of routed experts (router, dispatch, experts, combine) beside transformers' block.

    python tools/bench/moe_block.py --tokens 16384 4096 64 1 --peer --out block.json

The block has Pangu Pro MoE's size: width 5120, 64 experts of width 1344 in 8 groups, one of each;
the shared expert is left out on both sides. The peer is transformers' Qwen3-MoE block of the same
size with torch's grouped products, ordinary top-8 routing, weights and inputs drawn likewise.
`--skew X` makes the first expert of every group the likelier the larger X is; the busiest expert's
share, over the mean, is printed with the times.

Prints milliseconds (median), TFLOP/s of the chosen experts alone, and the ratio to the peer. Before
it times anything it compares the implementation with the reference at a small size: values and all
gradients, with empty experts and all rows on one.
"""

import argparse
import gc
import json
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from expert_mlp import machine  # beside this file
from train_step import profile  # beside this file

from pangu_jax.core.files import atomic_write
from pangu_jax.nn.how import How
from pangu_jax.nn.moe import MoEConfig, moe
from pangu_jax.ops.expert_mlp import expert_mlp

CHECKED = (256, 192, "bfloat16"), (336, 80, "bfloat16"), (768, 224, "float16")
CFG = MoEConfig(64, 8, 1, 1344)
WIDTH = 5120


def weights(skew):
    """Parameters of the block, bfloat16."""
    groups, size = CFG.groups, CFG.experts // CFG.groups
    shapes = {"gate": (WIDTH, CFG.width), "up": (WIDTH, CFG.width), "down": (CFG.width, WIDTH)}
    keys = jax.random.split(jax.random.key(0), 4)
    experts = {
        name: {"kernel": jax.jit(partial(_kernel, shape=(groups, size, *shape)))(key)}
        for key, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    router = 0.02 * jax.random.normal(keys[3], (WIDTH, groups, size))
    if skew:  # inputs have a part that is alike in all tokens, and that the first expert likes
        router = router.at[:, :, 0].add(skew / WIDTH)
    return {"router": {"kernel": router}, "experts": experts}


def _kernel(key, shape):
    return (jax.random.normal(key, shape) * shape[-2] ** -0.5).astype(jnp.bfloat16)


def block(params, x, *, impl):
    """The block's output, [1, T, D]."""
    return moe(params, x, cfg=CFG, how=How(impl={"expert_mlp": impl} if impl else None))[0]


def both(params, x, dy, *, impl):
    """The gradients of all weights and of the tokens."""
    y, back = jax.vjp(partial(block, impl=impl), params, x)
    return y, back(dy)


def seconds(run, wait, repeats):
    """Seconds of a call: the median of five rounds of calls one behind the other."""
    times = []
    for count in (3, *[repeats] * 5):
        start = time.perf_counter()
        for _ in range(count):
            out = run()
        wait(out)
        times.append((time.perf_counter() - start) / count)
    return statistics.median(times[1:])


def ours(tokens, options):
    """Rows of this library's times."""
    params = weights(options.skew)
    x = (jax.random.normal(jax.random.key(1), (1, tokens, WIDTH)) + bool(options.skew)).astype(
        jnp.bfloat16
    )
    rows, wait = [], jax.block_until_ready
    load = jax.jit(lambda params, x: moe(params, x, cfg=CFG)[1].load)(params, x)
    for impl in options.impl:
        forward = jax.jit(partial(block, impl=impl))
        gradient = jax.jit(partial(both, impl=impl))
        found = {"name": f"pangu_jax {impl or 'as chosen'}", "tokens": tokens}
        found["load"] = float(load.max() / load.mean())
        found["forward"] = seconds(partial(forward, params, x), wait, options.repeats)
        if tokens >= options.least:
            found["both"] = seconds(partial(gradient, params, x, x), wait, options.repeats)
        if options.profile:
            for run, given in ((forward, (params, x)), (gradient, (params, x, x))):
                program = run.lower(*given).compile()
                parts = profile(program, partial(program, *given))["longest"]
                found.setdefault("profiles", []).append(parts)
                for name, scope, busy in parts:
                    print(f"    {busy:8.3f} ms {name:36} {scope}")
        rows.append(found)
    return rows


def peer(tokens, options):
    """A row of transformers' times."""
    import torch
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    cfg = Qwen3MoeConfig(hidden_size=WIDTH, num_experts=64, num_experts_per_tok=8,
                         moe_intermediate_size=CFG.width, norm_topk_prob=False)  # fmt: skip
    cfg._experts_implementation = "grouped_mm"
    with torch.device("cuda"):
        module = Qwen3MoeSparseMoeBlock(cfg).to(torch.bfloat16)
    for weight in module.parameters():
        torch.nn.init.normal_(weight, std=0.02)
    x = torch.randn(1, tokens, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def output():
        found = module(x)
        return found[0] if isinstance(found, tuple) else found

    def forward():
        with torch.no_grad():
            return output()

    def gradient():
        module.zero_grad(set_to_none=True)
        x.grad = None
        output().backward(x.detach())

    def wait(_):
        torch.cuda.synchronize()

    found = {"name": "transformers grouped_mm", "tokens": tokens}
    found["forward"] = seconds(forward, wait, options.repeats)
    if tokens >= options.least:
        found["both"] = seconds(gradient, wait, options.repeats)
    return found


def check(impl, sizes, width, hidden, dtype):
    """Largest relative error in norm of values and gradients, against the reference in float32."""
    groups, size, worst = 4, 4, 0.0
    rng = np.random.default_rng(0)

    def run(x, scale, gate, up, down, dy, ids, impl):
        form = partial(expert_mlp, impl=impl)
        y, back = jax.vjp(lambda x, w, *k: form(x, ids, w, *k), x, scale, gate, up, down)
        return y, *back(dy.astype(y.dtype))

    kernels = [
        jnp.asarray(rng.normal(size=(groups, size, n, m)) * n**-0.5, dtype)
        for n, m in ((width, hidden), (width, hidden), (hidden, width))
    ]
    for tokens in sizes:
        shape = tokens, groups, 1
        x, dy = (jnp.asarray(rng.normal(size=(tokens, width)), dtype) for _ in range(2))
        scale = rng.uniform(0.1, 1, shape).astype(np.float32)
        fast, slow = (jax.jit(partial(run, impl=name)) for name in (impl, "reference"))
        drawn = rng.integers(0, size, shape).astype(np.int32)
        for ids in (drawn, drawn * 0 + 1, drawn // 2):  # all, one expert, half of them
            got = fast(x, scale, *kernels, dy, ids)
            exact = (a.astype(jnp.float32) for a in (x, scale, *kernels, dy))
            with jax.default_matmul_precision("highest"):
                want = slow(*exact, ids)
            for a, b in zip(got, want, strict=True):
                error = jnp.linalg.norm(jnp.float32(a) - b) / jnp.maximum(jnp.linalg.norm(b), 1e-30)
                worst = max(worst, float(error))
    return worst


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384, 4096])
    parser.add_argument("--impl", nargs="+", default=[None])
    parser.add_argument("--peer", action="store_true")
    parser.add_argument("--skew", type=float, default=0.0)
    parser.add_argument("--least", type=int, default=512, help="tokens from which gradients count")
    parser.add_argument("--repeats", type=int, default=20, help="calls in a round")
    parser.add_argument("--profile", action="store_true", help="as in train_step.py")
    parser.add_argument("--check", type=int, nargs="*", default=[1, 2, 7, 127, 129, 1000])
    parser.add_argument("--out")
    options = parser.parse_args()
    print(machine())
    for impl in options.impl:
        # Widths of which 64, 16 and 32 numbers are a line of the kernels' memory.
        for width, hidden, dtype in CHECKED if options.check else ():
            error = check(impl, options.check, width, hidden, dtype)
            name = impl or "as chosen"
            print(f"{name} {width} x {hidden} {dtype}: relative error {error:.1e}", flush=True)
    rows = []
    for tokens in options.tokens:
        found = [peer(tokens, options)] if options.peer else []
        gc.collect()
        found += ours(tokens, options)
        flops = 6 * tokens * 8 * WIDTH * CFG.width
        for row in found:
            row["forward_tflops"] = flops / row["forward"] / 1e12
            row["both_tflops"] = 3 * flops / row["both"] / 1e12 if "both" in row else None
            print(
                f"{tokens:6d} {row['name']:26} forward {row['forward'] * 1e3:8.3f} ms"
                f" {row['forward_tflops']:5.0f}"
                + (
                    f"  with gradients {row['both'] * 1e3:8.3f} ms {row['both_tflops']:5.0f}"
                    if "both" in row
                    else ""
                )
                + (f"  x{found[0]['forward'] / row['forward']:.2f}" if options.peer else "")
                + (f"  load {row['load']:.2f}" if "load" in row else ""),
                flush=True,
            )
        rows += found
    if options.out:
        with atomic_write(options.out) as file:
            json.dump({"device": machine(), "rows": rows}, file, indent=1)


if __name__ == "__main__":
    main()
