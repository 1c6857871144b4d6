"""Times TimePro's training step on ETTh1-96 sizes beside a torch implementation, in one run.

    python tools/bench/timepro_step.py --rounds 5 --out step.json

Both take the published settings (batch 16, look-back 96, horizon 96, 7 variates, two layers), the
same random series and Adam. The torch side is written here, from the description of the released
code, with its two CUDA operators in plain torch: the scan as a loop over the 7 variates, the
sampling by gathering the corners of all taps at once. Rounds alternate between the two; minima and
medians of all steps are printed and their ratios. torch is asked for; the package never needs it.
"""

import argparse
import json
import math
import os
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch import nn

from pangu_jax.models import timepro
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.nn.how import HOW, How
from pangu_jax.train.fit_config import FitConfig
from pangu_jax.train.forecast import adam, forecast_loss
from pangu_jax.train.step import init_state, make_step

VARIATES, BATCH = 7, 16


class Mixer(nn.Module):
    """Scan over the variates, sampling of its states, gate."""

    def __init__(self, patches, channels):
        super().__init__()
        width = patches * channels
        self.patches, self.channels, self.rank = patches, channels, math.ceil(width / 16)
        self.into = nn.Linear(width, 2 * width, bias=False)
        self.select = nn.Linear(width, self.rank + 2, bias=False)
        self.step = nn.Linear(self.rank, width)
        self.rate_log, self.skip = (nn.Parameter(f(width)) for f in (torch.zeros, torch.ones))
        self.value, self.out = (nn.Linear(channels, channels, bias=b) for b in (True, False))
        self.offset_mask = nn.Linear(channels, math.ceil(27 * channels / 16 / 8) * 8)
        nn.init.zeros_(self.offset_mask.weight)
        nn.init.zeros_(self.offset_mask.bias)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        """Tokens [B, V, D] to what is added to them."""
        u, gate = self.into(x).chunk(2, -1)
        low, enters, reads = self.select(u).split([self.rank, 1, 1], -1)
        step = nn.functional.softplus(self.step(low))
        decay, fresh = torch.exp(-step * torch.exp(self.rate_log)), step * enters * u
        state, states = torch.zeros_like(u[:, 0]), []
        for n in range(u.shape[1]):
            state = decay[:, n] * state + fresh[:, n]
            states.append(state)
        batch, variates, width = u.shape
        grid = torch.stack(states, 1).view(batch, variates, self.patches, self.channels)
        grid = grid.transpose(1, 2)
        read = self.out(sample(self.value(grid), self.offset_mask(grid), self.channels // 16))
        y = read.transpose(1, 2).reshape(batch, variates, width) * reads + u * self.skip
        return self.norm(y) * nn.functional.silu(gate)


def sample(values, numbers, groups):
    """Nine bilinear samples per cell, all corners gathered at once."""
    batch, height, width, channels = values.shape
    x = numbers[..., : 27 * groups].reshape(batch, height, width, groups, 27)
    moves, masks = x[..., :18].unflatten(-1, (9, 2)), x[..., 18:]
    tap = torch.arange(9)
    rows = torch.arange(height)[:, None, None, None] + 0.5 * (tap % 3 - 1 + moves[..., 1])
    columns = torch.arange(width)[:, None, None] + 0.5 * (tap // 3 - 1 + moves[..., 0])
    top, left = rows.floor(), columns.floor()
    table = values.view(batch, height * width, groups, -1).transpose(1, 2)
    size, out = channels // groups, 0
    for dy in (0, 1):
        for dx in (0, 1):
            y, x = top + dy, left + dx
            weight = (1 - (rows - y).abs()) * (1 - (columns - x).abs()) * masks
            there = (y >= 0) & (y < height) & (x >= 0) & (x < width)
            at = y.clamp(0, height - 1) * width + x.clamp(0, width - 1)
            at = at.long().permute(0, 3, 1, 2, 4).reshape(batch, groups, -1, 1)
            corner = table.gather(2, at.expand(-1, -1, -1, size))
            corner = corner.view(batch, groups, height, width, 9, size).permute(0, 2, 3, 1, 4, 5)
            out = out + (corner * (weight * there)[..., None]).sum(4)
    return out.reshape(values.shape)


class Block(nn.Module):
    """Two mixers and the feed-forward layer."""

    def __init__(self, patches, channels):
        super().__init__()
        width = patches * channels
        self.ahead, self.back = Mixer(patches, channels), Mixer(patches, channels)
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        """Tokens [B, V, D] to tokens."""
        x = x + self.ahead(x) + self.back(x.flip(1)).flip(1)
        return x + self.down(nn.functional.gelu(self.up(self.norm(x))))


class Peer(nn.Module):
    """The model in torch."""

    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        patches = cfg.mixer.patches
        self.embed = nn.Linear(cfg.patch, cfg.channels, bias=False)
        self.dropout = nn.Dropout(cfg.dropout)
        self.blocks = nn.ModuleList(Block(patches, cfg.channels) for _ in range(cfg.layers))
        self.norm = nn.LayerNorm(cfg.width)
        self.head = nn.Linear(cfg.width, cfg.horizon)

    def forward(self, x):
        """Windows [B, T, V] to forecasts [B, H, V]."""
        mean = x.mean(1, keepdim=True).detach()
        x = x - mean
        deviation = torch.sqrt(torch.var(x, 1, keepdim=True, unbiased=False) + 1e-5)
        z = nn.functional.pad((x / deviation).transpose(1, 2), (0, self.cfg.stride), "replicate")
        z = self.embed(z.unfold(-1, self.cfg.patch, self.cfg.stride))
        tokens = self.dropout(z).flatten(2)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(self.norm(tokens)).transpose(1, 2) * deviation + mean


def torch_round(cfg, series, starts):
    """A function that runs one torch step."""
    torch.manual_seed(0)
    model = Peer(cfg)
    adam = torch.optim.Adam(model.parameters(), lr=7e-5)
    rows = starts[:, None] + np.arange(cfg.look_back + cfg.horizon)
    both = torch.tensor(series[rows])
    seen, wanted = both[:, : cfg.look_back], both[:, cfg.look_back :]

    def run():
        adam.zero_grad()
        loss = nn.functional.mse_loss(model(seen), wanted)
        loss.backward()
        adam.step()
        return loss.item()

    return run


def jax_round(cfg, series, starts, how=HOW):
    """A function that runs one step of ours."""
    optimizer = adam(FitConfig(learning_rate=7e-5), 1000)
    step = make_step(forecast_loss(cfg, how=how), optimizer)
    table, key = jnp.asarray(series), jax.random.key(0)
    batch = {"starts": starts, "draw": np.uint32([0, 0]), "place": np.int32([0, 0])}
    batch = jax.tree.map(jnp.asarray, batch)
    box = [init_state(timepro.spec(cfg), optimizer, key=key)]

    def run():
        box[0], metrics = step(box[0], batch, key, table)
        jax.block_until_ready(box[0])
        return float(metrics["loss"])

    return run


def _cores():
    """How many cores this process may use; `taskset -c 0` in front makes it one."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30, help="steps per round")
    parser.add_argument("--threads", type=int, help="of torch; default its own choice")
    parser.add_argument("--all", action="store_true", help="two more of ours, to compare")
    parser.add_argument("--out")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    cfg = TimeProConfig()
    rng = np.random.default_rng(0)
    series = rng.normal(size=(9000, VARIATES)).astype(np.float32)
    starts = np.arange(BATCH, dtype=np.int32)
    runs = {
        "torch": torch_round(cfg, series, starts),
        "jax": jax_round(cfg, series, starts),
    }
    if options.all:
        gathered = {"deform_sample": "reference"}
        runs["jax, corners gathered"] = jax_round(cfg, series, starts, How(impl=gathered))
        runs["jax, no states"] = jax_round(TimeProConfig(state=False), series, starts)
    times, work = {name: [] for name in runs}, {name: [] for name in runs}
    for run in runs.values():
        for _ in range(3):
            run()
    for _ in range(options.rounds):
        for name, run in runs.items():
            for _ in range(options.steps):
                began, cpu = time.perf_counter(), time.process_time()
                run()
                times[name].append((time.perf_counter() - began) * 1e3)
                work[name].append((time.process_time() - cpu) * 1e3)
    result = {
        "machine": f"{platform.processor() or platform.machine()}, {_cores()} cores used",
        "jax": jax.__version__,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "minimum_ms": {n: min(t) for n, t in times.items()},
        "median_ms": {n: float(np.median(t)) for n, t in times.items()},
        # Processor time of all threads: what a busy machine disturbs least.
        "cpu_minimum_ms": {n: min(t) for n, t in work.items()},
        "cpu_median_ms": {n: float(np.median(t)) for n, t in work.items()},
    }
    for kind in ("minimum_ms", "median_ms", "cpu_minimum_ms", "cpu_median_ms"):
        base = result[kind]["torch"]
        for name, value in result[kind].items():
            print(
                f"{kind:14} {name:22} {value:8.2f}   torch / this {base / value:5.2f}", flush=True
            )
    if options.out:
        with open(options.out, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
