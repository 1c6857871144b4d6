"""Trains TimePro's released model files on Exchange-720 by the released protocol.

    git clone https://github.com/xwmaxwma/TimePro && git -C TimePro checkout 595836f
    python tools/bench/timepro_released.py TimePro exchange_rate.txt.gz --seeds 2023 0 1

The model and its layers are the clone's; its two CUDA operators are written here in plain torch,
and of timm only what the files import. Settings are those of `scripts/TimePro_Exchange.sh` at a
horizon of 720, the loop is `run.py`'s: batches of 16, the last one left out; after each epoch the
error on 32 of the 41 validation windows, drawn anew; the rate as it is for two epochs, then halved
with each; at most ten epochs, a patience of three. Prints, for each epoch, the error by which the
epoch is chosen, that on all validation windows and that on the test windows; then the test error
of the chosen epoch. Standardized with the training rows, as published figures are. Needs torch
and einops; a CPU takes some minutes per epoch.
"""

import argparse
import gzip
import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import torch
from timepro_step import sample  # beside this file
from torch import nn

LENGTH, HORIZON, BATCH, RATE, EPOCHS, PATIENCE = 96, 720, 16, 2e-4, 10, 3


class Sampling(nn.Module):
    """DCNv4's layer as TimePro calls it, with DCNv4's own initial values."""

    def __init__(self, channels, group, **_):
        super().__init__()
        self.group = group
        self.offset_mask = nn.Linear(channels, math.ceil(27 * group / 8) * 8)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels, bias=False)
        for zero in (*self.offset_mask.parameters(), self.value_proj.bias):
            nn.init.zeros_(zero)
        nn.init.xavier_uniform_(self.value_proj.weight)
        nn.init.xavier_uniform_(self.output_proj.weight)

    def forward(self, x, shape):
        """[B, P * N, C] to the same; `shape` is (P, N)."""
        grid = x.unflatten(1, shape)
        read = sample(self.value_proj(grid), self.offset_mask(grid), self.group)
        return self.output_proj(read).flatten(1, 2)


def scan(u, delta, A, B, D=None, delta_bias=None, **_):
    """The selective scan's states, [B, E, L], for one state per channel."""
    step = nn.functional.softplus(delta + delta_bias[:, None])
    decay, enters = torch.exp(step * A), step * B * u
    state, states = torch.zeros_like(u[..., 0]), []
    for n in range(u.shape[-1]):
        state = decay[..., n] * state + enters[..., n]
        states.append(state)
    return torch.stack(states, -1)


class Whole(nn.Identity):
    """timm's DropPath where nothing is dropped."""

    def __init__(self, rate=0.0):
        super().__init__()
        assert rate == 0


def released(clone):
    """The clone's model at the settings of Exchange-720."""
    layers = {"DropPath": Whole, "trunc_normal_": None, "to_2tuple": None}
    parts = {"timm": {}, "timm.models": {}, "timm.models.layers": layers}
    parts |= {"selective_scan_cuda_oflex_rh": {}, "DCNv4": {"DCNv4": Sampling}}
    for name, of in parts.items():
        sys.modules[name] = ModuleType(name)
        vars(sys.modules[name]).update(of)
    for name in ("model", "layers"):  # not their __init__, which may import all other models
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = [f"{clone}/{name}"]
    from model import TimePro

    TimePro.selective_scan_fn = scan
    sizes = {"seq_len": LENGTH, "pred_len": HORIZON, "patch_len": 8, "stride": 4, "enc_in": 8}
    rest = {"use_norm": True, "d_model": 16, "dropout": 0.1, "e_layers": 1}
    return TimePro.Model(SimpleNamespace(**sizes, **rest)).float()


def windows_of(path):
    """Standardized windows [N, T, V], and which of them train, validate and test."""
    with gzip.open(path, "rt") as file:
        rows = np.loadtxt(file, delimiter=",")
    train, test = int(0.7 * len(rows)), int(0.2 * len(rows))
    mean, deviation = rows[:train].mean(0), rows[:train].std(0)
    series = torch.tensor((rows - mean) / deviation, dtype=torch.float32)
    found = series.unfold(0, LENGTH + HORIZON, 1).transpose(1, 2)
    borders = ((0, train), (train - LENGTH, len(rows) - test), (len(rows) - test - LENGTH, None))
    ends = [len(rows) if end is None else end for _, end in borders]
    starts = [begin for begin, _ in borders]
    whole = LENGTH + HORIZON - 1
    return found, [torch.arange(a, b - whole) for a, b in zip(starts, ends, strict=True)]


@torch.no_grad()
def error(model, windows, which):
    """Mean squared error over these windows."""
    model.eval()
    found = []
    for part in which.split(64):
        w = windows[part]
        off = model(w[:, :LENGTH], None, None, None) - w[:, LENGTH:]
        found.append((off**2).mean((1, 2)))
    model.train()
    return torch.cat(found).mean().item()


def fit(model, windows, parts):
    """Trains; the test error of the epoch that the released loop keeps."""
    training, validation, test = parts
    adam = torch.optim.Adam(model.parameters(), lr=RATE)
    best, chosen, waited = math.inf, None, 0
    for epoch in range(1, EPOCHS + 1):
        for part in training[torch.randperm(len(training))].split(BATCH):
            if len(part) < BATCH:
                break
            w = windows[part]
            adam.zero_grad()
            ((model(w[:, :LENGTH], None, None, None) - w[:, LENGTH:]) ** 2).mean().backward()
            adam.step()
        drawn = validation[torch.randperm(len(validation))]
        seen = drawn[: len(drawn) // BATCH * BATCH]
        errors = [error(model, windows, which) for which in (seen, validation, test)]
        print(f"  epoch {epoch}: " + ", ".join(f"{x:.4f}" for x in errors), flush=True)
        if errors[0] <= best:
            best, chosen, waited = errors[0], errors[2], 0
        elif (waited := waited + 1) >= PATIENCE:
            break
        for group in adam.param_groups:
            group["lr"] = RATE * 0.5 ** (epoch - 1)
    return chosen


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("clone", help="of github.com/xwmaxwma/TimePro")
    parser.add_argument("data", help="exchange_rate.txt.gz")
    parser.add_argument("--seeds", type=int, nargs="+", default=[2023])
    options = parser.parse_args()
    windows, parts = windows_of(options.data)
    found = []
    for seed in options.seeds:
        torch.manual_seed(seed)
        model = released(options.clone)
        found.append(fit(model, windows, parts))
        print(f"seed {seed}: {found[-1]:.4f}", flush=True)
    spread = f" ± {np.std(found, ddof=1):.4f}" if len(found) > 1 else ""
    print(f"{np.mean(found):.4f}{spread}")


if __name__ == "__main__":
    main()
