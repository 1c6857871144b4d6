"""Changes files of every kind at random, thousands of times, and looks at how they are answered.

    python tools/fuzz.py --cases 2000 [--first 0] [--kinds csv weights] [--keep FOLDER]

A case is its number, so any of them can be run again with `--first NUMBER --cases 1`. Exits with 1
where an answer was wrong: neither a value nor one sentence, or, where digests seal the files,
another value than that of the sound files. The changed folders of such cases are kept.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "system")]

from fuzz import KINDS, run  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=2000, help="of each kind")
    parser.add_argument("--first", type=int, default=0, help="the first case's number")
    parser.add_argument("--kinds", nargs="*", choices=KINDS, default=list(KINDS))
    parser.add_argument("--keep", help="where changed folders are made; default a temporary one")
    options = parser.parse_args()
    folder, wrong = Path(options.keep or tempfile.mkdtemp(prefix="fuzz.")), 0
    for name in options.kinds:
        began, ends = time.monotonic(), {}
        numbers = range(options.first, options.first + options.cases)
        for outcome in run(KINDS[name], folder / name, numbers):
            end = "wrong" if outcome.wrong else outcome.end
            ends[end] = ends.get(end, 0) + 1
            if outcome.wrong:
                wrong += 1
                print(f"{name} {outcome.case}: {outcome.end}: {outcome.wrong}", flush=True)
        counts = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
        print(f"{name}: {counts}; {time.monotonic() - began:.0f} s", flush=True)
    print(f"{wrong} wrong answers" + (f"; their folders are in {folder}" if wrong else ""))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
