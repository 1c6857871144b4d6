"""Settings of a run of reinforcement learning."""

import dataclasses
import json

from pangu_jax.core.config import check_size, to_json
from pangu_jax.core.errors import InputError
from pangu_jax.losses.policy_config import PolicyConfig
from pangu_jax.reasoning.curriculum import CurriculumConfig
from pangu_jax.reasoning.schedule_state import ScheduleConfig
from pangu_jax.train.optimizer_config import OptimizerConfig

OPTIMIZER = OptimizerConfig(learning_rate=1e-6, schedule="constant", weight_decay=0.0)


@dataclasses.dataclass(frozen=True)
class RlConfig:
    """A run of reinforcement learning.

    Attributes:
      schedule: settings of the scheduler of rollouts.
      policy: the loss.
      updates: number of updates.
      length: tokens that a slot has room for, of prompt and answer together.
      max_new_tokens: most tokens of an answer.
      temperature: of sampling and training, above 0.
      stop_ids: an answer ends with the first of these.
      corrected: whether samples of older weights are weighted by how likely they are now.
      accumulate: microbatches per update.
      overlong: penalty on the reward of an answer of `max_new_tokens`; it grows from 0 over the
        last fifth before that (arXiv 2503.14476). Whether a group's rewards are equal is decided
        without it.
      mask_truncated: whether answers that reached `max_new_tokens` are left out of the loss, though
        not of their group's mean (overlong filtering, arXiv 2503.14476).
      save_every: updates between checkpoints.
      seed: of the samples: each has a key made of the seed, its group's number and its own.
      curriculum: mix of questions; None asks them in the order of their numbers.
    """

    schedule: ScheduleConfig = ScheduleConfig()
    policy: PolicyConfig = PolicyConfig()
    updates: int = 100
    length: int = 1024
    max_new_tokens: int = 512
    temperature: float = 1.0
    stop_ids: tuple[int, ...] = ()
    corrected: bool = True
    accumulate: int = 1
    overlong: float = 0.0
    mask_truncated: bool = False
    save_every: int = 10
    seed: int = 0
    curriculum: CurriculumConfig | None = None

    def __post_init__(self):
        for name in ("updates", "length", "max_new_tokens", "accumulate", "save_every"):
            check_size(name, getattr(self, name))
        check_size("seed", self.seed, least=0)
        if not self.temperature > 0:
            raise InputError(f"temperature must be above 0, got {self.temperature}")
        if not self.overlong >= 0:
            raise InputError(f"overlong must be at least 0, got {self.overlong}")
        if self.schedule.group < 2:
            raise InputError("a group needs 2 answers at least, which its rewards compare")
        if self.curriculum is not None and self.schedule.policy == "discard":
            raise InputError(
                "a curriculum asks a group's question once: not for the policy discard"
            )
        rows = self.schedule.batch * self.schedule.group
        if rows % self.accumulate:
            raise InputError(f"accumulate {self.accumulate} must divide {rows} answers per update")

    @property
    def settings(self) -> dict[str, str]:
        """Settings that a resumed run must share, besides its schedule, each as JSON."""
        left_out = ("updates", "save_every", "schedule")
        found = to_json(self)
        return {name: json.dumps(found[name]) for name in found if name not in left_out}
