"""`pangu-jax multiconir`: its files, a run that was stopped, two runs, and one sentence a fault."""

import itertools
import json
import lzma
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import load_file, save_file

from pangu_jax.checkpoint import hf, store
from pangu_jax.cli import multiconir_model as command
from pangu_jax.cli.main import main
from pangu_jax.data.tokenizer import load_tokenizer
from pangu_jax.eval import embedding_cache
from pangu_jax.eval.embedding import classify, embed
from pangu_jax.eval.text_encoder import open_text_encoder
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.nn.how import How

TEN = range(1, 11)
ROWS = 6
RERANKER = Path(__file__).parents[1] / "golden" / "reranker.npz"


def call(*words):
    with pytest.raises(SystemExit) as end:
        main(["multiconir", *map(str, words)])
    return end.value.code


def tables():
    """Conditions are letters; a document that breaks one has a z there, or says it differently."""
    draw = np.random.default_rng(0)
    growing, graded = [], []
    for _ in range(ROWS):
        wanted = draw.choice([*"abcdefghijklmnopqrst"], 10, replace=False)

        def broken(places, wanted=wanted):
            return " ".join("z" if i in places else x for i, x in enumerate(wanted)) + " ."

        row = {f"Query{i}": "u " + " ".join(wanted[:i]) for i in TEN} | {"Positive": broken(())}
        row |= {f"HN{i}": broken((i - 1,)) for i in TEN}
        growing.append(row | {f"HN_{i}": broken(range(i)) for i in TEN})
        order = draw.permutation(10)
        graded.append(
            {"Query10": row["Query10"], "Natural_Query10": " ".join(wanted[::-1]) + " v",
             "Positive": row["Positive"], **{f"HN{i}": broken(order[:i]) for i in TEN}}
        )  # fmt: skip
    return pd.DataFrame(growing), pd.DataFrame(graded)


@pytest.fixture
def data(tmp_path):
    """Two domains, one packed; and longer documents of one."""
    folder = tmp_path / "data"
    growing, graded = tables()
    for domain, ending in (("Legal Document", ".csv"), ("Movies", ".csv.xz")):
        for name, table in ((f"{domain}_Task1", growing), (f"{domain}_Task2_&_3", graded)):
            folder.mkdir(exist_ok=True)
            mixed = table.sample(frac=1, random_state=len(domain))
            mixed.to_csv(folder / f"{name}{ending}", index=False)
    graded.drop(columns="Natural_Query10").to_csv(folder / "Movies_512.csv", index=False)
    return folder


def released(folder, stem, task):
    """The released metrics' formulas on the scores that were written."""
    frame = pd.read_csv(folder / f"scores/model/{stem}_task{task}_results.csv")
    if task == 1:
        return [(frame[f"Query{i}_Positive"] > frame[f"Query{i}_HN1"]).mean() for i in TEN], frame
    names = ["Query10_Positive", *(f"Query10_HN{i}" for i in TEN)]
    won = np.stack([frame[a] > frame[b] for a, b in itertools.pairwise(names)], 1)
    if task == 3:
        return (won != released(folder, stem, 2)[1]).mean(), won
    return won.mean(0), won


