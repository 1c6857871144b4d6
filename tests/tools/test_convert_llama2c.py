"""llama2.c checkpoints: the model against plain numpy, the tokenizer against the plain encoder."""

import functools
import importlib.util
import itertools
import struct
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from pangu_jax.checkpoint import hf
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.core.errors import InputError
from pangu_jax.data.packing import Tokens, tokenize
from pangu_jax.data.text import Document
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.decode.generate import generate
from pangu_jax.eval.perplexity import measure
from pangu_jax.models import decoder

TOOL = Path(__file__).parents[2] / "tools" / "convert_llama2c.py"
DOCUMENTED = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball."
)


@functools.cache
def tool():
    spec = importlib.util.spec_from_file_location("convert_llama2c", TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The format and the model again, from the description of llama2.c and in float64.


def read_arrays(path):
    raw = Path(path).read_bytes()
    dim, hidden, layers, heads, groups, vocab, length = struct.unpack("<7i", raw[:28])
    size = dim // heads
    shapes = [
        (abs(vocab), dim),
        (layers, dim),
        (layers, dim, dim),
        (layers, groups * size, dim),
        (layers, groups * size, dim),
        (layers, dim, dim),
        (layers, dim),
        (layers, hidden, dim),
        (layers, dim, hidden),
        (layers, hidden, dim),
        (dim,),
        (length, size // 2),
        (length, size // 2),
    ]
    flat, arrays, at = np.frombuffer(raw, "<f4", offset=28).astype(np.float64), [], 0
    for shape in shapes + ([] if vocab > 0 else [(-vocab, dim)]):
        arrays.append(flat[at : at + np.prod(shape)].reshape(shape))
        at += np.prod(shape)
    assert at == len(flat)
    return (heads, groups), arrays


def plain_logits(path, ids):
    """[T, V] of one sequence; rotation of the channels (2i, 2i + 1)."""
    (heads, groups), (table, an, wq, wk, wv, wo, fn, w1, w2, w3, norm, _, _, *head) = read_arrays(
        path
    )
    count, size = len(ids), table.shape[1] // heads
    angle = np.arange(count)[:, None] * 10000.0 ** (-np.arange(0, size, 2) / size)
    turn = np.exp(1j * angle)[:, None]

    def rms(x, gain):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain

    def rotate(x):
        turned = (x[..., ::2] + 1j * x[..., 1::2]) * turn
        return np.stack([turned.real, turned.imag], -1).reshape(x.shape)

    x = table[ids]
    for i in range(len(wq)):
        h = rms(x, an[i])
        q = rotate((h @ wq[i].T).reshape(count, heads, size))
        k = rotate((h @ wk[i].T).reshape(count, groups, size))
        v = (h @ wv[i].T).reshape(count, groups, size)
        parts = []
        for head_number in range(heads):
            group = head_number // (heads // groups)
            scores = q[:, head_number] @ k[:, group].T / np.sqrt(size)
            scores[np.triu_indices(count, 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            parts.append(weights / weights.sum(-1, keepdims=True) @ v[:, group])
        x = x + np.concatenate(parts, -1) @ wo[i].T
        h = rms(x, fn[i])
        gate = h @ w1[i].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w3[i].T)) @ w2[i].T
    return rms(x, norm) @ (head[0] if head else table).T


def plain_encode(text, pieces):
    """llama2.c's `encode`, without the begin token: merges the best pair again and again."""
    ids = {piece: number for number, (piece, _) in enumerate(pieces)}
    tokens = []
    for character in " " + text if text else "":
        raw = character.encode()
        tokens += [ids[raw]] if raw in ids else [byte + 3 for byte in raw]
    while True:
        best = None
        for at, (a, b) in enumerate(itertools.pairwise(tokens)):
            joined = ids.get(pieces[a][0] + pieces[b][0])
            if joined is not None and (best is None or pieces[joined][1] > best[0]):
                best = (pieces[joined][1], at, joined)
        if best is None:
            return tokens
        tokens[best[1] : best[1] + 2] = [best[2]]


def write_model(path, *, tied, seed=0):
    """A random model of 2 layers; the old rotation tables hold what must not be used."""
    dim, hidden, layers, heads, groups, vocab, length = 16, 20, 2, 4, 2, 300, 24
    size = dim // heads
    rng = np.random.default_rng(seed)
    count = vocab * dim * (1 if tied else 2) + 2 * length * (size // 2) + dim
    count += layers * (2 * dim + 2 * dim * dim + 2 * groups * size * dim + 3 * hidden * dim)
    header = (dim, hidden, layers, heads, groups, vocab if tied else -vocab, length)
    values = rng.normal(size=count).astype("<f4") * 0.4
    Path(path).write_bytes(struct.pack("<7i", *header) + values.tobytes())


def pieces_of(texts, scores):
    """A vocabulary of the three special tokens, the bytes, and these."""
    special = [b"<unk>", b"\n<s>\n", b"\n</s>\n"]
    names = [f"<0x{byte:02X}>".encode() for byte in range(256)]
    return [(piece, 0.0) for piece in special + names] + list(zip(texts, scores, strict=True))


def write_pieces(path, pieces):
    parts = [struct.pack("<fi", score, len(text)) + text for text, score in pieces]
    Path(path).write_bytes(struct.pack("<i", max(len(t) for t, _ in pieces)) + b"".join(parts))


def random_pieces(seed, count=41):
    """Joined from one another, at random scores: an order that no training would give."""
    rng = np.random.default_rng(seed)
    letters = [" ", "a", "b", "c"]
    words = [*letters, "é" + "a"]  # "é" is spelled in bytes, so what holds it cannot be made
    while len(words) < count:
        word = "".join(rng.choice(words, 2))
        if len(word) < 6 and word not in words:
            words.append(word)
    return pieces_of([word.encode() for word in words], rng.permutation(count) - 100.0)


@pytest.mark.parametrize("tied", [True, False])
def test_logits_are_those_of_plain_numpy_through_files(tmp_path, tied):
    write_model(tmp_path / "model.bin", tied=tied)
    write_pieces(tmp_path / "tok.bin", random_pieces(0))
    tool().convert(tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "out")
    params, cfg, where = open_checkpoint(tmp_path / "out")
    assert (cfg.tied, cfg.max_length) == (tied, 24)
    tokenizer = load_tokenizer(where)
    assert (tokenizer.boundary, tokenizer.eos_ids, tokenizer.vocab_size) == (1, (1, 2), 300)
    ids = np.random.default_rng(1).integers(0, 300, 20)
    want = plain_logits(tmp_path / "model.bin", ids)
    assert want.std() > 0.5
    found = decoder.logits(params, decoder.apply(params, ids[None], cfg=cfg).hidden[0], cfg=cfg)
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize("seed", range(12))
def test_a_list_of_merges_does_what_greedy_merging_does(seed):
    pieces = random_pieces(seed)
    tokenizer = tool().make_tokenizer(pieces)
    rng = np.random.default_rng(seed)
    made = set()
    for _ in range(100):
        text = "".join(rng.choice(list("  aaabbccé£\n"), rng.integers(1, 30)))
        want = plain_encode(text, pieces)
        assert tokenizer.encode(text, add_special_tokens=False).ids == want
        assert tokenizer.decode(want) == text
        made.update(want)
    assert sum(number > 262 for number in made) > 6
    assert tokenizer.encode("", add_special_tokens=False).ids == []


def test_a_tie_between_tokens_is_refused():
    pieces = pieces_of([b" ", b"a", b"b", b"ab", b"ba"], [0, 0, 0, -1.0, -1.0])
    with pytest.raises(InputError, match="same score"):
        tool().make_tokenizer(pieces)
    with pytest.raises(InputError, match="name of a byte token"):
        tool().make_tokenizer(pieces_of([b" ", b"<0x0A>a"], [0, -1.0]))


def test_files_of_another_kind_are_refused(tmp_path):
    model, words, out = tmp_path / "model.bin", tmp_path / "tok.bin", tmp_path / "out"
    write_model(model, tied=True)
    write_pieces(words, random_pieces(0))
    for wrong, message in (
        (b"", "0 bytes"),
        (model.read_bytes()[:-4], "asks for"),
        (b"x" * 99, "header"),
    ):
        (tmp_path / "wrong.bin").write_bytes(wrong)
        with pytest.raises(InputError, match=message):
            tool().convert(tmp_path / "wrong.bin", words, out)
    for wrong in (words.read_bytes()[:-1], words.read_bytes() + b"x", model.read_bytes()):
        (tmp_path / "wrong.bin").write_bytes(wrong)
        with pytest.raises(InputError, match=r"wrong\.bin"):
            tool().convert(model, tmp_path / "wrong.bin", out)
    with pytest.raises(InputError, match="cannot read"):
        tool().convert(tmp_path / "nothing", words, out)
    assert not out.exists()


# The real checkpoint.


@pytest.fixture(scope="module")
def stories(data_dir, tmp_path_factory):
    out = tmp_path_factory.mktemp("stories") / "out"
    folder = data_dir / "tiny_llama"
    tool().convert(folder / "stories260K.bin", folder / "tok512.bin", out)
    return out


@pytest.fixture(scope="module")
def story_text(data_dir):
    path = data_dir / "text" / "tinystories" / "tinystories_cased_197k.txt"
    return path.read_bytes().decode("utf-8")


@pytest.mark.long
def test_the_tokenizer_equals_greedy_merging_on_both_files(data_dir, stories, story_text):
    """Every id of 4.4 MB of text.

    No token has a space but in front, so no merge crosses the place before a space, and merging
    what lies between two such places by itself, once for each different text, is merging all.
    """
    pieces = tool().read_pieces(data_dir / "tiny_llama" / "tok512.bin", 512)
    assert all(b" " not in piece[1:] for piece, _ in pieces)
    encode = functools.cache(lambda text: tuple(plain_encode(text, pieces)))

    def by_words(text):  # plain_encode puts the space in front
        return [token for word in text.split(" ") for token in encode(word) or (space,)]

    (space,) = (number for number, (piece, _) in enumerate(pieces) if piece == b" ")
    assert by_words(story_text[:1500]) == plain_encode(story_text[:1500], pieces)
    tokenizer = load_tokenizer(stories)
    lower = data_dir / "text" / "tinystories" / "tinystories_lower_4m.txt"
    counts = []
    for text in (story_text, lower.read_bytes().decode("utf-8")):
        ids = tokenizer.encode(text)
        assert ids == by_words(text)
        assert tokenizer.decode([1, *ids]) == text
        counts.append(len(ids))
    assert counts == [100_707, 2_093_471]


@pytest.mark.long
def test_greedy_text_is_the_documented_one(stories):
    params, cfg, where = open_checkpoint(stories)
    tokenizer = load_tokenizer(where)
    out = generate(params, [[1]], cfg=cfg, max_new_tokens=100, stop_ids=tokenizer.eos_ids)
    assert tokenizer.decode(out.rows()[0]).startswith(DOCUMENTED)


def test_the_export_of_the_import_is_the_same_file(stories, tmp_path):
    params, cfg = hf.load(stories)
    hf.save(params, cfg, tmp_path / "again", family="llama", source=stories)
    names = sorted(path.name for path in stories.iterdir())
    assert names == sorted(path.name for path in (tmp_path / "again").iterdir())
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (stories / name).read_bytes(), name


def test_dense_perplexity(data_dir, stories, story_text):
    """Pinned; and on whole windows equal to the plain model in float64.

    The windows are those of 127 tokens, each headed by the begin token, numbers 0-31 and 32-71.
    """
    params, cfg, where = open_checkpoint(stories)
    ids = load_tokenizer(where).encode(story_text)
    windows = [[1, *ids[i * 127 : (i + 1) * 127]] for i in range(72)]

    def perplexity(rows):
        starts = np.arange(len(rows)) * 128
        flat = Tokens(np.concatenate(rows), starts, len(rows))
        return measure(params, flat, cfg=cfg, length=128, batch=32).perplexity

    nats = []
    for row in windows[32:36]:
        scores = plain_logits(data_dir / "tiny_llama" / "stories260K.bin", row[:-1])
        scores -= scores.max(-1, keepdims=True)
        nats += list(np.log(np.exp(scores).sum(-1)) - scores[np.arange(127), row[1:]])
    assert perplexity(windows[32:36]) == pytest.approx(np.exp(np.mean(nats)), rel=1e-5)
    found = perplexity(windows[:32]), perplexity(windows[32:])
    print(f"windows of 127 tokens after <s>: 0-31 {found[0]:.4f}, 32-71 {found[1]:.4f}")
    assert found == pytest.approx((5.9383, 5.2698), abs=1e-4)


@pytest.mark.slow
def test_dense_perplexity_of_the_first_60000_characters(stories, story_text):
    """One document, windows of the model's 512 tokens that predict 256 new ones each."""
    params, cfg, where = open_checkpoint(stories)
    tokens = tokenize([Document("", story_text[:60_000])], load_tokenizer(where))
    found = measure(params, tokens, cfg=cfg, length=512, stride=256)
    print(f"perplexity {found.perplexity:.4f}, {found.bits_per_byte:.4f} bits per byte")
    print(f"{found.tokens} tokens, {found.bytes} bytes; {found.protocol}")
    assert found.perplexity == pytest.approx(5.4295, abs=1e-4)


@pytest.mark.parity
def test_transformers_loads_it_and_computes_the_same(stories, story_text):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    theirs = transformers.LlamaForCausalLM.from_pretrained(stories).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(stories)
    ids = tokenizer(story_text[:900])["input_ids"]
    params, cfg, where = open_checkpoint(stories)
    assert ids == [1, *load_tokenizer(where).encode(story_text[:900])]
    assert tokenizer.decode(ids, skip_special_tokens=True) == story_text[:900]
    with torch.no_grad():
        want = theirs(torch.tensor([ids])).logits[0].numpy()
    hidden = decoder.apply(params, jnp.asarray([ids]), cfg=cfg).hidden[0]
    np.testing.assert_allclose(decoder.logits(params, hidden, cfg=cfg), want, atol=1e-4)
