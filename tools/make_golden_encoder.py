"""Tiny random encoders and embedders, and what PyTorch computes with them; see make_golden.py.

    python tools/make_golden_encoder.py [--out tests/golden] [--seed 0] [case ...]

Each is one file of weights, configuration, inputs and results: `bert.npz`; `reranker.npz`, a BERT
with one score; `nv_embed.npz`, a decoder that sees both ways, with latent attention.
"""

import argparse
import json
import math
from pathlib import Path

import numpy as np
import torch
from make_golden import SIZES, randomize  # beside this file
from torch import nn
from torch.nn import functional as F


def build_bert(seed=0, **options):
    """A random BertForSequenceClassification with weights rounded to float16: its `bert` is one."""
    import transformers

    sizes = {key: value for key, value in SIZES.items() if key != "num_key_value_heads"}
    own = {"max_position_embeddings": 24, "num_labels": 3, "layer_norm_eps": 1e-3}
    config = transformers.BertConfig(**{**sizes, **own, **options})
    model = transformers.BertForSequenceClassification(config)
    randomize(model, seed, torch.float16)
    return model.eval()


def sample_bert(seed=0):
    """Tokens, which of them are real, and their types, int64 [3, 20] each: padded on the right."""
    generator = torch.Generator().manual_seed(seed + 1)
    tokens = torch.randint(0, SIZES["vocab_size"], (3, 20), generator=generator)
    slots = torch.arange(20)
    valid = (slots < torch.tensor([[20], [13], [5]])).long()
    return tokens, valid, (slots >= torch.tensor([[9], [4], [2]])).long()


def compute_bert(model, tokens, valid, types):
    """Float32 hidden states [B, T, D], pooled [B, D] and scores [B, C], as numpy."""
    inputs = {"input_ids": tokens, "attention_mask": valid, "token_type_ids": types}
    with torch.no_grad():
        found = model.bert(**inputs)
        arrays = found.last_hidden_state, found.pooler_output, model(**inputs).logits
    return dict(zip(("hidden", "pooled", "scores"), (a.numpy() for a in arrays), strict=True))


class PreNorm(nn.Module):
    """LayerNorm before a part, and of what the part looks at, if that is another sequence."""

    def __init__(self, width, part, other=False):
        super().__init__()
        self.fn, self.norm = part, nn.LayerNorm(width)
        self.norm_context = nn.LayerNorm(width) if other else None

    def forward(self, x, *others):
        """[B, T, D] to what the part gives."""
        return self.fn(self.norm(x), *(self.norm_context(other) for other in others))