@pytest.mark.parametrize("protocol", ["official", "collection"])
def test_bm25_and_the_released_formulas(protocol, data, tmp_path, capsys):
    out = tmp_path / "run"
    words = ["--model", "bm25", "--data", data, "--protocol", protocol, "--out", out]
    assert call(*words) == 0
    printed = capsys.readouterr().out.splitlines()
    assert [line[:8] for line in printed] == ["task 1  ", "task 2  ", "task 3  ", "task 4, ",
                                              "report  "]  # fmt: skip
    results = json.loads((out / "results.json").read_text())
    assert len([name for name in results if "/" in name]) == 7 * 5
    means = {}
    for name, cell in results.items():
        if not name.startswith("model/"):
            continue
        stem, task = name.split("/")[1], cell["task"]
        want, frame = released(out, stem, task)
        found = cell["mean"]["value"] if task == 3 else cell["win_rate"]
        np.testing.assert_allclose(found, want, atol=1e-12)
        means.setdefault(task, []).append(cell["mean"]["value"])
        assert cell["mean"]["low"] <= cell["mean"]["value"] <= cell["mean"]["high"]
        if task == 1:
            assert list(frame)[:3] == ["Index", "Query1_Positive", "Query1_HN1"]
            assert ("Query1_HN2" in frame) == (protocol == "collection") == ("Query9_EN7" in frame)
    for line, task in zip(printed[:3], (1, 2, 3), strict=True):
        assert line.split()[2] == f"{np.mean(means[task]):.4f}"
    for task, part in ((1, "Movies_Task1"), (2, "Movies_Task2_&_3"), (4, "Movies_512")):
        cell = results[f"oracle/{part}/task{task}"]
        assert cell["win_rate"] == [1] * 10 and cell["ties"] == [0] * 10
        cell = results[f"constant/{part}/task{task}"]
        assert cell["win_rate"] == [0] * 10 and cell["ties"] == [ROWS] * 10
    report = (out / "report.md").read_text()
    for digest in results["hashes"].values():
        assert len(digest) == 64 and digest in report
    assert ("_bm25_task1.csv" in report) == ("prints task 2's figures" in report) == (
        protocol == "official")  # fmt: skip
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert call(*words) == 0  # nothing is computed again, and nothing changes
    assert files == {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert call(*words, "--rows", "3") == 2
    assert "holds a run with another protocol.rows: null, not 3" in capsys.readouterr().err


def test_the_same_files_packed_or_not_have_one_hash(data, tmp_path, capsys):
    whole = data / "Movies_Task1.csv.xz"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "Movies_Task1.csv").write_bytes(lzma.decompress(whole.read_bytes()))
    for folder in (data, tmp_path / "other"):
        out = tmp_path / f"{folder.name} run"
        assert call("--model", "bm25", "--data", folder, "--out", out, "--rows", 2) == 0
    found = [json.loads((tmp_path / f"{name} run" / "config.json").read_text())["data"]
             for name in ("data", "other")]  # fmt: skip
    assert found[0]["Movies_Task1"] == found[1]["Movies_Task1"]
    capsys.readouterr()
    runs = [tmp_path / "data run", tmp_path / "other run"]
    assert call("--compare", *runs, "--out", tmp_path / "x.png") == 2
    assert "were measured on another data" in capsys.readouterr().err


@pytest.fixture
def runs(encoder_folder, data, tmp_path, monkeypatch):
    """Runs an encoder, with few texts a file of vectors; gives (run, texts embedded so far)."""
    seen = []

    def counted(params, texts, *, prefixes, **options):
        seen.append([prefix + text for prefix, text in zip(prefixes, texts, strict=True)])
        options["prefixes"] = prefixes
        return embed(params, texts, **options)

    monkeypatch.setattr(command, "embed", counted)
    monkeypatch.setattr(embedding_cache, "CHUNK", 40)

    def run(out, *more):
        return call("--model", encoder_folder, "--data", data, "--out", tmp_path / out, "--batch",
                    40, *more)  # fmt: skip

    return run, seen


@pytest.mark.long
def test_an_encoder_goes_on_where_it_was_stopped(
    runs, encoder_folder, tmp_path, monkeypatch, capsys
):
    run, seen = runs
    assert run("whole") == 0
    assert "truncated  " in capsys.readouterr().out
    everything = [text for chunk in seen for text in chunk]
    halves = [set(), set()]
    for place, name in enumerate(("Legal Document_Task1.csv", "Movies_Task1.csv.xz")):
        for stem in (name, name.replace("Task1", "Task2_&_3")):
            halves[place] |= set(pd.read_csv(tmp_path / "data" / stem).to_numpy().ravel())
    assert len(everything) == sum(map(len, halves))  # each once a domain
    # Scores are cosines, times 100.
    params, cfg = hf.load(encoder_folder)
    frame = pd.read_csv(tmp_path / "data" / "Movies_Task1.csv.xz")
    texts = [*frame["Query7"], *frame["Positive"], *frame["HN7"], *frame["HN_7"]]
    how, tokenizer = How(dtype="float32"), load_tokenizer(encoder_folder)
    vectors = embed(params, texts, cfg=cfg, tokenizer=tokenizer, how=how).vectors
    query, *others = np.split(vectors.astype(np.float64), 4)
    scores = pd.read_csv(tmp_path / "whole/scores/model/Movies_Task1_task1_results.csv")
    names = ["Query7_Positive", "Query7_HN1", "Query7_HN2"]
    for name, other in zip(names, others, strict=True):
        np.testing.assert_allclose(scores[name], 100 * (query * other).sum(1), atol=1e-3)
    easy = 100 * (query * np.roll(others[0], -2, axis=0)).sum(1)
    np.testing.assert_allclose(scores["Query7_EN2"], easy, atol=1e-3)

    def stopped(params, texts, **options):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(list(texts))
        return embed(params, texts, **options)

    count = len(seen)
    seen.clear()
    with monkeypatch.context() as patched:
        patched.setattr(command, "embed", stopped)
        assert run("parts") == 130
    assert len(seen) == 3 and not (tmp_path / "parts" / "report.md").exists()
    assert run("parts") == 0 and len(seen) == count
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            other = tmp_path / "parts" / path.relative_to(tmp_path / "whole")
            assert path.read_bytes() == other.read_bytes(), path
    vectors = next((tmp_path / "parts" / "vectors").rglob("*.npy"))
    vectors.write_bytes(b"other")
    assert run("parts") == 0  # they are not needed any more
    cell = tmp_path / "parts/scores/model/Movies_Task1_task1_results.csv"
    cell.write_text(cell.read_text().replace("Index", "index"))
    capsys.readouterr()
    assert run("parts") == 2
    assert "is not the file that the run wrote" in capsys.readouterr().err


