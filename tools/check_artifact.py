"""Checks exported artifacts on this machine against jax's results at export; needs jax and numpy.

    python tools/check_artifact.py FOLDER... [--out check.json]

For each folder: loads the artifact, runs the samples that it keeps, compares with the results that
came along, and times a call of each program. A folder that fails does not stop the others. Weights
beside the programs need safetensors; programs need flatbuffers to be read. Exits with 1 if any
artifact fails or is over its tolerance. Imports no command line of pangu_jax and no model.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pangu_jax.core.errors import InputError
from pangu_jax.export.artifact import load_samples
from pangu_jax.export.parity import compare, table
from pangu_jax.export.run import open_runner


def check(folder):
    """What one artifact did here."""
    artifact, run = open_runner(folder)
    rows, times = [], {}
    for (program, sample), (inputs, results) in load_samples(artifact, folder).items():
        rows += compare(program, sample, results, run(program, inputs))
        taken = []
        for _ in range(5):
            start = time.perf_counter()
            run(program, inputs)
            taken.append(1e3 * (time.perf_counter() - start))
        times[f"{program}/{sample}"] = statistics.median(taken)
    worst = max(row.relative for row in rows)
    return rows, {
        "target": artifact.target,
        "platforms": list(artifact.platforms),
        "exported_by": artifact.versions,
        "tolerance": artifact.tolerance,
        "worst_relative": worst,
        "passed": bool(worst <= artifact.tolerance),
        "rows": [dataclasses.asdict(row) for row in rows],
        "call_with_transfers_ms": times,
    }


def main():
    """Checks every folder and prints a table for each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, help="also write JSON here")
    options = parser.parse_args()
    device = jax.devices()[0]
    found = {"jax": jax.__version__, "python": sys.version.split()[0], "numpy": np.__version__,
             "device": device.device_kind, "artifacts": {}}  # fmt: skip
    print(f"jax {jax.__version__} on {device.device_kind}")
    for folder in options.folders:
        try:
            rows, result = check(folder)
            print(f"\n{folder}: {'passed' if result['passed'] else 'FAILED'}\n{table(rows)}")
        except (InputError, ImportError, RuntimeError) as error:
            result = {"passed": False, "error": f"{type(error).__name__}: {error}"}
            print(f"\n{folder}: {result['error']}")
        found["artifacts"][folder.name] = result
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(r["passed"] for r in found["artifacts"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
