"""Evaluates a model of any kind."""

from typing import Any

from pangu_jax.task.forecast import evaluate_series
from pangu_jax.task.language import evaluate_text
from pangu_jax.task.model import Model, expect


def evaluate(model: Model, data: Any, **options: Any) -> dict[str, Any]:
    """Measures a language model on text, or a forecaster on a series.

        >>> pj.evaluate(m, "text.txt", length=256)["bits_per_byte"]
        >>> pj.evaluate(pj.load("forecaster"), "load.csv")["mse"]

    Args:
      model: the model.
      data: for a language model a file or folder of .txt or .jsonl, "stdlib", or a list of texts;
        for a forecaster a CSV file with the columns that it was trained on.
      **options: for a language model `length` (512, tokens of context), `stride`, `batch`,
        `max_tokens`, `field`, `dtype`, as `pangu-jax eval` has them; for a forecaster `layout`.

    Returns:
      What `pangu-jax eval --json` or `pangu-jax forecast evaluate --json` prints: of a language
      model "perplexity", "bits_per_byte", "nats", "tokens", "bytes", "protocol" and more; of a
      forecaster "mse", "mae", "mae_of", "coverage", "linear", "repeat" and more.

    Raises:
      InputError: another kind of model, or data that it cannot be measured on.
      TypeError: an option that this kind of model does not have.
    """
    expect(model, "decoder", "forecaster")
    measure = evaluate_series if model.kind == "forecaster" else evaluate_text
    return measure(model, data, **options)
