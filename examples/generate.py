"""Open a model and continue prompts, the likeliest way and drawn.

python examples/generate.py [PATH]     # runs/example, which examples/train.py makes, or any folder
"""

import sys

import pangu_jax as pj

path = sys.argv[1] if len(sys.argv) > 1 else "runs/example"
model = pj.load(path)  # a run, a Hugging Face folder, or a GGUF file
prompts = ["the quick", "over the"]

for temperature in (0.0, 1.0):
    texts = pj.generate(model, prompts, max_new_tokens=24, temperature=temperature, seed=1)
    for prompt, text in zip(prompts, texts, strict=True):
        print(f"temperature {temperature:g}: {prompt}|{text}")
