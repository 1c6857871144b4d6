"""Tiny random models of every checkpoint family, and what PyTorch computes with them.

    python tools/make_golden.py [--out tests/golden] [--seed 0] [case ...]

Writes, for each case, a checkpoint folder in the Hugging Face layout and `golden.npz` beside its
weights: `tokens` int32 [B, T] and float32 `logits` [B, T, V]; for dense models also `pruned.npz`,
what is left when one KV group a layer and 16 of its FFN channels are silenced, and for some
`gradients.npz`, of the mean square of the logits, under the tensors' names. Encoders are made by
make_golden_encoder.py. The tests compare pangu_jax with these files and need no torch; `make
parity` builds fresh models with the functions here. Needs torch and transformers, and never imports
pangu_jax: the two sides share no code.

Weights, biases, gains and router factors are all random, so that each of them matters, and logits
have a standard deviation of at least 0.5. Weights are rounded to the type they are stored in before
PyTorch computes in float32, so that small files lose nothing.
"""

import argparse
import copy
import json
import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

BATCH, LENGTH = 2, 24


class PanguAttention(nn.Module):
    """Grouped-query attention with biases on q, k, v and o, half-split rotation."""

    def __init__(self, config):
        super().__init__()
        width, self.heads = config["hidden_size"], config["num_attention_heads"]
        self.kv_heads = config["num_key_value_heads"]
        self.size, self.theta = width // self.heads, config["rope_theta"]
        self.q_proj = nn.Linear(width, self.heads * self.size)
        self.k_proj = nn.Linear(width, self.kv_heads * self.size)
        self.v_proj = nn.Linear(width, self.kv_heads * self.size)
        self.o_proj = nn.Linear(self.heads * self.size, width)

    def rotate(self, x):
        """Turns pairs (i, i + size/2) of [B, heads, T, size] by position times frequency."""
        half = self.size // 2
        frequency = self.theta ** (-torch.arange(half, dtype=torch.float32) / half)
        angle = torch.arange(x.shape[2], dtype=torch.float32)[:, None] * frequency
        a, b = x[..., :half], x[..., half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def forward(self, x):
        """[B, T, D] to [B, T, D]."""
        batch, length, width = x.shape

        def heads(y, count):
            return y.view(batch, length, count, self.size).transpose(1, 2)

        q = self.rotate(heads(self.q_proj(x), self.heads))
        k = self.rotate(heads(self.k_proj(x), self.kv_heads))
        v = heads(self.v_proj(x), self.kv_heads)
        # Query head h reads key-value head h // (heads / kv_heads).
        k = k.repeat_interleave(self.heads // self.kv_heads, 1)
        v = v.repeat_interleave(self.heads // self.kv_heads, 1)
        score = q @ k.transpose(-1, -2) / math.sqrt(self.size)
        future = torch.ones(length, length, dtype=torch.bool).triu(1)
        mixed = score.masked_fill(future, -torch.inf).softmax(-1) @ v
        return self.o_proj(mixed.transpose(1, 2).reshape(batch, length, width))


class SwiGlu(nn.Module):
    """down(silu(gate(x)) * up(x)) without biases."""

    def __init__(self, width, hidden):
        super().__init__()
        self.gate_proj = nn.Linear(width, hidden, bias=False)
        self.up_proj = nn.Linear(width, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, width, bias=False)

    def forward(self, x):
        """[..., D] to [..., D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GroupedExperts(nn.Module):
    """Mixture of grouped experts: arXiv 2505.21411, equations 5-7, and the released scale."""

    def __init__(self, config, per_group):
        super().__init__()
        width, count = config["hidden_size"], config["num_experts"]
        hidden = config["moe_intermediate_size"]
        self.groups, self.per_group = config["num_experts_per_tok"], per_group
        self.gate = nn.Linear(width, count, bias=False)
        self.router_scale = nn.Parameter(torch.ones(1, count))
        self.experts = nn.ModuleList(SwiGlu(width, hidden) for _ in range(count))
        self.shared_expert = SwiGlu(width, config["shared_expert_intermediate_size"])
        self.margin = math.inf

    def forward(self, x):
        """[B, T, D] to [B, T, D], one token and one expert at a time."""
        probs = self.gate(x).softmax(-1)
        size = len(self.experts) // self.groups
        rows = []
        for token, prob in zip(x.flatten(0, 1), probs.flatten(0, 1), strict=True):
            y = torch.zeros_like(token)
            for group in range(self.groups):
                part = prob[group * size : (group + 1) * size]
                best = part.argsort(descending=True)
                k = self.per_group
                gap = part[best[k - 1]].log() - part[best[k]].log()
                self.margin = min(self.margin, float(gap))
                for local in best[:k].tolist():
                    expert = group * size + local
                    weight = prob[expert] * self.router_scale[0, expert]
                    y = y + weight * self.experts[expert](token)
            rows.append(y)
        return torch.stack(rows).view_as(x) + self.shared_expert(x)


class RmsNorm(nn.Module):
    """Root-mean-square normalization with gains."""

    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        """[..., D] to [..., D]."""
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps))


class PanguLayer(nn.Module):
    """Attention and grouped experts, each in a residual branch behind a norm."""

    def __init__(self, config, per_group):
        super().__init__()
        width, eps = config["hidden_size"], config["rms_norm_eps"]
        self.input_layernorm = RmsNorm(width, eps)
        self.self_attn = PanguAttention(config)
        self.post_attention_layernorm = RmsNorm(width, eps)
        self.mlp = GroupedExperts(config, per_group)

    def forward(self, x):
        """[B, T, D] to [B, T, D]."""
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class PanguProMoE(nn.Module):
    """The model of arXiv 2505.21411 under the released checkpoint's tensor names."""

    def __init__(self, config, per_group=1):
        super().__init__()
        self.config = config
        width = config["hidden_size"]
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config["vocab_size"], width)
        self.model.layers = nn.ModuleList(
            PanguLayer(config, per_group) for _ in range(config["num_hidden_layers"])
        )
        self.model.norm = RmsNorm(width, config["rms_norm_eps"])
        self.lm_head = nn.Linear(width, config["vocab_size"], bias=False)

    def forward(self, tokens):
        """[B, T] to logits [B, T, V]."""
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x)
        return self.lm_head(self.model.norm(x))


def pangu_config(hidden=4):
    """A tiny Pangu Pro MoE; four groups, as four experts are used by a token."""
    return {
        "architectures": ["PanguProMoEForCausalLM"],
        "model_type": "PanGuMoE",
        "vocab_size": 40,
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "moe_intermediate_size": hidden,
        "shared_expert_intermediate_size": 3 * hidden,
        "num_experts": 16,
        "num_experts_per_tok": 4,
        "router_aux_loss_coef": 0.001,
        "pad_token_id": 0,
        "torch_dtype": "bfloat16",
    }


SIZES = {
    "vocab_size": 48,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
ROUTED = {
    "num_hidden_layers": 4,
    "moe_intermediate_size": 8,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "head_dim": 8,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}

# case: (transformers class, its configuration, type of the stored weights)
CASES = {
    "llama2": ("Llama", {}, torch.float32),
    "llama3": (
        "Llama",
        {
            "rope_parameters": LLAMA3,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": True,
            "head_dim": 12,
        },
        torch.float16,
    ),
    "mistral": ("Mistral", {"sliding_window": 5, "head_dim": 12}, torch.bfloat16),
    "gemma2": (
        "Gemma2",
        {
            "num_hidden_layers": 3,
            "pad_token_id": None,  # torch keeps gradients from the embedding of a padding token
            "head_dim": 12,
            "query_pre_attn_scalar": 20,
            "sliding_window": 5,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 4.0,
        },
        torch.float32,
    ),
    "qwen2": ("Qwen2", {"num_hidden_layers": 3}, torch.bfloat16),
    "qwen3": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}, torch.float32),
    "qwen3_moe": (
        "Qwen3Moe",
        {**ROUTED, "norm_topk_prob": True, "mlp_only_layers": [0], "decoder_sparse_step": 2},
        torch.bfloat16,
    ),
    "qwen3_moe_fused": (
        "Qwen3Moe",
        {**ROUTED, "norm_topk_prob": False, "mlp_only_layers": [1, 2], "attention_bias": True},
        torch.bfloat16,
    ),
    "pangu_embedded": ("Llama", {"attention_bias": True}, torch.bfloat16),
    "pangu_pro_moe": ("Pangu", {}, torch.bfloat16),
}

