"""Loading allocates every leaf once and holds one tensor besides: measured on a process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

pytestmark = pytest.mark.long

GOLDEN = Path(__file__).parents[2] / "golden"
MB = 2**20

# File pages do not count: only anonymous memory, sampled by a thread while `load` runs.
MEASURE = """
import json, sys, threading, time
import jax
from pangu_jax.checkpoint import hf

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) * 1024

# The first load also compiles, which takes memory of its own.
hf.load(sys.argv[1], dtype=sys.argv[2] or None)
peak, done = 0, False
base = anonymous()

def watch():
    global peak
    while not done:
        peak = max(peak, anonymous() - base)
        time.sleep(0.0005)

watcher = threading.Thread(target=watch, daemon=True)
watcher.start()
params, _ = hf.load(sys.argv[1], dtype=sys.argv[2] or None)
done = True
watcher.join()
leaves = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps({"peak": max(peak, anonymous() - base), "leaves": leaves}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A Llama of two layers whose feed-forward tensors take 32 MB each in bfloat16.

    glibc gives blocks of that size back as soon as they are freed, so nothing hides in its pools.
    """
    folder = tmp_path_factory.mktemp("large")
    config = json.loads((GOLDEN / "llama2" / "config.json").read_text())
    width, hidden = 2048, 8192
    config |= {"hidden_size": width, "intermediate_size": hidden}
    shapes = {"mlp.gate_proj": (hidden, width), "mlp.up_proj": (hidden, width)}
    shapes |= {"mlp.down_proj": (width, hidden), "input_layernorm": (width,)}
    shapes |= {"post_attention_layernorm": (width,), "self_attn.q_proj": (32, width)}
    shapes |= {"self_attn.k_proj": (16, width), "self_attn.v_proj": (16, width)}
    shapes |= {"self_attn.o_proj": (width, 32)}
    names = {f"model.layers.{i}.{name}.weight": s for i in range(2) for name, s in shapes.items()}
    names |= {"model.embed_tokens.weight": (48, width), "lm_head.weight": (48, width)}
    names |= {"model.norm.weight": (width,)}
    tensors = {name: np.ones(shape, ml_dtypes.bfloat16) for name, shape in names.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("dtype", ["", "float32"])
def test_loading_grows_by_the_leaves_and_one_tensor(checkpoint, dtype):
    environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    result = subprocess.run(
        [sys.executable, "-c", MEASURE, checkpoint, dtype],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads(result.stdout)
    print({name: round(value / MB, 1) for name, value in figures.items()})
    assert figures["leaves"] > (380 if dtype else 190) * MB
    # Half a tensor of room: a second copy of one would not fit.
    assert figures["peak"] - figures["leaves"] < 1.5 * 32 * MB, figures