def test_prefixes_are_of_queries_and_of_documents(runs, tmp_path):
    run, seen = runs
    words = ["--rows", 2, "--query-prefix", "q: ", "--document-prefix", "d: "]
    assert run("run", *words) == 0
    everything = [text for chunk in seen for text in chunk]
    queries = [text.removeprefix("q: ") for text in everything if text.startswith("q: ")]
    assert all(text.startswith(("q: ", "d: ")) for text in everything)
    assert sorted(queries) == sorted(
        text
        for name in ("Legal Document", "Movies")
        for text in _texts(tmp_path / "data", name)
    )  # fmt: skip
    about = json.loads((tmp_path / "run" / "config.json").read_text())["model"]
    assert (about["query_prefix"], about["document_prefix"]) == ("q: ", "d: ")


def _texts(folder, domain):
    """The different queries of the first two rows."""
    found = set()
    for path in folder.glob(f"{domain}_*"):
        frame = pd.read_csv(path).head(2)
        found |= set(frame[[name for name in frame if "Query" in name]].to_numpy().ravel())
    return found


@pytest.mark.long
def test_two_runs_side_by_side(data, tmp_path, capsys):
    for name in ("official", "collection"):
        words = ["--model", "bm25", "--data", data, "--protocol", name, "--out", tmp_path / name]
        assert call(*words) == 0
    capsys.readouterr()
    pair = [tmp_path / "collection", tmp_path / "official"]
    assert call("--compare", *pair, "--out", tmp_path / "two.png") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "first      bm25 (collection), collection"
    assert (tmp_path / "two.png").read_bytes().startswith(b"\x89PNG")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[6:]]
    assert [row[0] for row in rows] == ["task 1"] * 3 + ["task 2"] * 3 + ["task 3"] * 3 + [
        "task 4, 512"]  # fmt: skip
    results = [json.loads((folder / "results.json").read_text()) for folder in pair]
    values = [r["model/Movies_Task1/task1"]["mean"]["value"] for r in results]
    assert rows[2][1:4] == ["Movies", *(f"{value:.4f}" for value in values)]
    assert rows[2][4].startswith(f"{values[0] - values[1]:+.4f} [") and values[0] > values[1]
    assert all(0 < float(row[5]) <= float(row[6]) <= 1 for row in rows)
    (tmp_path / "official" / "report.md").unlink()
    assert call("--compare", *pair, "--out", tmp_path / "two.png") == 2
    assert "official has not ended; run its command again" in capsys.readouterr().err


def test_where_a_model_looks(runs, tmp_path, capsys):
    run, seen = runs
    words = ["--model", "bm25", "--data", tmp_path / "data", "--orders", 2]
    assert call(*words, "--protocol", "official", "--out", tmp_path / "bm25") == 2
    assert "--orders needs scores that do not depend on" in capsys.readouterr().err
    for name in ("Legal Document_Task1.csv", "Movies_Task1.csv.xz"):
        frame = pd.read_csv(tmp_path / "data" / name)
        listed = [f"{i}. {x}" for i, x in enumerate("abcdefghij", 1)]
        frame["Query10"] = "u " + "; ".join(listed) + "."
        frame.loc[1, "Query10"] = "no list"
        frame.to_csv(tmp_path / "data" / name, index=False)
    assert run("run", "--orders", 2) == 0
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    cell = results["places/Movies_Task1/task1"]
    scores = pd.read_csv(tmp_path / "run" / cell["file"])
    drop = scores["Order0_Positive"] - scores["Order0_Broken4"]
    assert cell["given"]["drop"][3] == pytest.approx(drop.mean())
    assert cell["given"]["left_out"] == 0 and cell["shuffled"]["left_out"] == 1
    shares = [share["value"] for share in cell["given"]["share"]]
    assert sum(shares) == pytest.approx(1) and len(set(shares)) == 10
    assert "| Movies | 2 drawn | " in (tmp_path / "run" / "report.md").read_text()
    assert any("u 1. " in text for chunk in seen for text in chunk)
    assert call(*words, "--out", tmp_path / "run") == 2
    assert "holds a run with another model." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "change"),
    [("model/Movies_512/task4", {}), ("model/Movies_512/task4", None), ("hashes", {"model": 3}),
     ("model/Movies_512/task4", {"file": 1})],
)  # fmt: skip
def test_results_that_are_none_of_ours(name, change, data, tmp_path, capsys):
    words = ["--model", "bm25", "--data", data, "--out", tmp_path / "run", "--rows", 1]
    assert call(*words) == 0
    path = tmp_path / "run" / "results.json"
    results = json.loads(path.read_text())
    results[name] = change if not change else {**results[name], **change}
    path.write_text(json.dumps(results))
    capsys.readouterr()
    for again in (words, ["--compare", tmp_path / "run", tmp_path / "run", "--out", "x.png"]):
        assert call(*again) == 2
        error = capsys.readouterr().err
        assert f"results.json: '{name}' has no '" in error and error.count("\n") == 1


