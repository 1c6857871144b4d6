"""Runs `pangu-jax prepare`; its options are in `cli/options/prepare.py`."""

from pangu_jax.cli.options.prepare import Options
from pangu_jax.cli.progress import working
from pangu_jax.core.extras import check_extra
from pangu_jax.data import ltsf, ltsf_tfds


def main(options: Options) -> None:
    """Prepares the dataset, and prints where it is and how to read it."""
    check_extra("data", "tensorflow_datasets", "array_record", by="preparing")
    TEXTS.get(options.name, _benchmark)(options)


def _wikitext2(options: Options) -> None:
    from pangu_jax.data import wikitext2  # which cannot do without tensorflow-datasets

    with working("preparing"):
        found = wikitext2.prepare(options.source, options.out)
    print(f"{found} holds the dataset; try: pangu-jax train --data {found} (or {found}:test)")


def _benchmark(options: Options) -> None:
    (name,) = (name for name in ltsf.BENCHMARKS if name.lower() == options.name)
    with working("preparing"):
        found = ltsf_tfds.prepare(name, options.out, files=options.source)
    print(
        f"{found} holds the dataset; in Python, pangu_jax.data.ltsf_tfds.read({name!r}, "
        f"{options.out!r}) gives its rows"
    )


TEXTS = {"wikitext2": _wikitext2}  # the others are benchmarks of forecasting
