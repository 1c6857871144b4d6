"""report.md of a MultiConIR run, and two runs side by side, as text and as a picture."""

import math
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.core.cells import RESULTS
from pangu_jax.core.config import read_json
from pangu_jax.core.errors import InputError
from pangu_jax.core.picture import FORMATS, picture
from pangu_jax.core.run_folder import SETTINGS
from pangu_jax.eval import pairwise_metrics
from pangu_jax.eval.embedding_cache import check_file
from pangu_jax.eval.multiconir import STATISTICS, Table, outcomes, read_scores
from pangu_jax.eval.pairwise_metrics import Difference, Estimate, estimate
from pangu_jax.study import report
from pangu_jax.study.table import table

PLACES = "places"

Key = tuple[int, int | None]  # task, and the length of task 4

NOTHING = object()  # is of no type that a cell has
HASHES = {"model": str, "data": str, "protocol": str}
VECTORS = {"texts": int, "cut": int, "length": int, "sha256": str}
PLACED = {"file": str, "sha256": str, "domain": str, "orders": int, "given": dict, "shuffled": dict}
SCORED = {
    "file": str, "sha256": str, "domain": str, "task": int, "length": int | None, "mean": dict,
    "ties": list, "left_out": int,
}  # fmt: skip

TITLES = {
    1: "Task 1, one to ten conditions: win rate of the positive over its hard negative",
    2: "Task 2, documents that meet ten to no conditions: win rate of each over the next",
    3: "Task 3, the query listed and in one sentence: share of task 2's comparisons that flip",
    4: "Task 4, as task 2 with documents of about {length} words",
}


def load_table(folder: Path, results: dict[str, Any], name: str) -> Table:
    """Reads the scores of a cell.

    Args:
      folder: the run's folder.
      results: its cells.
      name: the cell's name.

    Raises:
      InputError: their file is missing, or is not the one that the run wrote.
    """
    cell = results[name]
    check_file(folder / cell["file"], cell["sha256"])
    return read_scores(folder / cell["file"])


def check_results(folder: Path, results: dict[str, Any]) -> None:
    """Checks that the cells of a results.json have the fields that this command writes.

    Args:
      folder: the run's folder, for the message.
      results: its cells.

    Raises:
      InputError: a cell lacks some; the message names it.
    """
    for name, cell in results.items():
        kind = name.split("/")[0]
        wanted = {"hashes": HASHES, "vectors": VECTORS, PLACES: PLACED}.get(kind, SCORED)
        for key, types in wanted.items():
            if not isinstance(cell, dict) or not isinstance(cell.get(key, NOTHING), types):
                raise InputError(
                    f"{folder / RESULTS}: {name!r:.80} has no {key!r} as `pangu-jax multiconir` "
                    "writes it; begin the run anew"
                )


def write_report(folder: Path, settings: dict[str, Any], results: dict[str, Any]) -> str:
    """Writes report.md; returns the lines for the terminal.

    Args:
      folder: the run's folder.
      settings: its settings, as `multiconir` saves them.
      results: its cells.

    Raises:
      InputError: it cannot be written, or the files of the scores are not the run's.
    """
    sets = {who: _sets(folder, results, settings, who) for who in _scorers(results)}
    path = report.write(folder, _report(settings, results, sets))
    lines = [
        f"{_short(key)}  {_interval(_average(own, key, settings))}"
        for own in (sets["model"],) for key in own
    ]  # fmt: skip
    cut, total, _ = _cut(results)
    if total:
        lines.append(f"truncated  {cut:,} of {total:,} texts")
    return "\n".join([*lines, f"report     {path}"])


def compare_runs(first: str, second: str, out: str, *, seed: int) -> str:
    """Draws two runs side by side; returns their differences as text.

    Args:
      first: a run's folder.
      second: the folder of the run whose figures are subtracted.
      out: the picture to draw.
      seed: seed of the intervals and tests.

    Raises:
      InputError: a run is not complete, they are of different data, or the picture cannot be drawn.
    """
    if Path(out).suffix.lower() not in FORMATS:
        raise InputError(f"--out is {out!r}; a picture ends in {', '.join(FORMATS)}")
    runs = [_open(Path(folder)) for folder in (first, second)]
    (one, _, a), (other, _, b) = runs
    for what, name in (("data", "data"), ("rows", "number of rows")):
        x, y = (s["data"] if what == "data" else s["protocol"]["rows"] for s in (one, other))
        if x != y:
            raise InputError(f"{first} and {second} were measured on another {name}")
    names = [_label(settings, folder) for settings, folder in ((one, first), (other, second))]
    rows, found = [], []
    for key in a:
        groups = [("all domains", [*a[key]])] if len(a[key]) > 1 else []
        for where, domains in groups + [(domain, [domain]) for domain in a[key]]:
            pair = [[run[key][domain] for domain in domains] for run in (a, b)]
            values = [estimate(x, STATISTICS[key[0]], seed=seed) for x in pair]
            found.append(pairwise_metrics.compare(*pair, STATISTICS[key[0]], seed=seed))
            rows.append((_short(key).strip(), where, *values))
    _draw(Path(out), names, a, b, seed)
    adjusted = pairwise_metrics.holm([difference.p for difference in found])
    lines = [f"first      {names[0]}", f"second     {names[1]}", f"picture    {out}", ""]
    head = ("task", "domain", "first", "second", "first - second", "p", "p by Holm")
    shown = [
        (*place, _number(x.value), _number(y.value), _interval(less, "+"), f"{less.p:.4f}",
         f"{p:.4f}")
        for (*place, x, y), less, p in zip(rows, found, adjusted, strict=True)
    ]  # fmt: skip
    return "\n".join([*lines, table(head, shown)])


