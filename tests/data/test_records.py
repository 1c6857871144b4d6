"""WikiText-2 prepared by tensorflow-datasets without TensorFlow, and read without either."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest

from pangu_jax.core.errors import InputError
from pangu_jax.data.packing import PackedTokens, tokenize
from pangu_jax.data.pipeline import batches
from pangu_jax.data.records import Records, write
from pangu_jax.data.text import documents
from pangu_jax.data.tokenizer import ByteTokenizer

pytest.importorskip("tensorflow_datasets", reason="preparing needs pangu-jax[data]")

from pangu_jax.cli.main import main
from pangu_jax.data import wikitext2
from pangu_jax.data.wikitext2 import articles, find_files, prepare

TEXT = (
    " \n = First = \n \n One <unk> , with é . \n = = Part = = \n More . \n \n"
    " = Second one = \n \n Two , 1 = 1 . \n = no title = \n end \n"
)
WANT = [
    ("First", " = First = \n \n One <unk> , with é . \n = = Part = = \n More .\n"),
    ("Second one", " = Second one = \n \n Two , 1 = 1 . \n = no title = \n end\n"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    (source / "wiki.train.tokens").write_text(TEXT)
    with pytest.raises(SystemExit) as end:
        main(["prepare", "wikitext2", "--source", str(source), "--out", str(source / "out")])
    assert end.value.code == 0
    return source / "out" / "wikitext2" / "1.0.0"


def test_a_text_is_cut_at_its_titles():
    assert list(articles(TEXT)) == WANT


def test_what_was_prepared_is_read_as_documents(prepared):
    found = list(documents(f"{prepared}:train"))
    assert sorted(d.text for d in found) == sorted(text for _, text in WANT)
    assert [d.name for d in found] == ["train:0", "train:1"]
    assert list(documents(prepared)) == found
    titles = {d.text for d in documents(prepared, field="title")}
    assert titles == {title for title, _ in WANT}
    assert "tensorflow" not in sys.modules


def test_it_is_read_as_tensorflow_datasets_reads_it(prepared):
    import tensorflow_datasets as tfds

    theirs = tfds.builder_from_directory(prepared).as_data_source(split="train")
    ours = Records(prepared, "train")
    assert [dict(theirs[i]) for i in range(2)] == [ours[i] for i in range(len(ours))]


def test_integers_are_read_too_and_are_no_texts(tmp_path):
    import tensorflow_datasets as tfds

    numbers = [0, 5, -3, 2**40, -(2**63)]

    class Numbers(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = tfds.features.FeaturesDict(
                {"number": np.int64, "text": tfds.features.Text()}
            )
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, dl_manager):
            return {"some": self._generate_examples()}

        def _generate_examples(self):
            yield from ((i, {"number": n, "text": str(n)}) for i, n in enumerate(numbers))

    folder = write(Numbers, tmp_path)
    source = Records(folder, "some")
    found = [source[i] for i in range(len(source))]
    assert sorted(x["number"] for x in found) == sorted(numbers)
    assert all(x["text"] == str(x["number"]).encode() for x in found)
    with pytest.raises(InputError, match="has no text 'number'; known: text"):
        list(documents(folder, field="number"))


def test_reading_needs_grain_alone(prepared):
    code = (
        "import sys; sys.modules['tensorflow_datasets'] = None\n"
        "from pangu_jax.data.text import documents\n"
        f"assert len(list(documents({str(prepared)!r}))) == 2"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_batches_come_from_it(prepared):
    source = PackedTokens(tokenize(documents(prepared), ByteTokenizer()), 16)
    batch = next(batches(source, batch=4))
    assert batch["tokens"].shape == (4, 16)


def test_preparing_again_changes_nothing(prepared):
    before = {p: p.stat().st_mtime_ns for p in prepared.rglob("*")}
    assert prepare(prepared.parents[2], prepared.parents[1]) == prepared
    assert {p: p.stat().st_mtime_ns for p in prepared.rglob("*")} == before


def test_other_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="holds no file of WikiText-2"):
        find_files(tmp_path)
    (tmp_path / "valid.txt").write_text("other")
    with pytest.raises(
        InputError, match=r"valid\.txt is not the valid split .* sha256 is [0-9a-f]"
    ):
        prepare(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(wikitext2, "SHA256", {})
    with pytest.raises(InputError, match="cannot write"):
        prepare(tmp_path, tmp_path / "file" / "out")


def test_damage_is_named(prepared, tmp_path):
    def copy(name):
        shutil.copytree(prepared, tmp_path / name)
        return tmp_path / name, next((tmp_path / name).glob("*array_record*"))

    with pytest.raises(InputError, match="has no split 'dev'; known: train"):
        list(documents(f"{prepared}:dev"))
    with pytest.raises(InputError, match="has no text 'body'; known: "):
        list(documents(prepared, field="body"))
    folder, file = copy("gone")
    file.unlink()
    with pytest.raises(InputError, match="has 0 files of the split train"):
        list(documents(folder))
    folder, file = copy("cut")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputError, match=r"(cannot read|record 0 of) .*cut"):
        list(documents(folder))
    folder, _ = copy("other")
    info = json.loads((folder / "dataset_info.json").read_text())
    (folder / "dataset_info.json").write_text(json.dumps({**info, "fileFormat": "tfrecord"}))
    with pytest.raises(InputError, match="is of no dataset in array_record"):
        list(documents(folder))


def test_the_real_splits_have_their_sixty_articles(data_dir, tmp_path):
    folder = prepare(data_dir / "text" / "wikitext-2", tmp_path)
    for split, tokens in (("valid", 217_646), ("test", 245_569)):
        found = list(documents(f"{folder}:{split}"))
        assert len(found) == 60
        whole = (data_dir / "text" / "wikitext-2" / f"{split}.txt").read_text()
        words = sum(len(d.text.split()) for d in found)
        assert words == len(whole.split()) == tokens - whole.count("\n")


@pytest.mark.parametrize(
    "splits", [3, [3], [{}], [{"name": "train"}], [{"name": "train", "shardLengths": 1}], None]
)
def test_a_description_of_other_types_is_named(splits, tmp_path):
    info = {"name": "wikitext2", "fileFormat": "array_record", "splits": splits}
    (tmp_path / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(InputError, match=r"dataset_info\.json is damaged: .* prepare it again"):
        Records(tmp_path, "train")