# Of these the gradients are kept, too: together they have every form of a dense layer.
GRADIENTS = ("llama3", "mistral", "gemma2")


def build(case, seed=0):
    """A random model: (model, whose parameters are rounded to the stored type; that type)."""
    kind, options, dtype = CASES[case]
    if kind == "Pangu":
        model = PanguProMoE({**pangu_config(), **options})
    else:
        import transformers

        config = getattr(transformers, f"{kind}Config")(
            **{**SIZES, **options}, attn_implementation="eager"
        )
        model = getattr(transformers, f"{kind}ForCausalLM")(config)
    randomize(model, seed, dtype)
    return model.eval(), dtype


def randomize(model, seed, dtype):
    """Random values everywhere, rounded to `dtype`; gains around 1, matrices keep their scale.

    Logits stay small, so that an absolute difference of 1e-5 is above float32 rounding.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn(value.shape, generator=generator)
            if name.lower().endswith("norm.weight") or "router_scale" in name:
                # Gemma's gains are stored less 1.
                noise = 0.3 * noise + (getattr(model.config, "model_type", "") != "gemma2")
            elif "embed_tokens" in name:
                noise = 0.12 * noise
            elif value.ndim == 1:
                noise = 0.3 * noise
            else:
                gain = 0.7 if "lm_head" in name else 1.2
                noise = gain * noise / math.sqrt(value.shape[-1])
            value.copy_(noise.to(dtype))


def gradients(model, tokens):
    """{tensor: gradient} of the mean square of the logits, float32, as numpy."""
    model.zero_grad()
    (model(tokens).logits ** 2).mean().backward()
    return {name: value.grad.numpy() for name, value in model.named_parameters()}


def compute(model, tokens):
    """Float32 logits of int64 tokens, as numpy."""
    with torch.no_grad():
        out = model(tokens)
    return getattr(out, "logits", out).float().numpy()


def sample(model, seed=0):
    """Random tokens [B, T] in the model's vocabulary."""
    vocab = model.lm_head.weight.shape[0]
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.randint(0, vocab, (BATCH, LENGTH), generator=generator)


