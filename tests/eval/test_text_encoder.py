"""What users of sentence-transformers and MTEB call, on an encoder and on a decoder's folder."""

import dataclasses
import enum
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

import pangu_jax as pj
from pangu_jax.core.errors import InputError
from pangu_jax.data.encoder_inputs import encode_for_decoder, encode_for_encoder, stacked
from pangu_jax.eval.embedding import embed
from pangu_jax.eval.text_encoder import open_text_encoder
from pangu_jax.models.encoder import EncoderConfig
from pangu_jax.train.contrastive import text_vectors

GOLDEN = Path(__file__).parents[1] / "golden" / "llama2"
ONE = {"batch_size": 1}  # one shape to compile
TEXTS = ["a b c", "d", "a b c d e f g h"]


class PromptType(enum.Enum):
    """As MTEB has it."""

    query = "query"
    document = "document"


@pytest.fixture(scope="module")
def model(encoder_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "encoder"
    shutil.copytree(encoder_folder, folder)
    prompts = {"prompts": {"query": "q ", "passage": "p "}, "default_prompt_name": None}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return open_text_encoder(folder)


def expected(model, texts, prefix=""):
    options = {"cfg": model.cfg, "tokenizer": model.tokenizer, "prefixes": [prefix] * len(texts)}
    return embed(model.params, texts, batch=1, **options).vectors


def test_vectors_as_sentence_transformers_gives_them(model):
    found = model.encode(TEXTS, **ONE, show_progress_bar=True, convert_to_numpy=True)
    assert found.dtype == np.float32 and found.shape == (3, 32)
    want = expected(model, TEXTS)
    np.testing.assert_allclose(found, want, atol=1e-6)
    one = model.encode("d", device="cpu", precision="float32")
    np.testing.assert_allclose(one, want[1], atol=1e-6)
    assert model.encode([]).shape == (0, 32) == (0, model.get_sentence_embedding_dimension())
    bare = dataclasses.replace(model, cfg=dataclasses.replace(model.cfg, normalize=False))
    lengths = np.linalg.norm(bare.encode(TEXTS, **ONE), axis=1)
    assert np.abs(lengths - 1).min() > 0.1
    np.testing.assert_allclose(
        bare.encode(TEXTS, **ONE, normalize_embeddings=True), want, atol=1e-6
    )
    cosines = want @ want.T
    np.testing.assert_allclose(bare.similarity(bare.encode(TEXTS, **ONE), want), cosines, atol=1e-5)
    np.testing.assert_allclose(bare.similarity_pairwise(want, want[::-1]),
                               np.diag(cosines[:, ::-1]), atol=1e-6)  # fmt: skip


def test_prompts_by_name_by_type_or_given(model):
    query, passage = (expected(model, TEXTS, prefix) for prefix in ("q ", "p "))
    assert np.abs(query - passage).max() > 1e-3
    near = {"atol": 1e-6}
    np.testing.assert_allclose(model.encode(TEXTS, **ONE, prompt_name="query"), query, **near)
    np.testing.assert_allclose(
        model.encode(TEXTS, **ONE, prompt="p ", prompt_name="query"), passage
    )
    np.testing.assert_allclose(model.encode_query(TEXTS, **ONE), query, **near)
    np.testing.assert_allclose(model.encode_document(TEXTS, **ONE), passage, **near)
    typed = model.encode(TEXTS, **ONE, prompt_type=PromptType.query, task_name="T", hf_split="test")
    np.testing.assert_allclose(typed, query, **near)
    for known, prefix in (("q ", "q "), (None, "")):
        prompts = {"query": known} if known else {}
        other = dataclasses.replace(model, prompts=prompts)
        np.testing.assert_allclose(other.encode_query(TEXTS, **ONE), expected(model, TEXTS, prefix))


def test_batches_and_documents(model):
    want = model.encode(TEXTS, **ONE)
    batches = ({"text": TEXTS[i : i + 2], "id": [i]} for i in (0, 2))
    np.testing.assert_allclose(model.encode(batches, **ONE), want, atol=1e-6)
    documents = [{"title": "a", "text": "b c"}, {"text": "d"}, {"title": "", "text": TEXTS[2]}]
    np.testing.assert_allclose(model.encode(documents, **ONE), want, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"prompt_name": "quest"}, "prompt_name must be one of query, passage, got 'quest'"),
        ({"convert_to_tensor": True}, "encode does not support convert_to_tensor True"),
        ({"precision": "int8"}, "encode does not support precision 'int8'"),
        ({"truncate_dim": 8}, "encode does not support truncate_dim 8"),
        ({"promt": "q: "}, "encode does not support promt 'q: '"),
        ({"batch_size": 0}, "batch must be at least 1"),
    ],
)
def test_what_is_not_done_is_not_passed_over(options, said, model):
    with pytest.raises(InputError, match=said):
        model.encode(TEXTS, **options)


