"""Generates text with an exported decoder: onnxruntime, numpy and tokenizers, no jax, no pangu_jax.

    pangu-jax export CHECKPOINT --target onnx --profiles 64 --out exported
    python tools/generate_onnx.py exported "Once upon a time" --max-new 100

Copy this file next to an export and it runs anywhere that onnxruntime does. With onnxruntime-cann
and `--provider CANNExecutionProvider` the same files run on Ascend.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import onnxruntime


class Model:
    """The programs of one export."""

    def __init__(self, folder, provider="CPUExecutionProvider"):
        manifest = json.loads((Path(folder) / "artefact.json").read_text(encoding="utf-8"))
        self.slots = manifest["facts"]["slots"]
        self.profiles = manifest["facts"]["profiles"]
        load = lambda name: onnxruntime.InferenceSession(  # noqa: E731
            str(Path(folder) / f"{name}.onnx"), providers=[provider]
        )
        self.prefills = {length: load(f"prefill_{length}") for length in self.profiles}
        self.decode = load("decode")

    def generate(self, prompt, max_new, stop=()):
        """Greedy: yields ids until a stop id, `max_new` tokens, or a full cache."""
        fitting = [length for length in self.profiles if length >= len(prompt)]
        if not prompt or not fitting:
            longest = max(self.profiles)
            raise ValueError(
                f"the prompt has {len(prompt)} tokens; the export takes 1 to {longest}"
            )
        tokens = np.zeros((1, fitting[0]), np.int32)
        tokens[0, : len(prompt)] = prompt
        position = len(prompt)
        given = {"tokens": tokens, "length": np.array([position], np.int32)}
        state = self._run(self.prefills[fitting[0]], given)
        for made in range(max_new):
            token = int(state.pop("logits")[0].argmax())
            yield token
            if token in stop or made + 1 == max_new or position == self.slots:
                return
            given = {f"past_{name}": array for name, array in state.items()}
            given["token"] = np.array([token], np.int32)
            given["position"] = np.array([position], np.int32)
            state = self._run(self.decode, given)
            position += 1

    def _run(self, session, given):
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, given), strict=True))


def main():
    """Reads a prompt, prints its continuation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("prompt", nargs="?", default="")
    parser.add_argument("--max-new", type=int, default=100)
    parser.add_argument("--ids", action="store_true", help="the prompt is ids, print ids")
    parser.add_argument("--bos", type=int, default=1, help="id that starts a document")
    parser.add_argument("--stop", type=int, nargs="*", default=[2], help="ids that end it")
    parser.add_argument("--provider", default="CPUExecutionProvider")
    options = parser.parse_args()
    model = Model(options.folder, options.provider)
    if options.ids:
        prompt = [int(word) for word in options.prompt.split()]
        print(*model.generate(prompt, options.max_new, options.stop))
        return
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(Path(options.folder) / "tokenizer.json"))
    text = tokenizer.encode(options.prompt, add_special_tokens=False).ids
    made = list(model.generate([options.bos, *text], options.max_new, options.stop))
    print(tokenizer.decode([*text, *made]))


if __name__ == "__main__":
    main()