def save(case, model, folder, dtype):
    """The checkpoint folder, under the family's own names and configuration."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if case == "pangu_pro_moe" or case == "qwen3_moe_fused":
        tensors = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        config = model.config if isinstance(model.config, dict) else model.config.to_dict()
    else:
        model.to(dtype).save_pretrained(folder)
        model.float()
        (folder / "generation_config.json").unlink(missing_ok=True)
        config = json.loads((folder / "config.json").read_text())
    if case == "pangu_embedded":
        config = as_embedded(config)
    if case == "qwen3_moe_fused":
        config["architectures"] = ["Qwen3MoeForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def as_embedded(config):
    """A Llama's configuration under the keys of openPangu-Embedded."""
    gone = ("attention_bias", "mlp_bias", "pretraining_tp", "head_dim", "rope_parameters")
    kept = {key: value for key, value in config.items() if key not in gone}
    return {
        **kept,
        "architectures": ["PanguEmbeddedForCausalLM"],
        "model_type": "PanguEmbedded",
        "bias": True,
        "rope_theta": 10000.0,
    }


def two_per_group(model, seed=0):
    """The same parameters in a model that uses two experts of each group."""
    twin = PanguProMoE(model.config, per_group=2)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def pruned(model, tokens, seed=0):
    """Which units of a dense model are kept, and its logits with all others silenced.

    Silenced means that the out projection reads zeros: a whole KV group with its query heads, and
    FFN channels. Nothing is cut out, so this shares no slicing with what it is compared to.
    """
    rng = np.random.default_rng(seed)
    model, kept = copy.deepcopy(model), {"groups": [], "channels": []}
    config = model.config
    count = config.num_attention_heads // config.num_key_value_heads
    with torch.no_grad():
        for layer in model.model.layers:
            groups = np.sort(rng.permutation(config.num_key_value_heads)[:-1])
            channels = np.sort(rng.permutation(config.intermediate_size)[:-16])
            size = layer.self_attn.o_proj.in_features // config.num_attention_heads
            columns = np.arange(layer.self_attn.o_proj.in_features) // (count * size)
            layer.self_attn.o_proj.weight[:, torch.tensor(~np.isin(columns, groups))] = 0
            gone = np.setdiff1d(np.arange(config.intermediate_size), channels)
            layer.mlp.down_proj.weight[:, torch.tensor(gone)] = 0
            kept["groups"].append(groups)
            kept["channels"].append(channels)
    found = {name: np.array(rows, np.int32) for name, rows in kept.items()}
    return {**found, "logits": compute(model, tokens)}


def make(case, out, seed):
    """Writes one case."""
    model, dtype = build(case, seed)
    tokens = sample(model, seed)
    arrays = {"tokens": tokens.numpy().astype(np.int32), "logits": compute(model, tokens)}
    if case == "pangu_pro_moe":
        twin = two_per_group(model)
        arrays["logits_two_per_group"] = compute(twin, tokens)
        margins = [layer.mlp.margin for m in (model, twin) for layer in m.model.layers]
        assert min(margins) > 1e-4, f"experts too close to call: {margins}; take another seed"
    deviation = arrays["logits"].std()
    assert deviation >= 0.5, f"{case}: logits have a deviation of {deviation}"
    # Before `save`, which rounds the rotary frequencies too.
    cut = None if "moe" in case else pruned(model, tokens, seed)
    slopes = gradients(model, tokens) if case in GRADIENTS else None
    save(case, model, Path(out) / case, dtype)
    np.savez_compressed(Path(out) / case / "golden.npz", **arrays)
    if cut:
        np.savez_compressed(Path(out) / case / "pruned.npz", **cut)
    if slopes:
        np.savez_compressed(Path(out) / case / "gradients.npz", **slopes)
    size = sum(file.stat().st_size for file in (Path(out) / case).iterdir())
    print(f"{case}: logits std {deviation:.2f}, {size / 1024:.0f} KiB")


def main():
    """Writes the cases named on the command line, or all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="tests/golden")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []])
    arguments = parser.parse_args()
    for case in arguments.cases or CASES:
        make(case, arguments.out, arguments.seed)


if __name__ == "__main__":
    main()