def test_missing_texts(data, tmp_path, capsys):
    path = data / "Legal Document_Task2_&_3.csv"
    frame = pd.read_csv(path)
    frame.loc[3, "HN4"] = None
    frame.to_csv(path, index=False)
    words = ["--model", "bm25", "--data", data, "--out", tmp_path / "run"]
    assert call(*words, "--protocol", "official") == 2
    assert "Legal Document_Task2_&_3.csv row 4: column 'HN4' is ''" in capsys.readouterr().err
    words[-1] = tmp_path / "other"
    assert call(*words) == 0
    cells = json.loads((tmp_path / "other" / "results.json").read_text())
    left = {name: cell["left_out"] for name, cell in cells.items() if "file" in cell}
    assert left["model/Legal Document_Task2_&_3/task2"] == 2 and sum(left.values()) == 4 * 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--model", "bm25", "--data", "DATA"], "a run needs --out"),
        (["--data", "DATA", "--out", "OUT"], "a run needs --model"),
        (["--model", "none", "--data", "DATA", "--out", "OUT"], "none is no checkpoint"),
        (["--model", "DATA", "--data", "OUT", "--out", "OUT"], "there is no folder"),
        (["--model", "bm25", "--data", "DATA", "--out", "OUT", "--pooling", "cls"],
         "--pooling is for models; bm25 reads words"),
        (["--model", "bm25", "--data", "DATA", "--out", "OUT", "--rows", "0"], "rows must be at"),
        (["--model", "bm25", "--data", "DATA", "--out", "OUT", "--seed", "-1"], "seed must be at"),
        (["--compare", "OUT", "OUT"], "--compare needs --out"),
        (["--compare", "OUT", "OUT", "--out", "x.png", "--rows", "3"], "--compare takes no --rows"),
        (["--compare", "OUT", "OUT", "--out", "x.gif"], "a picture ends in .png"),
        (["--compare", "OUT", "OUT", "--out", "OUT.png"], "cannot read"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(words, said, data, tmp_path, capsys):
    places = {"DATA": data, "OUT": tmp_path / "out", "OUT.png": tmp_path / "out.png"}
    assert call(*(places.get(word, word) for word in words)) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_what_an_encoder_cannot_do_leaves_no_run(encoder_folder, data, tmp_path, capsys):
    words = ["--model", encoder_folder, "--data", data, "--out", tmp_path / "out"]
    for more, said in ((["--max-length", 99], "cannot be cut to 99 tokens: the model takes 24"),
                       (["--batch", 0], "batch must be at least 1")):  # fmt: skip
        assert call(*words, *more) == 2
        assert said in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_decoder_is_measured(tiny_run, data, tmp_path, capsys):
    """Its prefixes are seen and not pooled, by whichever text they stand before."""
    words = ["--model", tiny_run, "--data", data, "--out", tmp_path / "out", "--rows", 1]
    assert call(*words) == 2 and not (tmp_path / "out").exists()
    assert "give the option pooling" in capsys.readouterr().err
    words += ["--pooling", "mean", "--query-prefix", "find: ", "--pool-prefix", "False"]
    assert call(*words) == 0
    config = json.loads((tmp_path / "out" / "config.json").read_text())["model"]
    assert config["config"]["pool_prefix"] is False and config["config"]["pooling"] == "mean"
    frame = pd.read_csv(data / "Movies_512.csv").head(1)
    model = open_text_encoder(tiny_run, pooling="mean", pool_prefix=False)
    query = model.encode(frame["Query10"], prompt="find: ", normalize_embeddings=True)
    other = model.encode(frame["HN3"], normalize_embeddings=True)
    scores = pd.read_csv(tmp_path / "out/scores/model/Movies_512_task4_results.csv")
    np.testing.assert_allclose(scores["Query10_HN3"], 100 * (query * other).sum(1), atol=1e-3)
    assert call(*words, "--attention", "bidirectional") == 2
    assert "holds a run with another model.config.causal: true, not" in capsys.readouterr().err


@pytest.fixture
def reranker(encoder_folder, tmp_path):
    """The encoder's tokenizer with a BERT of one score."""
    folder = tmp_path / "reranker"
    folder.mkdir()
    with np.load(RERANKER) as golden:
        weights = {n.removeprefix("weights/"): golden[n] for n in golden if "weights/" in n}
        keys = json.loads(str(golden["config"]))
    save_file(weights, folder / "model.safetensors")
    keys["architectures"] = ["BertForSequenceClassification"]
    (folder / "config.json").write_text(json.dumps(keys))
    (folder / "tokenizer.json").write_bytes((encoder_folder / "tokenizer.json").read_bytes())
    return folder


@pytest.mark.long
def test_a_reranker_scores_each_pair_once_and_goes_on(
    reranker, data, tmp_path, monkeypatch, capsys
):
    for path in data.glob("Legal*"):
        path.unlink()
    seen, stop = [], [99]

    def counted(params, texts, **options):
        if len(seen) == stop[0]:
            raise KeyboardInterrupt
        seen.append(list(texts))
        return classify(params, texts, **options)

    monkeypatch.setattr(command, "classify", counted)
    monkeypatch.setattr(embedding_cache, "CHUNK", 60)
    words = ["--model", reranker, "--data", data, "--rows", 2, "--batch", 60]
    assert call(*words, "--out", tmp_path / "whole") == 0
    pairs = [pair for chunk in seen for pair in chunk]
    assert len(pairs) == len(set(pairs)) and len(seen) > 2
    assert capsys.readouterr().out.splitlines()[-2].startswith("truncated  70 of 138 ")
    count, stop[0] = len(seen), 2
    seen.clear()
    assert call(*words, "--out", tmp_path / "parts") == 130
    stop[0] = 99
    assert call(*words, "--out", tmp_path / "parts") == 0 and len(seen) == count
    for path in (tmp_path / "whole").rglob("*"):
        if path.is_file():
            other = tmp_path / "parts" / path.relative_to(tmp_path / "whole")
            assert path.read_bytes() == other.read_bytes(), path
    params, cfg = hf.load(reranker, dtype="float32")
    frame = pd.read_csv(data / "Movies_512.csv").head(2)
    texts = [*zip(frame["Query10"], frame["HN3"], strict=True)]
    want = classify(params, texts, cfg=cfg, tokenizer=load_tokenizer(reranker)).vectors[:, 0]
    file = "scores/model/Movies_512_task4_results.csv"
    found = pd.read_csv(tmp_path / "whole" / file)
    np.testing.assert_allclose(found["Query10_HN3"], want, atol=1e-5)
    seen.clear()
    assert call(*words, "--protocol", "official", "--out", tmp_path / "official") == 0
    found = pd.read_csv(tmp_path / "official" / file)
    np.testing.assert_allclose(found["Query10_HN3"], 100 / (1 + np.exp(-want)), atol=1e-4)
    assert sum(map(len, seen)) < len(pairs)  # easy negatives are for models of vectors


@pytest.mark.parametrize(
    ("labels", "more", "said"),
    [
        (3, [], "scores 3 classes; a reranker gives one score for a pair of texts"),
        (1, ["--attention", "causal"], "--attention is for decoders; "),
    ],
)
def test_what_is_no_reranker(labels, more, said, reranker, data, tmp_path, capsys):
    keys = json.loads((reranker / "config.json").read_text())
    keys = {name: value for name, value in keys.items() if name not in ("id2label", "label2id")}
    (reranker / "config.json").write_text(json.dumps({**keys, "num_labels": labels}))
    if labels == 3:
        weights = load_file(reranker / "model.safetensors")
        for name in ("classifier.weight", "classifier.bias"):
            weights[name] = np.repeat(weights[name], 3, axis=0)
        save_file(weights, reranker / "model.safetensors")
    assert call("--model", reranker, "--data", data, "--out", tmp_path / "out", *more) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_another_kind_of_model(data, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    store.save_model(TimeProConfig(16, 4, 1, 16, 8, 8), tmp_path / "run")
    assert call("--model", tmp_path / "run", "--data", data, "--out", tmp_path / "out") == 2
    assert "holds a timepro; `pangu-jax multiconir" in capsys.readouterr().err
