"""Times the exported decoder against torch.onnx.export of the same transformers model.

    python tools/bench/export_latency.py --out export_latency.json

Makes a Llama of 100 M parameters with random weights in transformers, saves it, opens the same
checkpoint here, exports both to ONNX (prefill of 128 tokens, one step with 512 tokens cached), and
times the four graphs with onnxruntime on CPU, ours and the peer's in turn. Prints the ratio of
minima and of medians, and the sizes of the files; `--out` writes the same as JSON.
Needs torch, transformers and onnxscript (the "parity" extra).
"""

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

PREFILL, CACHED = 128, 512


def peer_model(folder: Path):
    """The transformers model, saved into the folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=768, intermediate_size=2048, num_hidden_layers=12,
        num_attention_heads=12, num_key_value_heads=4, max_position_embeddings=2048,
        tie_word_embeddings=True, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    model.save_pretrained(folder)
    return model, sum(p.numel() for p in model.parameters())


def export_peer(model, folder: Path) -> dict[str, Path]:
    """prefill: ids to logits of the last token and caches; decode: one token and caches."""
    import torch
    from transformers import DynamicCache

    layers = model.config.num_hidden_layers

    class Prefill(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids):
            out = self.model(input_ids=ids, use_cache=True, logits_to_keep=1)
            caches = [x for layer in out.past_key_values.layers for x in (layer.keys, layer.values)]
            return out.logits, *caches

    class Decode(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, position, *past):
            pairs = [(past[2 * i], past[2 * i + 1]) for i in range(layers)]
            out = self.model(
                input_ids=ids, position_ids=position, past_key_values=DynamicCache(pairs),
                use_cache=True,
            )  # fmt: skip
            caches = [x for layer in out.past_key_values.layers for x in (layer.keys, layer.values)]
            return out.logits, *caches

    size = (1, model.config.num_key_value_heads, CACHED,
            model.config.hidden_size // model.config.num_attention_heads)  # fmt: skip
    past = tuple(torch.randn(size) for _ in range(2 * layers))
    ids = torch.zeros((1, 1), dtype=torch.int64)
    cases = {
        "prefill": (Prefill(), (torch.zeros((1, PREFILL), dtype=torch.int64),)),
        "decode": (Decode(), (ids, torch.full((1, 1), CACHED), *past)),
    }
    paths = {}
    for name, (module, arguments) in cases.items():
        paths[name] = folder / f"peer_{name}.onnx"
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module, arguments, str(paths[name]), dynamo=True, external_data=True, verbose=False
            )
    return paths


def export_ours(checkpoint: Path, folder: Path) -> dict[str, Path]:
    """The same two, exported as the command line does."""
    from pangu_jax.checkpoint.open import open_checkpoint
    from pangu_jax.export import decoder
    from pangu_jax.export.onnx.write import export

    params, cfg, _ = open_checkpoint(checkpoint, dtype="float32")
    bundle = decoder.bundle(params, cfg, profiles=(PREFILL,), slots=CACHED + 1)
    folder.mkdir()
    export(bundle, folder)
    return {"prefill": folder / f"prefill_{PREFILL}.onnx", "decode": folder / "decode.onnx"}


def inputs(session, rng):
    """Random arrays for a session's inputs; a full cache, and the position after it."""
    types = {"tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(float)": np.float32}
    made = {}
    for argument in session.get_inputs():
        kind = types[argument.type]
        if kind == np.float32:
            made[argument.name] = rng.normal(size=argument.shape).astype(kind)
        elif "position" in argument.name:
            made[argument.name] = np.full(argument.shape, CACHED, kind)
        elif argument.name == "length":
            made[argument.name] = np.full(argument.shape, PREFILL, kind)
        else:
            made[argument.name] = rng.integers(0, 32000, argument.shape).astype(kind)
    return made


def compare(ours: Path, peer: Path, repeats: int) -> dict:
    """Milliseconds of both, measured in turn."""
    import onnxruntime

    sessions = {
        n: onnxruntime.InferenceSession(str(p)) for n, p in (("ours", ours), ("peer", peer))
    }
    rng = np.random.default_rng(0)
    given = {n: inputs(s, rng) for n, s in sessions.items()}
    times = {n: [] for n in sessions}
    for turn in range(repeats + 3):
        for name in ("ours", "peer") if turn % 2 else ("peer", "ours"):
            start = time.perf_counter()
            sessions[name].run(None, given[name])
            if turn >= 3:
                times[name].append(1e3 * (time.perf_counter() - start))
    row = {"repeats": repeats}
    for name, values in times.items():
        row[f"{name}_min_ms"], row[f"{name}_median_ms"] = min(values), statistics.median(values)
    row["ratio_min"] = row["ours_min_ms"] / row["peer_min_ms"]
    row["ratio_median"] = row["ours_median_ms"] / row["peer_median_ms"]
    return row


def size(path: Path) -> int:
    """Bytes of a graph with the weights it reads."""
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    names = {
        f.value for t in model.graph.initializer for f in t.external_data if f.key == "location"
    }
    return path.stat().st_size + sum((path.parent / n).stat().st_size for n in names)


def main():
    """Exports, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--keep", type=Path, help="folder for the graphs; temporary without")
    parser.add_argument("--out", type=Path, help="also write JSON here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        if not (folder / "ours").exists():
            model, count = peer_model(folder / "model")
            print(f"{count / 1e6:.1f} M parameters")
            peer = export_peer(model, folder)
            del model
            ours = export_ours(folder / "model", folder / "ours")
        else:
            peer = {n: folder / f"peer_{n}.onnx" for n in ("prefill", "decode")}
            ours = {"prefill": folder / "ours" / f"prefill_{PREFILL}.onnx",
                    "decode": folder / "ours" / "decode.onnx"}  # fmt: skip
        results = {"machine": f"{platform.machine()}, {platform.processor()}"}
        for name in ("prefill", "decode"):
            row = compare(ours[name], peer[name], options.repeats)
            row["ours_bytes"], row["peer_bytes"] = size(ours[name]), size(peer[name])
            results[name] = row
            print(
                f"{name:8} ours {row['ours_min_ms']:.1f} / {row['ours_median_ms']:.1f} ms, peer "
                f"{row['peer_min_ms']:.1f} / {row['peer_median_ms']:.1f} ms (min / median), ratio "
                f"{row['ratio_min']:.3f} / {row['ratio_median']:.3f}; bytes {row['ours_bytes']:,} "
                f"against {row['peer_bytes']:,}"
            )
    if options.out:
        options.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
