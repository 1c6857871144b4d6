"""Generates text with an exported decoder: onnxruntime, numpy and tokenizers, no jax, no pangu_jax.

    pangu-jax export CHECKPOINT --target onnx --profiles 64 --out exported
    python tools/generate_onnx.py exported "Once upon a time" --max-new-tokens 100

Copy this file next to an export and it runs anywhere that onnxruntime does. With onnxruntime-cann
and `--provider CANNExecutionProvider` the same files run on Ascend. The ids that begin and end a
text travel with the export; --bos and --stop override them. A model of latent thoughts is asked a
question: the ids and the ending that it expects travel, too, and it thinks before it answers.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


class Model:
    """The programs of one export."""

    def __init__(self, folder, provider="CPUExecutionProvider"):
        manifest = _manifest(Path(folder))
        self.facts = manifest["facts"]
        self.slots = self.facts["slots"]
        self.profiles = self.facts["profiles"]
        load = lambda name: onnxruntime.InferenceSession(  # noqa: E731
            str(Path(folder) / f"{name}.onnx"), providers=[provider]
        )
        self.prefills = {length: load(f"prefill_{length}") for length in self.profiles}
        self.decode = load("decode")

    def generate(self, prompt, max_new_tokens, stop=()):
        """Greedy: yields ids until a stop id, `max_new_tokens` tokens, or a full cache."""
        fitting = [length for length in self.profiles if length >= len(prompt)]
        if not prompt or not fitting:
            longest = max(self.profiles)
            raise ValueError(
                f"the prompt has {len(prompt)} tokens; the export takes 1 to {longest}, which "
                "--profiles of `pangu-jax export` decides"
            )
        surplus = [i for i in prompt if not 0 <= i < self.facts["vocab"]]
        if surplus:
            raise ValueError(f"the model has no id {surplus[0]}: 0 to {self.facts['vocab'] - 1}")
        tokens = np.zeros((1, fitting[0]), np.int32)
        tokens[0, : len(prompt)] = prompt
        given = {"tokens": tokens, "length": np.array([len(prompt)], np.int32)}
        position = len(prompt) + self.facts.get("filled", 0)  # thoughts take slots of the cache
        state = self._run(self.prefills[fitting[0]], given)
        for made in range(max_new_tokens):
            token = int(state.pop("logits")[0].argmax())
            yield token
            if token in stop or made + 1 == max_new_tokens or position == self.slots:
                return
            given = {f"past_{name}": array for name, array in state.items()}
            given["token"] = np.array([token], np.int32)
            given["position"] = np.array([position], np.int32)
            state = self._run(self.decode, given)
            position += 1

    def _run(self, session, given):
        names = [output.name for output in session.get_outputs()]
        return dict(zip(names, session.run(names, given), strict=True))


def _manifest(folder):
    file = folder / "artifact.json"
    if not file.is_file():  # exports before it had this name
        file = folder / "artefact.json"  # OLD_MANIFEST
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        target, kind = manifest["target"], manifest["facts"]["kind"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no export: artifact.json cannot be read") from error
    if (target, kind) != ("onnx", "decoder"):
        raise ValueError(f"{folder} holds a {kind} as {target}; this takes a decoder as onnx")
    return manifest


def _ids(facts, given, name, flag):
    """Ids that the user gave, or the export's."""
    if given is None and name not in facts:
        raise ValueError(f"the export says no ids for {flag}; give them")
    return facts[name] if given is None else given


def _tokenizer(folder):
    import tokenizers

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{folder} holds no tokenizer.json; give the prompt as ids, with --ids")
    tokenizer = tokenizers.Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _answer(model, prompt, max_new_tokens, stop):
    """What is generated; a note tells if it was cut because the cache is full."""
    made = list(model.generate(prompt, max_new_tokens, stop))
    if made and made[-1] not in stop and len(made) < max_new_tokens:
        print(
            f"generate_onnx: cut after {len(made)} tokens: the cache of {model.slots} slots is "
            "full, which --cache of `pangu-jax export` decides",
            file=sys.stderr,
        )
    return made


def _generate(options):
    model = Model(options.folder, options.provider)
    if options.ids:
        prompt = [int(word) for word in options.prompt.split()]
        stop = model.facts.get("stop", []) if options.stop is None else options.stop
        print(*_answer(model, prompt, options.max_new_tokens, stop))
        return
    stop = _ids(model.facts, options.stop, "stop", "--stop")
    tokenizer = _tokenizer(Path(options.folder))
    asked = options.prompt + model.facts.get("ending", "")
    text = tokenizer.encode(asked, add_special_tokens=False).ids
    begin = _ids(model.facts, options.bos, "begin" if text else "empty", "--bos")
    prompt = [*begin, *text, *model.facts.get("suffix", [])]
    made = _answer(model, prompt, options.max_new_tokens, stop)
    if "mark" in model.facts:  # a question, and on another line what is written about it
        print(tokenizer.decode(text).rstrip("\n"))
        print(tokenizer.decode(made))
        return
    print(tokenizer.decode([*text, *made]))


def main():
    """Reads a prompt, prints its continuation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder")
    parser.add_argument("prompt", nargs="?", default="")
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--ids", action="store_true", help="the prompt is ids, print ids")
    parser.add_argument("--bos", type=int, nargs="*", help="ids before a prompt; else the export's")
    parser.add_argument("--stop", type=int, nargs="*", help="ids that end it; else the export's")
    parser.add_argument("--provider", default="CPUExecutionProvider")
    try:
        _generate(parser.parse_args())
    except ValueError as error:
        print(f"generate_onnx: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
