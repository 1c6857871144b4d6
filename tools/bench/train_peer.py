"""Times the training step of transformers with torch.compile, beside `train_step.py`.

    python tools/bench/train_peer.py --preset qwen3-0.6b --batch 8 --length 2048

Weights and their moments are bfloat16, attention is torch's scaled_dot_product_attention over one
document a row, and the optimizer is the fused AdamW. Prints tokens per second (the median of some
rounds) and the peak of the memory allocated; `--out` writes the same as JSON.
"""

import argparse
import json
import statistics
import time

import torch
from train_step import SHAPES  # beside this file
from transformers import Qwen3Config, Qwen3ForCausalLM, __version__

from pangu_jax.core.files import atomic_write


def measure(options):
    """The results as they are written."""
    vocab, width, layers, kv_heads, q_per_kv, size, hidden = SHAPES[options.preset]
    cfg = Qwen3Config(
        vocab_size=vocab,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=kv_heads * q_per_kv,
        num_key_value_heads=kv_heads,
        head_dim=size,
        intermediate_size=hidden,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        net = Qwen3ForCausalLM(cfg).to(torch.bfloat16).train()
        tokens = torch.randint(0, vocab, (options.batch, options.length))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)
    forward = net if options.eager else torch.compile(net)

    def step():
        loss = forward(input_ids=tokens, labels=tokens, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    times = []
    for count in (3, *[options.steps] * options.rounds):
        began = time.perf_counter()
        for _ in range(count):
            step()
        wait()
        times.append((time.perf_counter() - began) / count)
    seconds = statistics.median(times[1:])
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else device,
        "torch": torch.__version__,
        "transformers": __version__,
        "command": vars(options),
        "tokens_per_s": options.batch * options.length / seconds,
        "step_s": seconds,
        "rounds_s": times[1:],
        "first_steps_s": 3 * times[0],
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else 0,
    }


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="qwen3-0.6b", choices=SHAPES)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--out")
    options = parser.parse_args()
    result = measure(options)
    print(
        f"{options.preset} transformers{' eager' if options.eager else ''} on {result['device']}: "
        f"{result['tokens_per_s']:,.0f} tok/s, {result['step_s'] * 1e3:.1f} ms per step, "
        f"peak {result['peak_gib']:.1f} GiB, first three steps {result['first_steps_s']:.0f} s",
        flush=True,
    )
    if options.out:
        with atomic_write(options.out, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
