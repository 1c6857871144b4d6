"""TimePro and its two operators in plain PyTorch loops, and what they compute from random numbers.

    python tools/make_golden_timepro.py [--out tests/golden] [--seed 0] [--check FOLDER]

Writes `timepro.npz` (a tiny model of random parameters, its forecast, a loss and its gradients) and
`operators.npz` (the selective scan and the deformable sampling), all computed in float64. The tests
compare pangu_jax with these files and need no torch. Needs torch, and never imports pangu_jax: the
two sides share no code. Every sample and every step of the recurrence is written out here, after
the description of arXiv 2505.20774 and its released code, and under the names of the latter.

FOLDER holds figures of the released code, under the same names (`timepro_small_group2.npz` and
`ops_float64.npz`). With `--check` it is printed how far the loops are from them, and nothing is
written if that is further than float64 rounding (float32 for what is stored as such).
"""

import argparse
import math
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

EPS, GROUP = 1e-5, 16
SIZES = {
    "seq_len": 14,
    "pred_len": 5,
    "patch_len": 8,
    "stride": 6,
    "d_model": 32,
    "enc_in": 4,
    "e_layers": 1,
}
FULL = 256  # elements of a matrix up to which its gradient is stored itself, not just sums of it


def states(u, raw, rate, enters, bias):
    """The recurrence, one step after the other: [B, E, N] and [B, S, N] to h [B, E, S, N]."""
    h, every = u.new_zeros(*u.shape[:2], rate.shape[1]), []
    for n in range(u.shape[2]):
        step = F.softplus(raw[:, :, n] + bias, threshold=20.0)[..., None]
        h = torch.exp(step * rate) * h + step * enters[:, None, :, n] * u[:, :, n, None]
        every.append(h)
    return torch.stack(every, -1)


