"""Teach a model by rewards what its text leaves open: to follow "the" with "lazy" (GRPO).

python examples/rl.py [PATH]     # runs/example, of examples/train.py
"""

import sys

import optax

import pangu_jax as pj
from pangu_jax.data.tokenizer import text_prompt
from pangu_jax.losses.policy import GRPO
from pangu_jax.reasoning.rl import train
from pangu_jax.reasoning.rl_config import RlConfig
from pangu_jax.reasoning.schedule_state import ScheduleConfig

model = pj.load(sys.argv[1] if len(sys.argv) > 1 else "runs/example")
tokenizer, prompts = model.tokenizer, ["the ", "dog. the "]


def prompt(number):
    return text_prompt(prompts[number % len(prompts)], tokenizer)


def reward(number, answers):
    return [float("lazy" in tokenizer.decode(answer.ids.tolist())) for answer in answers]


def share(params):
    asked = pj.Model("decoder", params, model.cfg, tokenizer)
    texts = pj.generate(asked, prompts * 32, max_new_tokens=6, temperature=1.0)
    return sum("lazy" in text for text in texts) / len(texts)


print(f"before: {share(model.params):.0%} of the answers say lazy")
plan = ScheduleConfig(staleness=0, batch=2, group=16, slots=32)
cfg = RlConfig(plan, GRPO, updates=12, length=64, max_new_tokens=6)
state = train(model.params, prompt, reward, model=model.cfg, cfg=cfg, optimizer=optax.adam(2e-3))
print(f"after {cfg.updates} updates: {share(state.params):.0%}")