class Look(nn.Module):
    """Every head of every token looks into a dictionary [N, D], one by one."""

    def __init__(self, width, heads, size):
        super().__init__()
        self.heads, self.size = heads, size
        self.to_q = nn.Linear(width, heads * size, bias=False)
        self.to_kv = nn.Linear(width, 2 * heads * size, bias=False)
        self.to_out = nn.Linear(heads * size, width, bias=False)

    def forward(self, x, table):
        """[B, T, D] to [B, T, D]."""
        queries, pairs, found = self.to_q(x), self.to_kv(table), []
        keys, values = pairs[:, : pairs.shape[1] // 2], pairs[:, pairs.shape[1] // 2 :]
        for head in range(self.heads):
            own = slice(head * self.size, (head + 1) * self.size)
            scores = queries[..., own] @ keys[:, own].T / math.sqrt(self.size)
            found.append(scores.softmax(-1) @ values[:, own])
        return self.to_out(torch.cat(found, -1))


class Gated(nn.Module):
    """Out(first half of in(x) * gelu(second half))."""

    def __init__(self, width):
        super().__init__()
        self.net = nn.ModuleList([nn.Linear(width, 8 * width), nn.Identity(),
                                  nn.Linear(4 * width, width)])  # fmt: skip

    def forward(self, x):
        """[B, T, D] to [B, T, D]."""
        units = self.net[0](x)
        half = units.shape[-1] // 2
        return self.net[2](units[..., :half] * F.gelu(units[..., half:]))


class NvEmbed(nn.Module):
    """A Mistral that sees both ways, and latent attention, under the released tensors' names."""

    def __init__(self, config):
        import transformers

        super().__init__()
        text, own = config["text_config"], config["latent_attention_config"]
        # As released, layers see the whole row whatever the window.
        kept = {name: value for name, value in text.items() if name != "sliding_window"}
        kept = transformers.MistralConfig(
            **kept, sliding_window=None, is_causal=False, attn_implementation="eager"
        )
        self.config, self.embedding_model = config, transformers.MistralModel(kept)
        width = own["latent_dim"]
        latent = self.latent_attention_model = nn.Module()
        look = Look(width, own["num_cross_heads"], own["cross_dim_head"])
        blocks = PreNorm(width, look, other=True), PreNorm(width, Gated(width))
        latent.cross_attend_blocks = nn.ModuleList(blocks)
        latent.latents = nn.Parameter(torch.zeros(own["num_latents_value"], width))

    def forward(self, tokens, valid):
        """[B, T] to hidden states [B, T, D] before and after the latent attention."""
        hidden = self.embedding_model(tokens, attention_mask=valid).last_hidden_state
        latent = self.latent_attention_model
        look, units = latent.cross_attend_blocks
        x = hidden + look(hidden, latent.latents)
        return hidden, x + units(x)


def nv_embed_config():
    """A tiny NV-Embed, with a window that its layers do not have."""
    own = {"num_latents_value": 6, "num_cross_heads": 3, "cross_dim_head": 5, "latent_dim": 32}
    own |= {"hidden_dim": 32, "output_normalize": True, "model_type": "latent_attention"}
    return {
        "architectures": ["NVEmbedModel"],
        "model_type": "nvembed",
        "text_config": {**SIZES, "sliding_window": 3, "rms_norm_eps": 1e-5, "hidden_act": "silu"},
        "latent_attention_config": own,
        "is_mask_instruction": True,
        "mask_type": "b",
        "padding_side": "right",
        "add_eos": True,
    }


def make_nv_embed(out, seed):
    """Writes the embedder's file: both states, and vectors without the instruction by each."""
    model, (tokens, valid, types) = NvEmbed(nv_embed_config()), sample_bert(seed)
    randomize(model, seed, torch.float16)
    states = valid * types  # what is no instruction
    with torch.no_grad():
        hidden, looked = model.eval()(tokens, valid)
    vectors = []
    for rows in (hidden, looked):
        means = [row[mask > 0].mean(0) for row, mask in zip(rows, states, strict=True)]
        vectors.append(torch.stack([mean / mean.norm() for mean in means]).numpy())
    assert np.abs(vectors[0] - vectors[1]).max() >= 0.1, "latent attention changes too little"
    arrays = {
        "tokens": tokens.numpy().astype(np.int32), "valid": valid.numpy() > 0,
        "states": states.numpy() > 0, "hidden": hidden.numpy(), "looked": looked.numpy(),
        "means": vectors[0], "vectors": vectors[1], "config": np.array(json.dumps(model.config)),
    }  # fmt: skip
    arrays |= {f"weights/{n}": x.half().numpy() for n, x in model.state_dict().items()}
    np.savez_compressed(Path(out) / "nv_embed.npz", **arrays)
    print(f"nv_embed: states std {arrays['looked'].std():.2f}")


def make_reranker(out, seed):
    """Writes the file of a BERT with one score."""
    make_bert(out, seed + 5, "reranker", num_labels=1)


def make_bert(out, seed, name="bert", **options):
    """Writes the encoder's file."""
    model, inputs = build_bert(seed, **options), sample_bert(seed)
    arrays = compute_bert(model, *inputs)
    assert arrays["scores"].std() >= 0.3, "scores are too small to tell models apart"
    names = ("tokens", "valid", "token_types")
    arrays |= {n: x.numpy().astype(np.int32) for n, x in zip(names, inputs, strict=True)}
    arrays |= {f"weights/{n}": x.half().numpy() for n, x in model.state_dict().items()}
    arrays["config"] = np.array(model.config.to_json_string(use_diff=False))
    Path(out).mkdir(parents=True, exist_ok=True)
    np.savez_compressed(Path(out) / f"{name}.npz", **arrays)
    print(f"{name}: scores std {arrays['scores'].std():.2f}")


def main():
    """Writes the cases named on the command line, or all."""
    cases = {"bert": make_bert, "reranker": make_reranker, "nv_embed": make_nv_embed}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="tests/golden")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("cases", nargs="*", choices=[*cases, []])
    arguments = parser.parse_args()
    for case in arguments.cases or cases:
        cases[case](arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