def _open(folder: Path) -> tuple[dict, dict, dict[Key, dict[str, np.ndarray]]]:
    """Settings, results and the model's outcomes of a complete run."""
    settings, results = (read_json(folder / name, finite=False) for name in (SETTINGS, RESULTS))
    parts = ("model", "data", "protocol")
    known = isinstance(settings, dict) and all(isinstance(settings.get(x), dict) for x in parts)
    if not known or not isinstance(results, dict) or "hashes" not in results:
        raise InputError(f"{folder} is no run of `pangu-jax multiconir`")
    check_results(folder, results)
    stems = {name.split("/")[1] for name in results if name.startswith("model/")}
    if stems != settings["data"].keys() or not (folder / "report.md").is_file():
        raise InputError(f"{folder} has not ended; run its command again, which goes on")
    return settings, results, _sets(folder, results, settings, "model")


def _scorers(results: dict[str, Any]) -> list[str]:
    cells = [name.split("/")[0] for name, cell in results.items() if "task" in cell]
    return list(dict.fromkeys(cells))


def _sets(
    folder: Path, results: dict[str, Any], settings: dict[str, Any], who: str
) -> dict[Key, dict[str, np.ndarray]]:
    """A scorer's outcomes by task and domain."""
    found: dict[Key, dict[str, np.ndarray]] = {}
    for name, cell in sorted(results.items()):
        if not name.startswith(f"{who}/"):
            continue
        task, listed = cell["task"], None
        if task == 3:
            listed = load_table(folder, results, name.replace("/task3", "/task2"))
        scores = load_table(folder, results, name)
        made = outcomes(task, scores, settings["protocol"]["name"], listed=listed)
        found.setdefault((task, cell["length"]), {})[cell["domain"]] = made
    return dict(sorted(found.items(), key=lambda item: (item[0][0], item[0][1] or 0)))


def _average(own: dict[Key, dict[str, np.ndarray]], key: Key, settings: dict) -> Estimate:
    statistic, seed = STATISTICS[key[0]], settings["protocol"]["seed"]
    return estimate(list(own[key].values()), statistic, seed=seed)


def _report(settings: dict, results: dict, sets: dict[str, dict]) -> str:
    protocol, model = settings["protocol"], settings["model"]
    about = "\n".join(
        f"- {name.replace('_', ' ')}: `{value}`"
        for name, value in model.items() if not isinstance(value, dict)
    )  # fmt: skip
    how = "\n".join(f"- {name}: {value}" for name, value in protocol.items())
    files = "\n".join(f"- {stem}: {digest}" for stem, digest in settings["data"].items())
    tables = "\n".join(_task(key, results, sets, settings) for key in sets["model"])
    cut, total, length = _cut(results)
    said = f"\nTexts cut to {length} tokens: {cut:,} of {total:,}.\n" if total else ""
    return f"""# MultiConIR: {model["name"]}, protocol {protocol["name"]}
{said}
Figures are followed by their 95 % intervals, which resample rows. A tie counts as no win. For
comparison, scores by the number of words (length), by the share of the query's words that a
document has (overlap), one number for all (constant), and the number of met conditions (oracle).
{tables}
{_places(results)}{_released(settings)}
## Model

{about}
- sha256: {results["hashes"]["model"]}

## Protocol

{how}
- sha256: {results["hashes"]["protocol"]}

## Data

SHA-256 of the unpacked files; of all {results["hashes"]["data"]}.

{files}
"""


def _task(key: Key, results: dict, sets: dict[str, dict], settings: dict) -> str:
    task, length = key
    growing = ("1", "5", "10") if task == 1 else ("first", "fifth", "last")
    more = ("decline", "second negatives", "easy negatives") if task == 1 else ()
    head = ("scorer", "domain", *growing, "mean", "ties", "left out", *more)
    rows = []
    for who, own in sets.items():
        for name, cell in sorted(results.items()):
            if name.startswith(f"{who}/") and (cell["task"], cell["length"]) == key:
                rows.append(_row(who, cell, settings))
        if len(own[key]) > 1:
            found = _interval(_average(own, key, settings))
            rows.append([_who(who, settings), "all", "", "", "", found, "", "", *[""] * len(more)])
    return f"\n## {TITLES[task].format(length=length)}\n\n{table(head, rows)}"


