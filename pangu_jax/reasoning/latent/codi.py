"""CODI: a model that writes its chain teaches itself to think instead, in one stage.

The same parameters read two rows about a problem. The teacher's has the written chain, the
student's has thoughts, each made of the state before it by a small network. Both learn by
cross-entropy, and at the mark before the answer the student's state in every layer is drawn to the
teacher's, which the distance itself does not move:

    loss = student + align * distance + teach * teacher
    distance = mean over layers of smooth_l1(student's state, teacher's state) / std(teacher's)

Source: arXiv 2502.21074, section 3, as its released code has it. Ours: each loss is the mean of a
row's tokens, then of rows, so that microbatches add up, but for the deviation, which is taken over
a microbatch; the mean counts the embedding, whose distance is 0, as one more layer.
"""

from functools import lru_cache

import jax
import jax.numpy as jnp

from pangu_jax.losses.language import cross_entropy
from pangu_jax.models import decoder
from pangu_jax.models.thinker import ThinkerConfig, written_out
from pangu_jax.nn.how import HOW, How
from pangu_jax.reasoning.latent.coconut import slots
from pangu_jax.reasoning.latent.config import MethodConfig
from pangu_jax.reasoning.latent.curriculum import Phase, thoughts_alone
from pangu_jax.reasoning.latent.feedback import feedback as find_feedback
from pangu_jax.reasoning.latent.method import Method, written
from pangu_jax.reasoning.latent.reading import read
from pangu_jax.reasoning.latent.slots import Encoded, Markers, Slots
from pangu_jax.train.step import Loss


def model(cfg: decoder.DecoderConfig, own: MethodConfig) -> ThinkerConfig:
    """The decoder with a projection as wide as itself."""
    del own
    return ThinkerConfig(cfg, projection=cfg.width)


def teacher(problem: Encoded, markers: Markers) -> Slots:
    """The row that a problem's thoughts are to do the work of: its whole chain, written."""
    return written(problem, Phase(1), markers, 0)


@lru_cache
def distillation_loss(
    cfg: ThinkerConfig,
    *,
    start: int,
    thoughts: int,
    feedback: str,
    own: MethodConfig,
    how: How = HOW,
) -> Loss:
    """The loss on batches that bring a teacher's rows.

    Args:
      cfg: the model.
      start: columns of the prefix.
      thoughts: of each row, at least one.
      feedback: what makes them.
      own: the weights of the losses.
      how: implementations, type of activations, and whether thoughts are computed again backward.

    Returns:
      loss(params, None, batch, key) -> (sum over rows, rows, {"nats", "teacher_nats", "distance"});
      the batch is one of `slots.collate` with "answer", int32 [B], the columns of the marks before
      the answers, and the same about the teacher under "teacher".
    """
    step = find_feedback(feedback)

    def loss(params, frozen, batch, key):
        del frozen, key
        params, plain = written_out(params, cfg)
        last, wise = [], batch["teacher"]
        out = read(
            params,
            batch,
            cfg=plain,
            start=start,
            thoughts=thoughts,
            feedback=step,
            note=last.append,
            how=how,
        )
        column = batch["answer"] - start - thoughts
        ours = [_at(state, column) for state in last[:-1]] + [_at(out.hidden, batch["answer"])]
        hidden, states = _read_whole(params, wise, plain, how)
        theirs = [_at(state, wise["answer"]) for state in (*states[:-1], hidden)]
        nats, rows = _by_row(params, out.hidden, batch, plain, how)
        taught, _ = _by_row(params, hidden, wise, plain, how)
        apart = sum(map(distance, ours, theirs)) / (len(ours) + 1) * rows
        total = nats + own.align * apart + own.teach * taught
        return total, rows, {"nats": nats, "teacher_nats": taught, "distance": apart}

    return loss


def distance(ours: jax.Array, theirs: jax.Array) -> jax.Array:
    """How far states are from a teacher's, which do not move: [B, D] twice to a float32 scalar.

    The mean of smooth L1 (half the square up to 1, then the difference less a half), divided by the
    deviation of all the teacher's numbers.
    """
    theirs = jax.lax.stop_gradient(theirs.astype(jnp.float32))
    gap = jnp.abs(ours.astype(jnp.float32) - theirs)
    smooth = jnp.where(gap < 1, gap * gap / 2, gap - 0.5)
    return smooth.mean() / (theirs.std(ddof=1) + 1e-6)


def _read_whole(params, batch, cfg, how):
    """A row's states after the final norm, [B, T, D], and what every layer gives."""
    states = []
    out = read(params, batch, cfg=cfg, start=1, thoughts=0, note=states.append, how=how)
    return out.hidden, states


def _at(states, columns):
    """[B, T, D] and int32 [B] to [B, D]."""
    return jnp.take_along_axis(states, columns[:, None, None], axis=1)[:, 0]


def _by_row(params, hidden, batch, cfg, how):
    """The sum over rows of each one's mean nats, and the number of rows."""
    weights = batch["weights"] / batch["weights"].sum(-1, keepdims=True)
    return cross_entropy(
        hidden,
        decoder.head_kernel(params),
        batch["labels"],
        weights,
        softcap=cfg.logit_softcap,
        layout=how.layout,
    )


METHOD = Method(
    thoughts_alone,
    slots,
    feedback="projected",
    model=model,
    teacher=teacher,
    loss=distillation_loss,
)
