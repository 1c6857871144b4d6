"""Compile a model into a folder that runs without it, and run that.

python examples/export.py [PATH] [stablehlo | onnx]     # runs/example, of examples/train.py
"""

import sys

import numpy as np

import pangu_jax as pj
from pangu_jax.data.tokenizer import text_prompt
from pangu_jax.export.run import open_runner

path = sys.argv[1] if len(sys.argv) > 1 else "runs/example"
target = sys.argv[2] if len(sys.argv) > 2 else "stablehlo"  # onnx needs pangu-jax[export]
model = pj.load(path)
pj.export(model, "runs/compiled", target=target, profiles="16", batch=1)

artifact, run = open_runner("runs/compiled")
print("programs:", *(program.name for program in artifact.programs))
ids = text_prompt("the quick br", model.tokenizer)[:16]
tokens = np.array([ids + [0] * (16 - len(ids))], np.int32)
found = run("prefill_16", {"tokens": tokens, "length": np.array([len(ids)], np.int32)})
print("next:", repr(model.tokenizer.decode([int(found["logits"][0].argmax())])))
