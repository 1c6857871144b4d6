"""Teach a small model to think in a hidden state in place of a written step (Coconut).

python examples/latent.py

Then other thoughts are put in its place: where the answers stay right, it is not used.
"""

import dataclasses
import json
import random
from itertools import product
from pathlib import Path

from pangu_jax.models.presets import byte_model
from pangu_jax.reasoning.latent import train as latent
from pangu_jax.reasoning.latent.curriculum import CurriculumConfig
from pangu_jax.reasoning.latent.registry import METHODS
from pangu_jax.reasoning.latent.score import scores
from pangu_jax.reasoning.latent.task import encode_task, read_task, words_of
from pangu_jax.train.loop_config import LoopConfig

sums = [(f"{a} {b} {c}", (a + b) % 5, (a + b + c) % 5) for a, b, c in product(range(5), repeat=3)]
random.Random(0).shuffle(sums)
rows = [{"question": q, "steps": [str(step)], "answer": str(answer)} for q, step, answer in sums]
Path("runs").mkdir(exist_ok=True)
Path("runs/sums5.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

task = read_task("runs/sums5.jsonl", test=None, problems=0, tests=25)  # the last ones
ids = encode_task(task, words_of(task))
cfg = byte_model(64, 2, 2, 2, head_dim=16, mlp_width=128, max_length=64, tied=True)
cfg, method, steps = dataclasses.replace(cfg, vocab=ids.vocab), "coconut", 300
phases = latent.plan(method, ids.training, CurriculumConfig(steps, stages=1))
state = latent.train(ids.training, phases, method=method, markers=ids.markers, model=cfg,
                     loop=LoopConfig(steps), batch=16)  # fmt: skip
found = scores(state.params, ids.testing, METHODS[method], phases[-1], ids.markers, cfg=cfg,
               max_new_tokens=8, ablations=("zeros", "other"))  # fmt: skip
for thoughts, score in found.items():
    print(f"{thoughts or 'its own'} for thoughts: {score.accuracy:.0%} of {score.problems} right")
