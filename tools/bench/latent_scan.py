r"""Times training steps with fed-back thoughts (Coconut): one scan beside the n-pass form in torch.

    python tools/bench/latent_scan.py                                        one GPU
    python tools/bench/latent_scan.py --shape tiny --batch 4 --prefix 12 --tail 8 --thoughts 3 \
        --dtype float32 --rounds 2 --steps 2 --forms transformers passes     a CPU

The torch side is the published code's form, written anew: a pass over the question, one for each
thought over a key-value cache, one over the rest, and one backward pass through all. It is there as
the Llama of transformers ("transformers"), and layer by layer, with layers that torch.compile
compiles ("compiled") and that it does not ("passes"); all with scaled_dot_product_attention and the
fused AdamW. Both sides begin with the same weights, float32, and compute in `--dtype`; read the
same rows, padded on the left, with a mask; compute logits of what is predicted alone; clip and
update alike. Each runs in a process of its own. Their first losses must agree. `--unroll 1` and
`--unroll 64` compare loops over layers and thoughts with both written out; `--forms` without a name
times the scan alone. Prints milliseconds per step (the median of some rounds) and the ratio to the
fastest torch form; `--out` writes the same as JSON.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# Vocabulary, width, layers, heads, size of a head, hidden units; `gpt2` has GPT-2 small's sizes,
# `shallow` and `small` those of the presets' models.
SHAPES = {
    "gpt2": (50_304, 768, 12, 12, 64, 2048),
    "shallow": (48, 768, 2, 12, 64, 2048),
    "small": (48, 384, 8, 6, 64, 1024),
    "tiny": (256, 64, 2, 2, 32, 128),
}
FORMS = ("transformers", "passes", "compiled")
LEARNING_RATE, WEIGHT_DECAY, CLIP = 1e-4, 0.01, 1.0


def rows(options):
    """A batch of `slots.collate`: random questions and rests of random lengths."""
    from pangu_jax.reasoning.latent.slots import Slots, collate

    rng, vocab = np.random.default_rng(0), SHAPES[options.shape][0]

    def ids(most):
        return tuple(map(int, rng.integers(1, vocab, rng.integers(most // 2, most + 1))))

    made = [Slots(ids(options.prefix), ids(options.tail), 1) for _ in range(options.batch)]
    sizes = {"start": options.prefix, "thoughts": options.thoughts, "tail": options.tail}
    return collate(made, **sizes)


def timed(step, wait, options):
    """First loss, seconds of the first steps, and seconds per step in each round."""
    began = time.perf_counter()
    losses = [float(step()) for _ in range(3)]
    wait()
    first, rounds = time.perf_counter() - began, []
    for _ in range(options.rounds):
        began = time.perf_counter()
        for _ in range(options.steps):
            step()
        wait()
        rounds.append((time.perf_counter() - began) / options.steps)
    found = {"loss": losses[0], "first_steps_s": first, "rounds_s": rounds}
    return {**found, "step_s": statistics.median(rounds)}


def jax_side(options, folder):
    """The scan, and the model's weights for the other side."""
    import jax

    from pangu_jax.checkpoint import hf
    from pangu_jax.models import decoder
    from pangu_jax.models.presets import uniform
    from pangu_jax.nn.attention import AttentionConfig
    from pangu_jax.nn.how import How
    from pangu_jax.nn.mlp import MlpConfig
    from pangu_jax.reasoning.latent.loss import thought_loss
    from pangu_jax.train.optimizer import make_optimizer
    from pangu_jax.train.optimizer_config import OptimizerConfig
    from pangu_jax.train.step import init_state, make_step

    vocab, width, layers, heads, size, hidden = SHAPES[options.shape]
    attention = AttentionConfig(heads, 1, size)
    cfg = uniform(vocab, width, layers, attention, mlp=MlpConfig(hidden), tied=True)
    optimizer = make_optimizer(
        OptimizerConfig(LEARNING_RATE, "constant", 0.0, b2=0.999, weight_decay=WEIGHT_DECAY), 1000
    )
    state = init_state(decoder.spec(cfg), optimizer, key=jax.random.key(0))
    hf.save(jax.device_get(state.params), cfg, folder / "model", family="llama")
    loss = thought_loss(
        cfg,
        start=options.prefix,
        thoughts=options.thoughts,
        feedback="hidden",
        how=How(dtype=options.dtype, unroll=options.unroll),
    )
    run, batch = make_step(loss, optimizer), jax.device_put(rows(options))
    held = [state]

    def step():
        held[0], metrics = run(held[0], batch, jax.random.key(1))
        return metrics["loss"]

    found = timed(step, lambda: jax.block_until_ready(held[0]), options)
    return {"scan": {**found, "device": jax.devices()[0].device_kind, "jax": jax.__version__}}


