"""SentencePiece's tokenizer.model against SentencePiece itself."""

import io
import random

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2

from pangu_jax.core.errors import InputError
from pangu_jax.data.tokenizer import StreamDecoder, load_tokenizer

TEXT = (
    "the model reads a text, writes code() and 123 numbers; 你好 世界 系统 用户 größe naïve café "
    "self.x == y aaaa aaaaa ===== 😀 [unused9] [unused10] [unused1 <0x41> <b> it's 0123456789ABCDEF"
)
WORDS = TEXT.split()
ODD = "ab ▁ae12=*`\n\té你好😀½.,-[]<>"
LLAMA = {
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "user_defined_symbols": ["[unused9]", "[unused10]"],
}
KINDS = {
    "llama": LLAMA,
    "no_dummy_space": {**LLAMA, "add_dummy_prefix": False, "user_defined_symbols": ["\n\n"]},
    "stripped": {"model_type": "bpe", "normalization_rule_name": "identity"},
    "rewritten": {"model_type": "bpe", "user_defined_symbols": ["[unused9]"]},
    "unigram": {"model_type": "unigram", "user_defined_symbols": ["[unused9]"]},
    "unigram_bytes": {**LLAMA, "model_type": "unigram"},
}


def write(folder, **options):
    """Trains a small model."""
    draw, model = random.Random(0), io.BytesIO()
    lines = [" ".join(draw.choice(WORDS) for _ in range(9)) for _ in range(300)]
    usual = {"vocab_size": 420, "character_coverage": 0.995, "hard_vocab_limit": False}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, minloglevel=2, **usual | options
    )
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {name: write(root / name, **options) for name, options in KINDS.items()}


def texts(kind):
    draw = random.Random(1)
    yield from ["", " ", "  a  b  ", "▁a▁ ", "[unused9]<0x41>[unused10]", "x<0x41>", "a\n\nb"]
    for _ in range(1000):
        if "unigram" in kind or draw.random() < 0.5:  # in runs of a sign, unigram models have ties
            yield draw.choice(["", " ", "  "]).join(draw.sample(WORDS, draw.randrange(9)))
        else:
            yield "".join(draw.choice(ODD) for _ in range(draw.randrange(24)))


@pytest.mark.parametrize("kind", KINDS)
def test_every_text_gets_sentencepieces_ids_and_comes_back(kind, folders):
    file = folders[kind] / "tokenizer.model"
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(file))
    tokenizer = load_tokenizer(folders[kind])
    assert tokenizer.name == str(file) and tokenizer.vocab_size == oracle.vocab_size()
    for text in texts(kind):
        want, found = oracle.encode(text), tokenizer.encode(text)
        if "unigram" in kind and found != want:  # two ways to cut a text may be as good
            scores = [sum(map(oracle.get_score, ids)) for ids in (found, want)]
            assert scores[0] == pytest.approx(scores[1], rel=1e-6), text
        else:
            assert found == want, text
        # Unknown signs SentencePiece shows, and we leave out; marks of its own it takes for spaces.
        if oracle.unk_id() not in want and "▁" not in text:
            assert tokenizer.decode(want) == oracle.decode(want), text
    assert (tokenizer.boundary, tokenizer.eos_ids, tokenizer.begin) == (1, (2,), ())


def test_what_comes_token_by_token_is_the_decoded_text(folders):
    tokenizer = load_tokenizer(folders["llama"])
    ids = tokenizer.encode(" 你 😀[unused9]ﬁ\n the model")
    stream = StreamDecoder(tokenizer)
    assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)


def config(folder, text, **files):
    (folder / "tokenizer_config.json").write_text(text)
    for name, content in files.items():
        (folder / f"{name}.json").write_text(content)
    return load_tokenizer(folder)