def _row(who: str, cell: dict[str, Any], settings: dict) -> list[str]:
    rates = cell["flip_rate" if cell["task"] == 3 else "win_rate"]
    values = [_number(rates[place]) for place in (0, 4, 9)]
    values += [_interval(Estimate(**_known(cell["mean"])))]
    values += [f"{sum(cell['ties']):,}", f"{cell['left_out']:,}"]
    if cell["task"] == 1:
        values.append(_interval(Estimate(**_known(cell["decline"])), "+"))
        values += [_interval(Estimate(**_known(cell[name]))) for name in ("second", "easy")]
    return [_who(who, settings), cell["domain"], *values]


def _places(results: dict[str, Any]) -> str:
    """The section about conditions by their place, if that was measured."""
    cells = [cell for name, cell in sorted(results.items()) if name.startswith(f"{PLACES}/")]
    if not cells:
        return ""
    head = ["domain", "order", *map(str, range(1, 11)), "first five less last five", "left out"]
    rows = []
    for cell in cells:
        for name in ("given", "shuffled"):
            found = cell[name]
            order = "as it is" if name == "given" else f"{cell['orders']} drawn"
            values = [_number(share["value"]) for share in found["share"]]
            values += [_interval(Estimate(**_known(found["lean"])), "+"), str(found["left_out"])]
            rows.append([cell["domain"], order, *values])
    said = (
        "Of what the score of the ten conditions loses where the document breaks one of them, the "
        "share of each place; as queries are, and on average over drawn orders, whose places have "
        "no content of their own. A model that looks everywhere alike has 0.1 at each. Taken for "
        "granted is that the i-th negative of task 1 breaks the i-th condition alone."
    )
    title = "## Which condition moves the score, by its place in the query"
    return f"\n{title}\n\n{said}\n\n{table(head, rows)}\n"


def _released(settings: dict) -> str:
    """What the released scripts would print for this run, where that differs."""
    if settings["protocol"]["name"] != "official":
        return ""
    lines = [
        "The figures above are what the released metrics compute from these scores. Run as they "
        "are, the released scripts differ:",
        "- task 4's metric reads the files of tasks 2 and 3, so it prints task 2's figures;",
        '- the row "Average" mixes all models that lie in the results folder.',
    ]
    if settings["model"]["name"] == "bm25":
        lines[1:1] = [
            "- BM25's scores of task 1 are written as `*_bm25_task1.csv`, the metric reads "
            "`*_task1_results.csv`, so BM25 has no figures there;",
            "- BM25's folder is `bm25`, the metrics look for `BM25`: where names have cases, BM25 "
            "is left out of all tasks;",
        ]
    return "\n".join(["", "## The released scripts", "", lines[0], "", *lines[1:], ""])


def _draw(path: Path, names: list[str], a: dict, b: dict, seed: int) -> None:
    keys = list(a)
    with picture(path, figsize=(4.6 * len(keys), 3.6), layout="constrained") as figure:
        for axes, key in zip(figure.subplots(1, len(keys), squeeze=False)[0], keys, strict=True):
            for name, run, color in zip(names, (a, b), ("tab:blue", "tab:orange"), strict=True):
                sets = list(run[key].values())
                found = [estimate(sets, pairwise_metrics.rate(i), seed=seed) for i in range(10)]
                at = np.arange(1, 11)
                axes.plot(at, [x.value for x in found], "o-", ms=3, color=color, label=name)
                axes.fill_between(at, [x.low for x in found], [x.high for x in found],
                                  color=color, alpha=0.2, lw=0)  # fmt: skip
            axes.set_title(_short(key).strip(), fontsize=9)
            axes.set_ylabel("flip rate" if key[0] == 3 else "win rate", fontsize=8)
            label = "conditions" if key[0] == 1 else "step, from the positive down"
            axes.set_xlabel(label, fontsize=8)
            axes.set_ylim(-0.03, 1.03)
            axes.set_xticks(at)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7)


def _cut(results: dict[str, Any]) -> tuple[int, int, int]:
    """How many texts were cut, of how many, and to what length; zeros if none was embedded."""
    cells = [cell for name, cell in results.items() if name.startswith("vectors/")]
    length = cells[0]["length"] if cells else 0
    return sum(x["cut"] for x in cells), sum(x["texts"] for x in cells), length


def _label(settings: dict, folder: str) -> str:
    return f"{settings['model']['name']} ({settings['protocol']['name']}), {Path(folder).name}"


def _who(who: str, settings: dict) -> str:
    return settings["model"]["name"] if who == "model" else f"({who})"


def _short(key: Key) -> str:
    return f"task {key[0]}" + (f", {key[1]}" if key[1] else "") + "   "


def _known(values: dict[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}


def _interval(found: Estimate | Difference, sign: str = "") -> str:
    if math.isnan(found.value):
        return "-"
    return f"{found.value:{sign}.4f} [{found.low:{sign}.4f}, {found.high:{sign}.4f}]"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4f}"