def sample(values, numbers, groups, scale=0.5):
    """The sampling, one corner of one tap of one cell at a time; [B, P, N, C] to the same."""
    batch, height, width, channels = values.shape
    size, cells = channels // groups, []
    for b, r, q, g in np.ndindex(batch, height, width, groups):
        part, total = numbers[b, r, q, 27 * g : 27 * g + 27], values.new_zeros(size)
        own = values[b, :, :, g * size : g * size + size]
        for tap in range(9):
            x = q - scale + scale * (tap // 3 + part[2 * tap])
            y = r - scale + scale * (tap % 3 + part[2 * tap + 1])
            if not (-1 < x < width and -1 < y < height):
                continue
            left, top = math.floor(x.item()), math.floor(y.item())
            right, low = x - left, y - top
            for row, by_row in ((top, 1 - low), (top + 1, low)):
                for column, by_column in ((left, 1 - right), (left + 1, right)):
                    if 0 <= row < height and 0 <= column < width:
                        total = total + part[18 + tap] * by_row * by_column * own[row, column]
        cells.append(total)
    return torch.stack(cells).reshape(values.shape)


def mix(p, tok, channels):
    """One mixer: [B, N, E] to the same; `p` has the parameters below its name."""
    batch, count, width = tok.shape
    u, gate = (tok @ p["in_proj.weight"].T).split(width, -1)
    xs = u.transpose(1, 2)
    rank = p["dt_projs_weight"].shape[1]
    low, enters, reads = (p["x_proj_weight"] @ xs).split([rank, 1, 1], 1)
    raw = p["dt_projs_weight"] @ low
    h = states(xs, raw, -torch.exp(p["A_logs"]), enters, p["dt_projs_bias"])[:, :, 0]
    grid = h.reshape(batch, width // channels, channels, count).permute(0, 1, 3, 2)
    values = grid @ p["state_pro.value_proj.weight"].T + p["state_pro.value_proj.bias"]
    numbers = grid @ p["state_pro.offset_mask.weight"].T + p["state_pro.offset_mask.bias"]
    read = sample(values, numbers, channels // GROUP) @ p["state_pro.output_proj.weight"].T
    read = read.permute(0, 1, 3, 2).reshape(batch, width, count)
    y = (read * reads + xs * p["Ds"][:, None]).transpose(1, 2)
    return F.layer_norm(y, [width], p["out_norm.weight"], p["out_norm.bias"], EPS) * F.silu(gate)


def forecast(p, x, sizes):
    """Windows [B, T, N] to forecasts [B, H, N]."""
    mean = x.mean(1, keepdim=True).detach()
    deviation = torch.sqrt((x - mean).var(1, keepdim=True, unbiased=False) + EPS)
    z = ((x - mean) / deviation).transpose(1, 2)
    z = torch.cat([z, z[..., -1:].repeat(1, 1, sizes["stride"])], -1)
    cuts = range(0, z.shape[-1] - sizes["patch_len"] + 1, sizes["stride"])
    embed = p["patch_embedding.value_embedding.weight"].T
    tok = torch.cat([z[..., at : at + sizes["patch_len"]] @ embed for at in cuts], -1)
    width = tok.shape[-1]
    for i in range(sizes["e_layers"]):
        one, two, mlp = (below(p, f"encoder.attn_layers.{i}.{name}.") for name in NAMES)
        ahead = mix(one, tok, sizes["d_model"])
        tok = tok + ahead + mix(two, tok.flip(1), sizes["d_model"]).flip(1)
        hidden = F.layer_norm(tok, [width], mlp["norm1.weight"], mlp["norm1.bias"], EPS)
        hidden = F.gelu(hidden @ mlp["fc1.weight"].T + mlp["fc1.bias"])
        tok = tok + hidden @ mlp["fc2.weight"].T + mlp["fc2.bias"]
    tok = F.layer_norm(tok, [width], p["encoder.norm.weight"], p["encoder.norm.bias"], EPS)
    out = (tok @ p["projector.weight"].T + p["projector.bias"]).transpose(1, 2)
    return out * deviation + mean


NAMES = ("op", "op2", "mlp")


def below(p, prefix):
    """The parameters whose names begin so, without that."""
    return {k.removeprefix(prefix): v for k, v in p.items() if k.startswith(prefix)}


def shapes(sizes):
    """The shape of every parameter that is used."""
    c, patch = sizes["d_model"], sizes["patch_len"]
    width = ((sizes["seq_len"] - patch) // sizes["stride"] + 2) * c
    rank, numbers = -(-width // 16), -(-27 * (c // GROUP) // 8) * 8
    mixer = {
        "x_proj_weight": (rank + 2, width),
        "dt_projs_weight": (width, rank),
        "dt_projs_bias": (width,),
        "A_logs": (width, 1),
        "Ds": (width,),
        "in_proj.weight": (2 * width, width),
        "state_pro.offset_mask.weight": (numbers, c),
        "state_pro.offset_mask.bias": (numbers,),
        "state_pro.value_proj.weight": (c, c),
        "state_pro.value_proj.bias": (c,),
        "state_pro.output_proj.weight": (c, c),
        "out_norm.weight": (width,),
        "out_norm.bias": (width,),
    }
    mlp = {
        "norm1.weight": (width,),
        "norm1.bias": (width,),
        "fc1.weight": (4 * width, width),
        "fc1.bias": (4 * width,),
        "fc2.weight": (width, 4 * width),
        "fc2.bias": (width,),
    }
    found = {"patch_embedding.value_embedding.weight": (c, patch)}
    for i in range(sizes["e_layers"]):
        for name, part in zip(NAMES, (mixer, mixer, mlp), strict=True):
            found |= {f"encoder.attn_layers.{i}.{name}.{k}": v for k, v in part.items()}
    return found | {
        "encoder.norm.weight": (width,),
        "encoder.norm.bias": (width,),
        "projector.weight": (sizes["pred_len"], width),
        "projector.bias": (sizes["pred_len"],),
    }


def draw(sizes, rng):
    """Random parameters, multiples of 1/32 so that the file is small; the states are awake."""
    found = {}
    for name, shape in shapes(sizes).items():
        noise = rng.normal(size=shape)
        if name.endswith(("norm.weight", "norm1.weight", "Ds")):
            noise = 1 + 0.3 * noise
        elif "offset_mask" in name:
            noise = noise if name.endswith("bias") else 0.5 * noise
        else:
            noise = (0.3 if noise.ndim == 1 else 1.2 / math.sqrt(shape[1])) * noise
        found[name] = np.round(32 * noise) / 32
    return found


def with_gradients(params, x, target, sizes):
    """The forecast, the mean squared error and its gradients by name, in float64."""
    p = {k: torch.tensor(v, dtype=torch.float64, requires_grad=True) for k, v in params.items()}
    out = forecast(p, torch.tensor(x, dtype=torch.float64), sizes)
    loss = ((out - torch.tensor(target, dtype=torch.float64)) ** 2).mean()
    grads = dict(zip(p, torch.autograd.grad(loss, p.values()), strict=True))
    return out.detach().numpy(), loss.item(), {k: g.numpy() for k, g in grads.items()}


def model_figures(rng):
    """All that `timepro.npz` holds.

    A large gradient is there as two sums, over its rows and over its columns, each weighted by the
    cosine of the index: plain sums vanish behind a LayerNorm.
    """
    params = draw(SIZES, rng)
    x = np.round(64 * rng.normal(size=(2, SIZES["seq_len"], SIZES["enc_in"])) * [1, 3, 0.5, 2]) / 64
    target = np.round(64 * rng.normal(size=(2, SIZES["pred_len"], SIZES["enc_in"]))) / 64
    out, loss, grads = with_gradients(params, x, target, SIZES)
    found = {f"cfg/{k}": np.int64(v) for k, v in SIZES.items()}
    found |= {f"param/{k}": v.astype(np.float16) for k, v in params.items()}
    assert all((found[f"param/{k}"] == v).all() for k, v in params.items())
    found |= {"x": x, "y_target": target, "out_f64": out, "loss_mse": np.float64(loss)}
    for name, grad in grads.items():
        if grad.ndim == 1 or grad.size <= FULL:
            found[f"grad/{name}"] = grad
        else:
            rows, columns = (np.cos(np.arange(n)) for n in grad.shape)
            found |= {f"gradsum0/{name}": rows @ grad, f"gradsum1/{name}": grad @ columns}
    return found


def operator_figures(rng):
    """All that `operators.npz` holds: steps of every size, samples inside, across and outside."""
    values, numbers = rng.normal(size=(2, 5, 4, 6)), 2 * rng.normal(size=(2, 5, 4, 88))
    batch, channels, count, length = 2, 5, 3, 61
    scan = {
        "u": rng.normal(size=(batch, channels, length)),
        "delta_raw": 2 * rng.normal(size=(batch, channels, length)),
        "A": -np.exp(rng.normal(size=(channels, count))),
        "B": rng.normal(size=(batch, count, length)),
        "C": rng.normal(size=(batch, count, length)),
        "D": rng.normal(size=channels),
        "delta_bias": rng.normal(size=channels),
    }
    scan["delta_raw"][:, :, 20:30] += rng.choice([-50.0, 18.0, 50.0], (batch, channels, 10))
    sampling = {"x": values, "offset_mask": numbers, "group": np.int64(3), "offset_scale": 0.5}
    sampling["out"] = sampled(sampling)
    scan |= scanned(scan)
    return {f"dcn/{k}": v for k, v in sampling.items()} | {f"scan/{k}": v for k, v in scan.items()}


def sampled(a):
    """The result of sampling what such a file holds."""
    values, numbers = (torch.tensor(a[name]) for name in ("x", "offset_mask"))
    return sample(values, numbers, int(a["group"]), float(a["offset_scale"])).numpy()


def scanned(a):
    """The results of scanning what such a file holds."""
    t = {k: torch.tensor(v) for k, v in a.items()}
    h = states(t["u"], t["delta_raw"], t["A"], t["B"], t["delta_bias"])
    y = (h * t["C"][:, None]).sum(2) + t["D"][:, None] * t["u"]
    return {"h": h.numpy(), "last_h": h[..., -1].numpy(), "y": y.numpy()}


def apart(have, want):
    """The largest difference against the largest value."""
    return float(np.abs(have - want).max() / max(np.abs(want).max(), 1e-300))


def read(path):
    """The arrays of a file, and what it holds below a name."""
    with np.load(path, allow_pickle=False) as file:
        arrays = dict(file)
    return arrays, lambda name: below(arrays, f"{name}/")


def check(folder):
    """Compares the loops with figures of the released code; ends the run where they differ."""
    arrays, part = read(Path(folder) / "timepro_small_group2.npz")
    sizes = {k: int(v) for k, v in part("cfg").items()}
    params = {k: part("param")[k] for k in shapes(sizes)}
    out, loss, grads = with_gradients(params, arrays["x"], arrays["y_target"], sizes)
    lines = {
        "forecast": (apart(out, arrays["out_f64"]), 1e-12),
        "loss, stored in float32": (apart(loss, arrays["loss_mse"]), 1e-6),
        "gradients, computed in float32": (
            max(apart(g, arrays[f"grad/{k}"]) for k, g in grads.items()),
            1e-4,
        ),
    }
    assert {f"grad/{k}" for k in grads} == {k for k in arrays if k.startswith("grad/")}
    _, part = read(Path(folder) / "ops_float64.npz")
    lines["sampling"] = apart(sampled(part("dcn")), part("dcn")["out"]), 1e-13
    scan = part("scan")
    for name, found in scanned(scan).items():
        lines[f"scan, {name}"] = apart(found, scan[name]), 1e-6 if name == "h" else 1e-13
    for name, (difference, most) in lines.items():
        print(f"{name}: {difference:.1e}")
        if not difference <= most:
            raise SystemExit(f"the {name} may differ by {most:.0e}: nothing is written")


def main():
    """Writes both files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default="tests/golden")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", metavar="FOLDER", help="figures of the released code")
    options = parser.parse_args()
    Path(options.out).mkdir(parents=True, exist_ok=True)
    if options.check:
        check(options.check)
    for name, make in (("timepro", model_figures), ("operators", operator_figures)):
        path = Path(options.out) / f"{name}.npz"
        np.savez_compressed(path, **make(np.random.default_rng(options.seed)))
        print(f"{path}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