def torch_side(options, folder):
    """The n-pass form: of transformers, written out, and written out with compiled layers."""
    import torch
    import transformers

    device = "cuda" if torch.cuda.is_available() else "cpu"
    batch = {name: torch.from_numpy(x.copy()).to(device) for name, x in rows(options).items()}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    layers = {"passes": lambda: torch_layer, "compiled": lambda: torch.compile(torch_layer)}
    found = {}
    for name in options.forms:
        net = transformers.LlamaForCausalLM.from_pretrained(
            folder / "model", dtype=torch.float32, attn_implementation="sdpa"
        )
        net = net.to(device).train()
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True
        )
        half = torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16")
        if name == "transformers":
            start = transformers_reader(net, batch)
        else:
            start = plain_reader(net, batch, layers[name]())

        def step(net=net, start=start, optimizer=optimizer, half=half):
            with half:
                loss = passes_loss(net, start(), batch, options)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            return loss.detach()

        wait = torch.cuda.synchronize if device == "cuda" else lambda: None
        try:
            found[name] = {**timed(step, wait, options), **versions}
        except Exception as error:  # the compiler's own failures; the other forms still count
            found[name] = {"failed": f"{type(error).__name__}: {error!s:.300}"}
    return found


def transformers_reader(net, batch):
    """The model of transformers over its own cache: see `passes_loss`."""
    from transformers import DynamicCache

    def start():
        cache = DynamicCache()

        def read(x, begin):
            out = net.model(
                inputs_embeds=x,
                attention_mask=batch["segments"][:, : begin + x.shape[1]],
                position_ids=batch["positions"][:, begin : begin + x.shape[1]],
                past_key_values=cache,
                use_cache=True,
            )
            return out.last_hidden_state

        return read

    return start


def plain_reader(net, batch, layer):
    """The same model layer by layer, with masks and rotations made once a batch."""
    import torch

    size, base = net.config.head_dim, net.config.rope_parameters["rope_theta"]
    seen, places, eps = batch["segments"] > 0, batch["positions"], net.config.rms_norm_eps
    mask = torch.ones(seen.shape[1], seen.shape[1], dtype=torch.bool, device=seen.device).tril()
    # Padding sees itself, as a row of nothing would be no number.
    own = torch.eye(seen.shape[1], dtype=torch.bool, device=seen.device)
    mask = ((mask & seen[:, None]) | own)[:, None]
    turn = base ** (-torch.arange(0, size, 2, device=seen.device) / size)
    angle = (places[..., None] * turn)[:, None].repeat(1, 1, 1, 2)
    cos, sin = angle.cos(), angle.sin()
    weights = [layer_weights(module) for module in net.model.layers]

    def start():
        empty = torch.zeros(len(seen), net.config.num_attention_heads, 0, size, device=seen.device)
        past = [(empty, empty)] * len(weights)

        def read(x, begin):
            end = begin + x.shape[1]
            for number, own in enumerate(weights):
                at = mask[:, :, begin:end, :end], cos[:, :, begin:end], sin[:, :, begin:end]
                x, past[number] = layer(own, x, *at, past[number], eps)
            last = net.model.norm.weight.to(x.dtype)
            return torch.nn.functional.rms_norm(x, x.shape[-1:], last, eps)

        return read

    return start


