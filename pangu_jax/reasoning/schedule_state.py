"""Data of the scheduler of rollouts: its settings, state, events and actions.

All of it is frozen and holds plain values, so `core.config.to_json` and `from_json` save and
restore a state.
"""

import dataclasses
from typing import Literal

from pangu_jax.core.config import check_choices, check_size
from pangu_jax.core.errors import InputError


@dataclasses.dataclass(frozen=True)
class Priority:
    """Weights that rank finished groups for training, where the bound leaves a choice.

    A group's score is age * its age / staleness + learnable * 4 p (1 - p), p being its mean reward
    clipped to [0, 1], + resumed * whether it was restarted or renewed. Ties go to the lower number,
    so the default is oldest first. No group is used twice, so nothing is subtracted for use.

    Attributes:
      age: weight of the age.
      learnable: weight of the spread of a group's rewards.
      resumed: weight of a group that was interrupted.
    """

    age: float = 1.0
    learnable: float = 0.0
    resumed: float = 0.0


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Settings of the scheduler, constant for a whole run.

    Attributes:
      staleness: s, most updates between the weights of a group's first token and those that the
        group trains; 0 is synchronous.
      batch: B, groups per update.
      group: N, samples per group, which are trained on together.
      slots: samples that run at once.
      policy: barrier keeps the bound and uses every sample; admission uses what ends first, so its
        ages have no bound; discard keeps the bound by restarting groups that are too old, so that
        short answers are overrepresented in training.
      partial: whether an update may go ahead of a group that is too old and still running; it goes
        on as a new segment, whose version counts, and its older tokens must be masked. For barrier.
      replace_equal_groups: whether groups whose rewards are all equal, which teach nothing, are
        replaced by others (dynamic sampling, arXiv 2503.14476).
      priority: weights of the order of training.
    """

    staleness: int = 4
    batch: int = 32
    group: int = 8
    slots: int = 64
    policy: Literal["barrier", "admission", "discard"] = "barrier"
    partial: bool = False
    replace_equal_groups: bool = False
    priority: Priority = Priority()

    def __post_init__(self):
        check_choices(self)
        check_size("staleness", self.staleness, least=0)
        for name in ("batch", "group", "slots"):
            check_size(name, getattr(self, name))
        if self.partial and self.policy != "barrier":
            raise InputError(f"partial rollouts are for the policy barrier, not {self.policy}")
        if self.replace_equal_groups and self.group == 1:
            raise InputError(
                "the rewards of a group of 1 cannot differ: replace_equal_groups needs 2 or more"
            )


@dataclasses.dataclass(frozen=True)
class Group:
    """The samples of one prompt; those neither waiting nor running have ended.

    Attributes:
      number: index of the group; the prompt depends on it alone.
      since: version of the weights of its first token or, once renewed, of its latest segment; None
        until a sample runs.
      waiting: samples without a slot.
      running: samples in slots.
      mean: mean reward, clipped to [0, 1], once there is one.
      resumed: whether a sample was restarted, or the group was renewed.
    """

    number: int
    since: int | None = None
    waiting: tuple[int, ...] = ()
    running: tuple[int, ...] = ()
    mean: float | None = None
    resumed: bool = False

    @property
    def ended(self) -> bool:
        """Whether all samples have ended."""
        return not self.waiting and not self.running


@dataclasses.dataclass(frozen=True)
class ScheduleState:
    """The complete state of a schedule.

    Attributes:
      cfg: the settings.
      version: v, updates applied so far; batches of B groups each.
      next: number of the next new group.
      open: groups that were begun and have no rewards yet, in the order of their numbers.
      ready: groups with rewards, in the order in which they got them.
      training: groups of the update under way.
      again: numbers of groups that were discarded, to be restarted.
      ages: histogram: numbers of groups trained on at age 0, 1, ...; updates applied only.
      discarded: groups thrown away for their age.
      dropped: groups that were replaced because all their rewards were equal.
      renewed: number of times that groups went on as a new segment.
      lost: samples that were restarted because their process was lost.
    """

    cfg: ScheduleConfig
    version: int = 0
    next: int = 0
    open: tuple[Group, ...] = ()
    ready: tuple[Group, ...] = ()
    training: tuple[Group, ...] = ()
    again: tuple[int, ...] = ()
    ages: tuple[int, ...] = ()
    discarded: int = 0
    dropped: int = 0
    renewed: int = 0
    lost: int = 0

    @property
    def running(self) -> int:
        """Number of slots taken."""
        return sum(len(group.running) for group in self.open)

    @property
    def admitted(self) -> int:
        """Groups trained on, in training, and outstanding."""
        return self.version * self.cfg.batch + sum(
            len(groups) for groups in (self.training, self.ready, self.open)
        )

    def age(self, group: Group) -> int:
        """Updates since a group's first token was generated; 0 for a group not begun."""
        return 0 if group.since is None else self.version - group.since


@dataclasses.dataclass(frozen=True)
class Ended:
    """A sample has its last token."""

    group: int
    sample: int


@dataclasses.dataclass(frozen=True)
class Graded:
    """A group of which all samples have ended has rewards.

    Attributes:
      group: its number.
      rewards: of its samples; those that have none are left out.
    """

    group: int
    rewards: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True)
class Lost:
    """A running sample was lost with its process; it restarts."""

    group: int
    sample: int


@dataclasses.dataclass(frozen=True)
class Updated:
    """The update under way is applied: there is a new version of the weights."""


Event = Ended | Graded | Lost | Updated


@dataclasses.dataclass(frozen=True)
class Start:
    """Begin a sample, its first token with the weights of this version or newer ones."""

    group: int
    sample: int
    version: int


@dataclasses.dataclass(frozen=True)
class Grade:
    """All samples of a group have ended: find their rewards."""

    group: int


@dataclasses.dataclass(frozen=True)
class Train:
    """Make the next update from these groups.

    Attributes:
      groups: their numbers, ascending.
      ages: of each.
    """

    groups: tuple[int, ...]
    ages: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Renew:
    """Groups go on with the newest weights; their tokens so far must be masked in training."""

    groups: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Forget:
    """The samples of these groups are not needed: discarded, or replaced by other groups."""

    groups: tuple[int, ...]


Action = Start | Grade | Train | Renew | Forget