@pytest.fixture
def decoder_folder(encoder_folder, tmp_path):
    """A Llama as sentence-transformers has it: the last token, at length 1, an instruction."""
    folder = tmp_path / "decoder"
    shutil.copytree(encoder_folder, folder)
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, folder)
    pooling = {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True,
               "pooling_mode_mean_tokens": False, "include_prompt": False}  # fmt: skip
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    prompts = {"prompts": {"default": "a b "}, "default_prompt_name": "default"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    return folder


@pytest.mark.long
def test_a_decoder_says_how_it_pools(decoder_folder):
    model = open_text_encoder(decoder_folder)
    cfg = model.cfg
    assert (cfg.pooling, cfg.normalize, cfg.pool_prefix, cfg.text_length, cfg.prefix) == (
        "last", True, False, 12, "a b ")  # fmt: skip
    assert cfg.causal and "head" not in model.params
    alone = [model.encode(text) for text in TEXTS]
    np.testing.assert_allclose(model.encode([*TEXTS]), alone, atol=1e-6)
    # With the last token the prefix is only seen; a mean leaves it out.
    mean = open_text_encoder(decoder_folder, pooling="mean", attention="bidirectional")
    whole = open_text_encoder(decoder_folder, pooling="mean", attention="bidirectional",
                              pool_prefix=True, prefix="")  # fmt: skip
    assert not mean.cfg.causal and np.abs(mean.encode("c") - whole.encode("a b c")).max() > 1e-3
    pooling = json.loads((decoder_folder / "1_Pooling" / "config.json").read_text())
    pooling["include_prompt"] = "no"
    (decoder_folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    with pytest.raises(InputError, match="include_prompt 'no'; only true and false is supported"):
        open_text_encoder(decoder_folder)


@pytest.mark.long
def test_training_embeds_what_users_get(encoder_folder, tiny_run):
    """`train.contrastive.text_vectors` on stacked ids, at length 1, of encoders and of decoders."""
    for folder, options in ((encoder_folder, {}), (tiny_run, {"pooling": "last"})):
        model = open_text_encoder(folder, **options)
        some = ["a b c", "d", "e f g h i j"]
        if isinstance(model.cfg, EncoderConfig):
            marked = list(encode_for_encoder(model.tokenizer, some, 12))
        else:
            marked = list(encode_for_decoder(model.tokenizer, some, 12, prefixes=[""] * 3))
        inputs = stacked(marked, 12)
        assert inputs["tokens"].shape == inputs["valid"].shape == (3, 12)
        assert inputs["valid"].sum(1).tolist() == [len(item.ids) for item in marked]
        found = jax.jit(text_vectors(model.cfg))(model.params, inputs, jax.random.key(0))
        want = model.encode(some, normalize_embeddings=True)
        np.testing.assert_allclose(found, want, atol=1e-5)
        with pytest.raises(InputError, match="pooling is not known"):
            text_vectors(dataclasses.replace(model.cfg, pooling=None))


def test_a_loaded_decoder_gives_vectors_as_an_opened_one(tiny_run):
    model, some = pj.load(tiny_run), ["a text", "b"]
    for pooling, attention in (("last", None), ("mean", "bidirectional")):
        options = {"pooling": pooling, "attention": attention, "prefix": "of "}
        want = open_text_encoder(tiny_run, pool_prefix=False, **options).encode(some)
        found = pj.embed(model, some, pool_prefix=False, **options)
        np.testing.assert_allclose(found, want, atol=1e-6)
    with pytest.raises(InputError, match="does not say how hidden states make a vector"):
        pj.embed(model, some)