def layer_weights(module):
    """A layer's tensors in the order that `torch_layer` takes them in."""
    heads, mlp = module.self_attn, module.mlp
    maps = (heads.q_proj, heads.k_proj, heads.v_proj, heads.o_proj)
    maps = (*maps, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    norms = (module.input_layernorm, module.post_attention_layernorm)
    return tuple(x.weight for x in (*norms, *maps))


def torch_layer(weights, x, mask, cos, sin, past, eps):
    """One layer over keys and values of what was read before: the states, and both with these."""
    import torch
    from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

    first, second, query, key, value, out, gate, up, down = weights
    size, width = cos.shape[-1], x.shape[-1:]

    def heads(kernel, y):
        return linear(y, kernel).unflatten(-1, (-1, size)).transpose(1, 2)

    def turned(y):
        a, b = y.chunk(2, -1)
        return (y * cos + torch.cat([-b, a], -1) * sin).to(y.dtype)

    y = rms_norm(x, width, first.to(x.dtype), eps)
    q, k, v = turned(heads(query, y)), turned(heads(key, y)), heads(value, y)
    k, v = (torch.cat([old.to(new.dtype), new], 2) for old, new in zip(past, (k, v), strict=True))
    mixed = scaled_dot_product_attention(q, k, v, attn_mask=mask)
    x = x + linear(mixed.transpose(1, 2).flatten(2), out)
    y = rms_norm(x, width, second.to(x.dtype), eps)
    return x + linear(silu(linear(y, gate)) * linear(y, up), down), (k, v)


def passes_loss(net, read, batch, options):
    """Mean nats of what is predicted, after a pass for each thought.

    Args:
      net: whose embeddings and head are used.
      read: of embeddings and the first one's column gives states, and keeps a cache.
      batch: tensors of `rows`.
      options: of the command line.
    """
    import torch

    table, first = net.get_input_embeddings(), options.prefix
    after, kind = first + options.thoughts, getattr(torch, options.dtype)
    embed = lambda ids: table(ids).to(kind)  # noqa: E731
    states = [read(embed(batch["tokens"][:, :first]), 0)[:, -1:]]
    for column in range(first, after):
        states.append(read(states[-1], column))
    states.append(read(embed(batch["tokens"][:, after:]), after))
    told = torch.cat(states[-2:], 1)  # of the last thought, and of what follows it
    labels, weights = batch["labels"][:, after - 1 :], batch["weights"][:, after - 1 :]
    scores = net.lm_head(told).float().flatten(0, 1)
    nats = torch.nn.functional.cross_entropy(scores, labels.flatten().long(), reduction="none")
    return (nats * weights.flatten()).sum() / weights.sum()


def both(options, arguments):
    """Both sides, each in a process of its own, and their agreement."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for side in ("jax", "torch") if options.forms else ("jax",):
            command = [sys.executable, __file__, *arguments, "--side", side, "--folder", folder]
            subprocess.run(command, check=True, timeout=600)
            found |= json.loads((Path(folder) / f"{side}.json").read_text())
    near = 0.02 if options.dtype == "bfloat16" else 1e-4
    for name, one in found.items():
        if "loss" in one and abs(one["loss"] / found["scan"]["loss"] - 1) > near:
            raise SystemExit(f"{name} begins with {one['loss']}, not {found['scan']['loss']}")
    return found


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="gpt2", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--prefix", type=int, default=64, help="columns of the question")
    parser.add_argument("--thoughts", type=int, default=6)
    parser.add_argument("--tail", type=int, default=32, help="columns of the rest")
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=FORMS, help="of torch")
    parser.add_argument("--unroll", type=int, help="layers and thoughts in one turn of a loop")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--out")
    parser.add_argument("--side", choices=("jax", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        folder = Path(options.folder)
        found = {"jax": jax_side, "torch": torch_side}[options.side](options, folder)
        (folder / f"{options.side}.json").write_text(json.dumps(found))
        return
    found = both(options, sys.argv[1:])
    for name, one in found.items():
        told = one.get("failed") or (
            f"{1e3 * one['step_s']:.1f} ms per step, {options.batch / one['step_s']:,.0f} rows/s, "
            f"first loss {one['loss']:.4f}, first three steps {one['first_steps_s']:.0f} s"
        )
        print(f"{name:16} {told}", flush=True)
    peers = [one["step_s"] for name, one in found.items() if name != "scan" and "step_s" in one]
    if peers:
        print(f"one scan trains {min(peers) / found['scan']['step_s']:.2f} times as fast")
    if options.out:
        result = {"command": vars(options), **found}
        Path(options.out).write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
