"""Writes the tables of docs/scaling.md from the files of `expert_parallel.py`, `train_scaling.py`.

    python tools/bench/scaling_table.py block.json decoder16384.json decoder1024.json
    python tools/bench/scaling_table.py block.json decoder*.json --into docs/scaling.md

`--into` puts them between the lines `<!-- tables -->` and `<!-- end of tables -->` of that file;
else they are printed. What a file does not hold is an empty cell.
"""

import argparse
import json
from pathlib import Path

from pangu_jax.core.files import atomic_write
from pangu_jax.study.table import table

LIMIT = 1e-2  # of what bfloat16 may differ from one device, in norm
BEGIN, END = "<!-- tables -->", "<!-- end of tables -->"


def number(value, digits=3):
    """Three significant digits, with thousands apart; nothing for None."""
    if value is None:
        return ""
    if value and not 1e-3 <= abs(value) < 1e6:
        return f"{value:.1e}"
    text = f"{value:.{digits}g}"
    return f"{value:,.0f}" if "e" in text or abs(value) >= 1000 else text


def seconds(row, name):
    """Simulated and measured milliseconds."""
    by = row.get(f"simulated_{name}", {}).get("seconds")
    return [number(x if x is None else x * 1e3) for x in (by, row.get(name))]


def ratio(value, base):
    """The quotient, if there are both."""
    return f"{value / base:.2f}" if value and base else ""


def title(row, name):
    """A row's name, and why it has no times."""
    return row[name] + (f": {row['failed']}" if "failed" in row else "")


def machine(settings, rates):
    """Rates of the machine: the data sheet's beside what was reached."""
    published = rates.get("published", {})
    rows = [
        ["bfloat16 product, TFLOP/s", number(published.get("tflops")), number(rates["tflops"])],
        ["copy, TB/s, read and written", number(published.get("tb_per_s")),
         number(rates["tb_per_s"])],
    ]  # fmt: skip
    for kind, reached in rates["gb_per_s"].items():
        name = f"{kind}, GB/s received; µs of the smallest"
        latency = rates["latency"][kind] * 1e6
        link = number(published.get("gb_per_s"))
        rows.append([name, link, f"{number(reached)}; {number(latency)}"])
    device = f"{settings['devices']} x {settings['device']}"
    return f"{device}:\n\n" + table(["", "published", "measured"], rows)


def like(found, **what):
    """The row that says so, or an empty one."""
    same = (x for x in found["rows"] if all(x[name] == value for name, value in what.items()))
    return next(same, {})


def load(row):
    """The busiest expert and device, and the share of pairs dropped."""
    busiest = "" if "expert" not in row else f"{row['expert']:.2f}, {row['device']:.2f}"
    dropped = row.get("dropped")
    return [busiest, "" if dropped is None else f"{100 * dropped:.0f} %"]


def block(found):
    """The block's table, times beside the grouped block's of the same case."""
    head = [
        "tokens per GPU", "skew", "form", "forward, ms, simulated", "measured", "of grouped",
        "with gradients, ms, simulated", "measured", "of grouped", "busiest expert, device",
        "dropped", "MB received", "GB/s", "from one device: outputs, worst gradient",
    ]  # fmt: skip
    rows = []
    for row in sorted(found["rows"], key=lambda row: (-row["tokens"], row["skew"])):
        base = like(found, tokens=row["tokens"], skew=row["skew"], name="grouped")
        first = [f"{row['tokens']:,}", f"{row['skew']:g}", title(row, "name")]
        cells = []
        for name in ("forward", "both"):
            cells += [*seconds(row, name), ratio(row.get(name), base.get(name))]
        apart = [number(row[n], 2) for n in ("error_outputs", "error_gradients") if n in row]
        end = [number(row.get("mb")), number(row.get("gb_per_s")), ", ".join(apart)]
        rows.append([*first, *cells, *load(row), *end])
    return table(head, rows)


def decoder(found):
    """The decoder's table, rates beside as many times one GPU."""
    head = [
        "tokens per GPU", "skew", "layout", "tokens/s", "of all GPUs x one", "step, ms, simulated",
        "measured", "forward, ms, simulated", "measured", "busiest expert, device", "dropped",
        "MB received", "GiB per GPU",
    ]  # fmt: skip
    rows, settings = [], found["settings"]
    for row in sorted(found["rows"], key=lambda row: row["skew"]):
        alone = like(found, layout="one device", skew=row["skew"])
        rate = row["tokens"] / row["step"] if "step" in row else None
        one = alone["tokens"] / alone["step"] if "step" in alone else None
        own = row["layout"] == "one device"
        whole = "" if own else ratio(rate, one and one * settings["devices"])
        tokens = f"{settings['batch'] * settings['length']:,}"
        memory = f"{row['gib']:.1f}" if "gib" in row else ""
        first = [tokens, f"{row['skew']:g}", title(row, "layout"), number(rate), whole]
        times = [*seconds(row, "step"), *seconds(row, "forward")]
        rows.append([*first, *times, *load(row), number(row.get("mb")), memory])
    return table(head, rows)


def equality(found):
    """How far from one device the decoder's loss and gradients are."""
    head = ["layout", "type", "router", "loss", "gradients", "worst leaf"]
    checks = [x for name, rows in found.items() if name.startswith("check ") for x in rows]
    rows = [
        [x["layout"], x["dtype"], x["routing"], *(f"{x[n]:.1e}" for n in ("loss", "gradients",
         "worst"))] for x in checks
    ]  # fmt: skip
    return table(head, rows) if rows else ""


def verdict(blocks, decoders):
    """The greatest differences to one device, and whether they are within the limit."""
    rows = [row for found in blocks for row in found["rows"]]
    found = {
        "the block's outputs": [x["error_outputs"] for x in rows if "error_outputs" in x],
        "its gradients": [x["error_gradients"] for x in rows if "error_gradients" in x],
    }
    checks = [x for y in decoders for name, z in y.items() if name.startswith("check ") for x in z]
    for kind, what in (("bfloat16", "loss"), ("float32", "loss"), ("float32", "gradients")):
        name = f"the decoder's {what} in {kind}"
        found[name] = [x[what] for x in checks if x["dtype"] == kind]
    parts = [
        f"{name} {max(values):.1e}{'' if max(values) <= LIMIT else ' (**more**)'}"
        for name, values in found.items()
        if values
    ]
    return f"Furthest from one device, where {LIMIT:g} is allowed: {', '.join(parts)}." * bool(
        parts
    )


def tables(files):
    """All tables, in the order of the files' kinds."""
    blocks = [x for x in files if "sizes" in x["settings"]]
    decoders = [x for x in files if "preset" in x["settings"]]
    parts = [machine(x["settings"], x["rates"]) for x in (blocks or decoders)[:1]]
    for found in blocks:
        parts += ["### The block", block(found)]
    for found in decoders:
        settings = found["settings"]
        heading = f"### {settings['preset']}, {settings['batch']} x {settings['length']:,} per GPU"
        parts += [heading, decoder(found)]
        parts += [x for x in [equality(found)] if x]
    parts += [x for x in [verdict(blocks, decoders)] if x]
    return "\n\n".join(parts)


def main():
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--into", type=Path)
    options = parser.parse_args()
    text = tables([json.loads(path.read_text("utf-8")) for path in options.files])
    if not options.into:
        print(text)
        return
    page = options.into.read_text("utf-8")
    before, _, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not end:
        raise SystemExit(f"{options.into} has no lines {BEGIN} and {END}")
    with atomic_write(options.into) as file:
        file.write(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


if __name__ == "__main__":
    main()
