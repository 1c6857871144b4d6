"""Bad input of many kinds, made from good input: what `test_bad_input.py` runs.

A kind is a function that yields cases; a case is (arguments of pangu-jax, words that the one
sentence must hold). What it is drawn from is seeded, so every run meets the same cases.
"""

import copy
import gzip
import json
import random
import shutil
import struct
from pathlib import Path

GOLDEN = Path(__file__).parents[1] / "golden"
LLAMA, MOE = GOLDEN / "llama2", GOLDEN / "pangu_pro_moe"
KINDS = {}


def kind(function):
    KINDS[function.__name__] = function
    return function


def generate(folder):
    return ["generate", str(folder), "--max-new-tokens", "1"]


def split(file):
    """The header and the data of a safetensors file."""
    raw = file.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    return header, raw[8 + length :]


def join(header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


class Maker:
    """Makes folders of a checkpoint with something wrong."""

    def __init__(self, root):
        self.root, self.count, self.draw = root, 0, random.Random(7)
        self.recent = []  # folders made since the last case was run
        self.header, self.data = split(LLAMA / "model.safetensors")
        self.config = json.loads((LLAMA / "config.json").read_text())

    def folder(self):
        self.count += 1
        folder = self.root / f"case{self.count}"
        folder.mkdir()
        self.recent.append(folder)
        return folder

    def checkpoint(self, weights=None, config=None, source=LLAMA):
        folder = self.folder()
        if weights is None:
            (folder / "model.safetensors").symlink_to(source / "model.safetensors")
        else:
            (folder / "model.safetensors").write_bytes(weights)
        config = (source / "config.json").read_text() if config is None else config
        config = json.dumps(config) if isinstance(config, dict) else config
        raw = config if isinstance(config, bytes) else config.encode()
        (folder / "config.json").write_bytes(raw)
        return folder

    def text(self, raw, name="a.txt"):
        file = self.folder() / name
        file.write_bytes(raw if isinstance(raw, bytes) else raw.encode())
        return file

    def train(self, file, *more):
        out = file.parent / "run"
        return ["train", "--data", str(file), "--out", str(out), "--preset", "dense-tiny", *more]


@kind
def truncated_weights(make):
    raw = (LLAMA / "model.safetensors").read_bytes()
    for _ in range(50):
        size = make.draw.choice([make.draw.randrange(len(raw)), make.draw.randrange(2000)])
        yield generate(make.checkpoint(raw[:size])), "model.safetensors"


@kind
def surplus_bytes_after_the_weights(make):
    raw = (LLAMA / "model.safetensors").read_bytes()
    for size in (1, 3, 8, 4096):
        yield generate(make.checkpoint(raw + bytes(size))), "model.safetensors"


@kind
def huge_header_length(make):
    raw = (LLAMA / "model.safetensors").read_bytes()
    for _ in range(20):
        length = make.draw.choice([2**64 - 1, 2**63, make.draw.randrange(len(raw), 2**62)])
        yield generate(make.checkpoint(struct.pack("<Q", length) + raw[8:])), "model.safetensors"


@kind
def header_of_noise(make):
    text = json.dumps(make.header).encode()
    for _ in range(40):
        noisy = bytearray(text)
        at = make.draw.randrange(len(noisy))
        noisy[at] = make.draw.choice([b for b in range(256) if chr(b).strip() and b != noisy[at]])
        yield generate(make.checkpoint(join(bytes(noisy), make.data))), "safetensors|tensor"
    for _ in range(10):
        noise = make.draw.randbytes(make.draw.randrange(200))
        yield generate(make.checkpoint(join(noise, make.data))), "model.safetensors"


@kind
def overlapping_tensors(make):
    names = sorted(make.header)
    for _ in range(15):
        a, b = make.draw.sample(names, 2)
        header = copy.deepcopy(make.header)
        header[a]["data_offsets"] = header[b]["data_offsets"]
        header[a]["shape"] = header[b]["shape"]
        yield generate(make.checkpoint(join(header, make.data))), "model.safetensors"


@kind
def offsets_beyond_the_file(make):
    for name in make.draw.sample(sorted(make.header), 8):
        for by in (-4, 4, 2**40):
            header = copy.deepcopy(make.header)
            header[name]["data_offsets"] = [x + by for x in header[name]["data_offsets"]]
            yield generate(make.checkpoint(join(header, make.data))), "model.safetensors"


@kind
def wrong_type_of_a_tensor(make):
    for name in make.draw.sample(sorted(make.header), 8):
        for found in ("I32", "U8", "F8_E4M3", "Q4", 7):
            header = copy.deepcopy(make.header)
            header[name]["dtype"] = found
            yield generate(make.checkpoint(join(header, make.data))), "safetensors|" + name


@kind
def wrong_shape_of_a_tensor(make):
    for name in sorted(make.header):
        shape = make.header[name]["shape"]
        size = 1
        for length in shape:
            size *= length
        for wrong in ([size], [1, *shape], [*shape, 1]):
            if wrong != shape:
                header = copy.deepcopy(make.header)
                header[name]["shape"] = wrong
                yield generate(make.checkpoint(join(header, make.data))), name


def without(header, data, name):
    """A sound file that lacks one tensor."""
    kept, parts, at = {}, [], 0
    for other, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if other != name:
            first, last = entry["data_offsets"]
            kept[other] = {**entry, "data_offsets": [at, at + last - first]}
            parts.append(data[first:last])
            at += last - first
    return kept, b"".join(parts)


@kind
def missing_tensor(make):
    for name in sorted(make.header):
        weights = join(*without(make.header, make.data, name))
        yield generate(make.checkpoint(weights)), "lacks the tensor " + name


@kind
def surplus_tensor(make):
    end = len(make.data)
    for name in ("x", "model.layers.7.input_layernorm.weight", "model.layers.0.mlp.router.weight"):
        entry = {"dtype": "F32", "shape": [2], "data_offsets": [end, end + 8]}
        weights = join({**make.header, name: entry}, make.data + bytes(8))
        yield generate(make.checkpoint(weights)), name


@kind
def duplicated_tensor(make):
    text = json.dumps(make.header)
    for name in make.draw.sample(sorted(make.header), 6):
        twice = text[:-1] + f', "{name}": {json.dumps(make.header[name])}' + "}"
        yield generate(make.checkpoint(join(twice.encode(), make.data))), name


def indexed(make, weight_map, files):
    folder = make.checkpoint()
    (folder / "model.safetensors").unlink()
    text = weight_map if isinstance(weight_map, str) else json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(text)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return generate(folder)


@kind
def lying_index(make):
    whole, names = join(make.header, make.data), sorted(make.header)
    good = dict.fromkeys(names, "a.safetensors")
    yield indexed(make, good, {}), "a.safetensors is missing"
    yield indexed(make, "{", {}), "index.json"
    yield indexed(make, "[]", {}), "lacks weight_map"
    yield indexed(make, {**good, "x": "a.safetensors"}, {"a.safetensors": whole}), "tensor x"
    yield indexed(make, {**good, names[0]: "../a"}, {"a.safetensors": whole}), "outside its folder"
    both = {"a.safetensors": whole, "b.safetensors": whole}
    yield indexed(make, {**good, names[0]: "b.safetensors"}, both), "is both in"
    yield indexed(make, {**good, names[0]: 3}, {"a.safetensors": whole}), "3 is missing"


@kind
def pickled_weights(make):
    for name in ("pytorch_model.bin", "model-00001-of-00002.bin"):
        folder = make.checkpoint()
        (folder / "model.safetensors").rename(folder / name)
        yield generate(folder), "pickled weights"


@kind
def config_cut_short(make):
    text = (LLAMA / "config.json").read_text().strip()
    for _ in range(20):
        cut = text[: make.draw.randrange(len(text))]
        yield generate(make.checkpoint(config=cut)), "config.json"


@kind
def config_that_is_no_text(make):
    for raw in (b"\xff\xfe{}", make.draw.randbytes(300), b"[]", b"3", b"null", b"[" * 100_000):
        yield generate(make.checkpoint(config=raw)), "config.json"


@kind
def config_without_a_key(make):
    for source in (LLAMA, MOE):
        config = json.loads((source / "config.json").read_text())
        for name in ("architectures", "vocab_size", "hidden_size", "num_hidden_layers"):
            kept = {k: v for k, v in config.items() if k not in (name, "model_type")}
            yield generate(make.checkpoint(config=kept, source=source)), f"config.json.*{name}"


IMPOSSIBLE = {
    "vocab_size": (-1, 0, 1.5, "x", True, [], 10**12),
    "hidden_size": (-1, 0, 1.5, "x", True, {}, 10**12),
    "num_hidden_layers": (-1, 0, 1.5, "x", True, [2]),
    "num_attention_heads": (-1, 0, 1.5, "x", 7),
    "num_key_value_heads": (-1, 0, 1.5, "x", 7),
    "rms_norm_eps": (-1.0, "x", True, float("nan"), float("inf")),
    "rope_theta": (-1.0, "x", True, [], float("nan"), float("inf")),
    "hidden_act": ("gelu", 3, "relu"),
    "max_position_embeddings": (-1, 0, 1.5, "x"),
    "tie_word_embeddings": ("x", 1.5, [], 3),
    "rope_scaling": ("x", 3, {"rope_type": "yarn"}, {"type": "linear", "factor": 2}, [1]),
    "architectures": ("x", 3, [], ["GPT2LMHeadModel"], [3], {}),
    "quantization_config": ({"bits": 4},),
    "use_sliding_window": (True, "x"),
    "layer_types": (["sliding_attention"], 3),
}


@kind
def config_with_an_impossible_value(make):
    for source in (LLAMA, MOE):
        config = json.loads((source / "config.json").read_text())
        config.pop("rope_parameters", None)  # it would come before the older keys
        for name, values in IMPOSSIBLE.items():
            for value in values:
                changed = {**config, name: value}
                if name == "architectures":
                    changed.pop("model_type", None)
                yield generate(make.checkpoint(config=changed, source=source)), "config.json"


@kind
def config_of_another_size(make):
    for source in (LLAMA, MOE):
        config = json.loads((source / "config.json").read_text())
        for name in ("vocab_size", "num_hidden_layers", "moe_intermediate_size"):
            for by in (-1, 1, 5):
                if name in config:
                    changed = {**config, name: config[name] + by}
                    folder = make.checkpoint(config=changed, source=source)
                    yield generate(folder), "tensor|has shape"


@kind
def groups_that_do_not_divide_the_experts(make):
    config = json.loads((MOE / "config.json").read_text())
    for count in (0, -4, 3, 5, 7, 17):
        changed = {**config, "num_experts_per_tok": count}
        yield generate(make.checkpoint(config=changed, source=MOE)), "config.json.*(group|expert)"


@kind
def no_checkpoint_at_all(make):
    empty, file = make.folder(), make.text("x")
    for path in (empty, file, empty / "none", file / "below"):
        yield generate(path), "no checkpoint"
        yield (
            ["train", "--data", str(file), "--out", str(empty / "run"), "--init", str(path)],
            ("no checkpoint"),
        )


@kind
def text_that_is_not_utf8(make):
    for _ in range(20):
        raw = bytearray(("some text, long enough. " * 20).encode())
        raw[make.draw.randrange(len(raw))] = make.draw.choice([0x80, 0xC0, 0xFF, 0xF8])
        yield make.train(make.text(bytes(raw))), "a.txt is not UTF-8 text: byte"


@kind
def binary_data_as_text(make):
    for _ in range(8):
        yield (
            make.train(make.text(b"\x00" + make.draw.randbytes(500))),
            r"a.txt is not (UTF-8 )?text",
        )
    raw = b"text \x00 with a zero"
    yield make.train(make.text(raw)), "zero byte at 5"


@kind
def empty_text(make):
    for raw, name in (
        (b"", "a.txt"),
        (b"", "a.jsonl"),
        (b"\n\n", "a.jsonl"),
        (b"\xef\xbb\xbf", "a.txt"),
    ):
        yield make.train(make.text(raw, name)), "holds no text"
    yield make.train(make.folder()), "holds no file"
    yield make.train(make.folder() / "none.txt"), "no file or folder"


LINES = [json.dumps({"text": f"line {i} of the file"}) for i in range(30)]


@kind
def jsonl_with_a_broken_line(make):
    broken = ["{", '{"text": "cut', "text", "[1]", '{"txt": "x"}', '{"text": 3}', '{"text": null}']
    for line in (*broken, '{"text": "\\ud83d"}', "null", '{"text": "a"} x'):
        for _ in range(3):
            at = make.draw.randrange(1, 29)
            raw = "\n".join([*LINES[:at], line, *LINES[at:]])
            yield make.train(make.text(raw, "a.jsonl")), f"a.jsonl line {at + 1} "


@kind
def damaged_gzip(make):
    raw = gzip.compress("\n".join(LINES).encode() * 20)
    for _ in range(10):
        size = make.draw.randrange(1, len(raw) - 1)
        yield make.train(make.text(raw[:size], "a.jsonl.gz")), "a.jsonl.gz"
    yield make.train(make.text(b"no gzip", "a.txt.gz")), "a.txt.gz"
    for at in range(4, len(raw) - 8, len(raw) // 8):
        flipped = bytearray(raw)
        flipped[at] ^= 0xFF
        if at > 10:
            yield make.train(make.text(bytes(flipped), "a.jsonl.gz")), "a.jsonl.gz"


@kind
def damaged_tokenizer(make):
    tokenizer = json.dumps(
        {"version": "1.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    )
    for _ in range(10):
        path = make.text(tokenizer[: make.draw.randrange(len(tokenizer))], "tokenizer.json")
        yield make.train(make.text("text"), "--tokenizer", str(path)), "tokenizer.json"
    path = make.text(tokenizer, "tokenizer.json")
    yield make.train(make.text("text"), "--tokenizer", str(path)), "names no token that begins"
    yield make.train(make.text("text"), "--tokenizer", str(path) + "x"), "no tokenizer.json"


@kind
def tokenizer_with_more_ids_than_the_model(make):
    vocab = {"<s>": 0, **{f"w{i}": i for i in range(1, 300)}}
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": "<s>"}
    path = make.text(json.dumps({"version": "1.0", "model": model}), "tokenizer.json")
    words = ["--prompt", "w299", "--tokenizer", str(path)]
    yield [*generate(LLAMA), *words], "gives 'w299' the id 299.*vocabulary ends at"
    yield [*generate(LLAMA), "--tokenizer", "bytes"], "gives 'boundary' the id 256.*vocabulary ends"
    more = ["--held-out", "0", "--init", str(LLAMA), "--tokenizer", str(path)]
    yield make.train(make.text("w299"), *more), "gives 'w299' the id 299"


@kind
def output_below_a_file(make):
    file = make.text("some text")
    for out in (file, file / "run", file / "a" / "b"):
        more = ["--held-out", "0", "--preset", "dense-tiny"]
        yield (
            ["train", "--data", str(file), "--out", str(out), *more],
            "cannot (make|read|write) .*a.txt",
        )


@kind
def run_folder_of_another_run(make):
    file = make.text("some text")
    out = file.parent / "run"
    out.mkdir()
    (out / "config.json").write_text("{}")
    yield make.train(file, "--held-out", "0"), "holds a run with another"

    for text in ("[]", "{", "3"):
        file = make.text("some text")
        (file.parent / "run").mkdir()
        (file.parent / "run" / "config.json").write_text(text)
        yield make.train(file, "--held-out", "0"), "run/config.json"


@kind
def options_out_of_range(make):
    file = make.text("some text, enough of it " * 40)
    for more, words in (
        (["--preset", "giant"], "unknown model preset 'giant'"),
        (["--steps", "0"], "steps must be at least 1"),
        (["--checkpoint-every", "0"], "checkpoint_every must be"),
        (["--accumulate", "0"], "accumulate must be"),
        (["--batch", "0"], "batch"),
        (["--accumulate", "3"], "accumulate 3 must divide"),
        (["--length", "0"], "length must be at least 1"),
        (["--held-out", "2"], "held-out share must be between"),
        (["--held-out", "1"], "fall to the held-out part"),
        (["--mesh", "data=99"], "a mesh of data 99"),
        (["--mesh", "datum=1"], "must read like"),
        (["--mesh", "data=0"], "must read like"),
        (["--rules", "all", "--mesh", "data=8"], "unknown sharding rules 'all'"),
        (["--batch", "4", "--mesh", "fsdp=8"], "a batch of 4 does not divide by the 8 parts"),
        (["--seed", "-1"], "seed -1"),
    ):
        fresh = make.text(file.read_bytes())
        yield make.train(fresh, "--held-out", "0", *more), words
    yield ["generate", str(make.run), "--max-new-tokens", "0"], "max_new_tokens must be at least 1"
    yield ["generate", str(make.run), "--tokenizer", "none"], "no tokenizer.json at none"


@kind
def model_file_of_a_run(make):
    for text in ("{", "[]", "{}", '{"vocab": 264}', '{"vocab": 264, "nonsense": 1}'):
        yield generate(make.copy_of_run({"model.json": text})), "model.json"
    good = json.loads((make.run / "model.json").read_text())
    for name, value in (("vocab", -1), ("vocab", "x"), ("width", 0), ("layers", []), ("layers", 3)):
        text = json.dumps({**good, name: value})
        yield generate(make.copy_of_run({"model.json": text})), "model.json"


@kind
def checkpoint_of_another_model(make):
    good = json.loads((make.run / "model.json").read_text())
    for name, by in (("vocab", 8), ("width", 8), ("vocab", -8)):
        text = json.dumps({**good, name: good[name] + by})
        words = "is of another model: .* has shape"
        yield generate(make.copy_of_run({"model.json": text})), words
    text = json.dumps({**good, "layers": good["layers"] * 2})
    yield generate(make.copy_of_run({"model.json": text})), "is of another model"


def damaged(make, change):
    """Copies of the run with one file of its parameters changed, where that does harm.

    The library keeps some things twice; without one of them the same parameters are read.
    """
    (place,) = (make.run / "checkpoints").glob("[0-9]*")
    for file in sorted(p.relative_to(make.run) for p in place.rglob("*") if p.is_file()):
        for changed in change((make.run / file).read_bytes()):
            folder = make.copy_of_run({})
            (folder / file).unlink()
            if changed is not None:
                (folder / file).write_bytes(changed)
            if not make.reads_the_same(folder):
                yield generate(folder), "checkpoints"


@kind
def checkpoint_with_a_file_gone(make):
    yield from damaged(make, lambda raw: [None])
    (place,) = (make.run / "checkpoints").glob("[0-9]*")
    words = {place / "params": "checkpoint", place: "checkpoint"}
    for gone, word in {**words, place.parent: "has no folder checkpoints"}.items():
        folder = make.copy_of_run({})
        shutil.rmtree(folder / gone.relative_to(make.run))
        yield generate(folder), word


@kind
def checkpoint_with_a_file_cut_short(make):
    yield from damaged(make, lambda raw: [raw[: len(raw) // 2]] if raw else [])
