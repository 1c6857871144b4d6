"""SmolLM2-135M-Instruct, pruned and exported, in transformers and onnxruntime.

By `make parity`; skipped where the package index is not reached. A file of its own, as a worker
takes a file, and these take as long as test_smollm2.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pangu_jax.checkpoint import hf
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.decode.generate import generate

pytestmark = [pytest.mark.parity, pytest.mark.model]
ROOT = Path(__file__).parents[2]
STOPS = (2,)


def test_what_is_pruned_chats_in_transformers(smollm2, data_dir, tmp_path, call, check_greedy):
    import transformers

    calibration = data_dir / "text" / "wikitext-2" / "valid.txt"
    call("prune", smollm2, tmp_path / "small", "--target", "params=0.8", "--calib",
         calibration, "--windows", 8, "--length", 64, "--eval-windows", 2)  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "small").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "small")
    assert 0.78 <= model.num_parameters() / 134_515_008 <= 0.801
    turns = [{"role": "user", "content": "What is the capital of France? Answer briefly."}]
    prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    params, cfg = hf.load(tmp_path / "small")
    answer = generate(params, [prompt], cfg=cfg, max_new_tokens=16, stop_ids=STOPS).rows()[0]
    check_greedy(model, prompt, answer)


def test_onnxruntime_generates_the_same(smollm2, tmp_path, call):
    call("export", smollm2, "--target", "onnx", "--out", tmp_path / "onnx")
    params, cfg = hf.load(smollm2)
    begin, tokenizer = "The quick brown fox", load_tokenizer(smollm2)
    prompt = [*tokenizer.begin, *tokenizer.encode(begin)]
    want = generate(params, [prompt], cfg=cfg, max_new_tokens=24, stop_ids=STOPS).rows()[0]
    command = [sys.executable, ROOT / "tools" / "generate_onnx.py", tmp_path / "onnx", begin]
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(
        [*command, "--max-new-tokens", "24"],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    text = begin + tokenizer.decode(want)
    assert text in done.stdout or done.stdout.strip() in text
