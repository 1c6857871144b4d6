"""Cross-entropy of what a method has to predict, in the form the training loop takes."""

from functools import lru_cache
from typing import Any

from pangu_jax.losses.language import cross_entropy
from pangu_jax.models import decoder
from pangu_jax.models.thinker import ThinkerConfig, written_out
from pangu_jax.nn.how import HOW, How
from pangu_jax.reasoning.latent.feedback import feedback as find_feedback
from pangu_jax.reasoning.latent.reading import read
from pangu_jax.train.step import Loss


@lru_cache
def thought_loss(
    cfg: decoder.DecoderConfig | ThinkerConfig,
    *,
    start: int,
    thoughts: int,
    feedback: str = "",
    own: Any = None,
    how: How = HOW,
) -> Loss:
    """The loss on batches with `start` columns of prefix and so many thoughts.

    Equal arguments give the same function, so that phases of the same form share a compilation.

    Args:
      cfg: the model.
      start: columns of the prefix.
      thoughts: thoughts of each row; without any it is the language model's loss, to the bit.
      feedback: what makes them, a name of `feedback.FEEDBACK`.
      own: not read: losses of single methods have numbers in it.
      how: implementations, type of activations, and whether thoughts are computed again backward.

    Returns:
      loss(params, None, batch, key) -> (sum in nats, tokens, {"nats"}); the batch is one of
      `slots.collate`.
    """
    del own
    first = start - 1 if thoughts else 0  # nothing is predicted before
    step = {"feedback": find_feedback(feedback)} if thoughts else {}

    def loss(params, frozen, batch, key):
        del frozen, key
        params, plain = written_out(params, cfg)
        out = read(params, batch, cfg=plain, start=start, thoughts=thoughts, how=how, **step)
        nats, weight = cross_entropy(
            out.hidden[:, first:],
            decoder.head_kernel(params),
            batch["labels"][:, first:],
            batch["weights"][:, first:],
            softcap=plain.logit_softcap,
            layout=how.layout,
        )
        return nats, weight, {"nats": nats}

    return loss