def test_added_tokens_are_cut_out_first_and_each_stretch_is_a_text_of_its_own(tmp_path):
    folder = write(tmp_path / "t", **LLAMA)
    plain = load_tokenizer(folder)
    new = plain.vocab_size
    listed = '{"0": {"content": "<unk>"}, "4": {"content": "<|end|>", "special": true}}'
    tokenizer = config(
        folder,
        f'{{"added_tokens_decoder": {listed}, "pad_token": "[PAD]", "add_bos_token": true,'
        '"bos_token": "<s>", "eos_token": {"content": "<|end|>"}}',
    )
    assert (
        tokenizer.token_to_id("<|end|>") == 4 and tokenizer.token_to_id("[unused10]") is None
    )  # renamed
    assert tokenizer.token_to_id("[PAD]") == new and tokenizer.vocab_size == new + 1
    assert (tokenizer.begin, tokenizer.eos_ids) == ((1,), (4,))
    want = [1, *plain.encode("the model"), 4, *plain.encode(" a"), new, *plain.encode("b")]
    assert tokenizer.encode("<s>the model<|end|> a[PAD]b") == want
    # As transformers reads Llama's: only the first stretch begins with a space.
    first = config(folder, '{"legacy": false, "tokenizer_class": "LlamaTokenizer"}')
    bare = [first.token_to_id(token) for token in "▁the"[:1]]
    assert first.encode("<s>[unused9]")[0] == 1 and bare[0] not in first.encode("<s>[unused9]")
    assert first.encode("the model") == plain.encode("the model")
    old = config(folder, "{}", added_tokens=f'{{"[NEW]": {new}}}')
    assert old.encode("[NEW]") == [new]


def change(folder, edit):
    file = folder / "tokenizer.model"
    model = sentencepiece_model_pb2.ModelProto.FromString(file.read_bytes())
    edit(model)
    file.write_bytes(model.SerializeToString())


def unused(model):
    model.pieces[9].type = 5


def words(model):
    model.trainer_spec.model_type = 3


def spaces(model):
    model.normalizer_spec.escape_whitespaces = False


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (unused, "holds unused pieces"),
        (words, "is of a kind other than BPE"),
        (spaces, "leaves spaces"),
    ],
)
def test_what_cannot_be_read_exactly_is_refused(edit, said, tmp_path):
    change(write(tmp_path / "t", **LLAMA), edit)
    with pytest.raises(InputError, match=rf"tokenizer\.model {said}.*give a tokenizer\.json"):
        load_tokenizer(tmp_path / "t")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"added_tokens_decoder": {"9999": {"content": "x"}}}', "the id 9999, but .* next free"),
        ('{"added_tokens_decoder": {"x": {"content": "x"}}}', "'x' is no id of a token"),
        ('{"added_tokens_decoder": {"5": "x"}}', "needs a content text"),
        ('{"added_tokens_decoder": [1]}', "must be an object"),
        ('{"added_tokens_decoder": {"5": {"content": "</s>"}}}', "name '</s>' twice"),
        ("[1]", "holds no JSON object"),
    ],
)
def test_added_tokens_that_make_no_sense_are_named(text, said, folders, tmp_path):
    (tmp_path / "tokenizer.model").write_bytes((folders["llama"] / "tokenizer.model").read_bytes())
    with pytest.raises(InputError, match=said):
        config(tmp_path, text)


def test_what_is_no_model_is_refused(tmp_path):
    for raw in (b"", b"nonsense", b"\x0a\xff"):
        (tmp_path / "tokenizer.model").write_bytes(raw)
        with pytest.raises(InputError, match=r"tokenizer\.model is not a SentencePiece model"):
            load_tokenizer(tmp_path)


def test_a_tokenizer_json_beside_it_is_taken(folders, tmp_path):
    folder = write(tmp_path / "t", **LLAMA)
    inner = load_tokenizer(folders["llama"]).inner
    inner.save(str(folder / "tokenizer.json"))
    assert load_tokenizer(folder).name.endswith("tokenizer.json")
