"""Curricula: the phases of a training run, built from a few numbers."""

import dataclasses
import math

from pangu_jax.core.config import check_size
from pangu_jax.core.errors import InputError

ALL = 2**20  # of steps or tokens: none is kept


@dataclasses.dataclass(frozen=True)
class Mix:
    """Examples of other stages among those of a phase.

    A share of the examples have the form of a stage that is drawn, evenly from none of their steps
    replaced to all, or to as many as in a last stage.

    Attributes:
      share: of the examples.
      stages: the last stage in which steps are replaced one by one.
      slots_per_stage: thoughts or pauses for each.
      last: the last stage that is drawn; None for all.
      unmarked: of the examples, as in `Phase`.

    Source: `uniform_prob` in arXiv 2412.06769's released code, which draws all stages, and in arXiv
      2505.12514's, which draws none after the phase's own.
    """

    share: float
    stages: int
    slots_per_stage: int
    last: int | None = None
    unmarked: bool = False

    def form(self, stage: int) -> "Phase":
        """The form of a stage's examples; after the last stage no step is left."""
        kept = min(stage, self.stages)
        left_out = stage if stage == kept else ALL
        return Phase(1, self.slots_per_stage * kept, left_out, unmarked=self.unmarked)

    def drawn(self, steps: int) -> int:
        """How many stages an example of so many steps is drawn from."""
        return 1 + min(steps, steps if self.last is None else self.last)


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of a run in which examples have one form.

    Attributes:
      steps: optimizer steps.
      slots: thoughts, or pauses, of every example.
      removed_steps: number of a chain's first steps that are left out.
      removed_tokens: number of a chain's first tokens that are left out.
      smoothing: rate of the exponential from which the number of further tokens left out of an
        example is drawn; 0 for none.
      mix: examples of other stages; None for none.
      unmarked: whether the slots have no markers around them.
      chain_room: positions behind a question that are a chain's, whatever is left of it: those that
        it does not fill stay free before it; 0 for its own alone.

    Raises:
      InputError: numbers out of range.
    """

    steps: int
    slots: int = 0
    removed_steps: int = 0
    removed_tokens: int = 0
    smoothing: float = 0.0
    mix: Mix | None = None
    unmarked: bool = False
    chain_room: int = 0

    def __post_init__(self):
        check_size("a phase's steps", self.steps)
        for name in ("slots", "removed_steps", "removed_tokens", "chain_room"):
            check_size(f"a phase's {name}", getattr(self, name), least=0, most=ALL)
        if not 0 <= self.smoothing < math.inf:
            raise InputError(f"a phase's smoothing must be 0 or more, got {self.smoothing}")


@dataclasses.dataclass(frozen=True)
class CurriculumConfig:
    """Settings for removing a chain of thought in stages.

    Attributes:
      steps: optimizer steps in all.
      stage_steps: optimizer steps until the next step of the chain (or, of `icot`, token) goes; 0
        begins with the last stage, None gives the stages before it 7 of 10 steps together.
      first_steps: optimizer steps before anything goes, if stages have steps; None is as many as
        in any other stage.
      stages: number of steps that slots replace, one after another, before the rest goes.
      slots_per_stage: thoughts or pauses for each of them.
      smoothing: of `icot`, the rate at which more tokens go than are due; 0 for none.
      most_removed: of `icot`, removed tokens after which all the rest goes at once; 0 for no such
        jump.
      mixed: of `coconut` and `pause`, the share of examples whose stage is drawn, so that earlier
        stages are not forgotten; 0 for none. Where slots are unmarked no later stage is drawn.
      unmarked: of `coconut` and `pause`, whether the slots follow the question at once and what is
        left follows the last slot, without markers. A thought is then the very state that, a stage
        before, had to predict the step which it replaces.
      keep_position: of `icot`, whether what is left keeps its position as tokens go. An answer is
        then as far behind its question as the longest chain is long, when the chain has gone, too:
        so far from it the model is to be asked.

    Raises:
      InputError: numbers out of range.
    """

    steps: int = 5000
    stage_steps: int | None = None
    stages: int = 6
    slots_per_stage: int = 1
    smoothing: float = 4.0
    most_removed: int = 0
    mixed: float = 0.0
    first_steps: int | None = None
    unmarked: bool = False
    keep_position: bool = False

    def __post_init__(self):
        for name in ("steps", "stages", "slots_per_stage"):
            check_size(f"the curriculum's {name}", getattr(self, name))
        check_size("the curriculum's stage_steps", self.stage_steps or 0, least=0)
        if self.first_steps is not None:
            check_size("the curriculum's first_steps", self.first_steps)
        check_size("the curriculum's most_removed", self.most_removed, least=0)
        if not 0 <= self.mixed <= 1:
            raise InputError(f"the curriculum's mixed is a share of 0 to 1, got {self.mixed}")
        if not 0 <= self.smoothing < math.inf:
            raise InputError(f"the curriculum's smoothing must be 0 or more, got {self.smoothing}")


def whole_chain(cfg: CurriculumConfig, longest: int) -> tuple[Phase, ...]:
    """The curriculum that keeps the whole chain."""
    del longest
    return (Phase(cfg.steps),)


def no_chain(cfg: CurriculumConfig, longest: int) -> tuple[Phase, ...]:
    """The curriculum that removes the chain from step 0."""
    del longest
    return (Phase(cfg.steps, removed_steps=ALL),)


def thoughts_alone(cfg: CurriculumConfig, longest: int) -> tuple[Phase, ...]:
    """The curriculum that puts all slots in the place of the chain from step 0."""
    del longest
    return (Phase(cfg.steps, cfg.slots_per_stage * cfg.stages, ALL),)


def step_by_step(cfg: CurriculumConfig, longest: int) -> tuple[Phase, ...]:
    """Steps of the chain are replaced by slots, one more each stage; then the rest goes.

    Source: arXiv 2412.06769, section 3; an example has as many slots as its stage, whether or not
      its chain has as many steps, which is the released code with `pad_latent_to_max`. Without
      markers: arXiv 2505.12514's released code.
    """
    del longest
    per, lengths = cfg.slots_per_stage, _stage_steps(cfg, cfg.stages + 1)
    mix = Mix(cfg.mixed, cfg.stages, per) if cfg.mixed else None

    def phase(steps: int, stage: int, removed: int) -> Phase:
        drawn = mix
        if mix is not None and cfg.unmarked:
            drawn = dataclasses.replace(mix, last=removed, unmarked=True)
        return Phase(steps, per * stage, removed, mix=drawn, unmarked=cfg.unmarked)

    found = [phase(steps, stage, stage) for stage, steps in enumerate(lengths)]
    return _with_last(found, phase(1, cfg.stages, ALL), cfg)


def token_by_token(cfg: CurriculumConfig, longest: int) -> tuple[Phase, ...]:
    """Tokens of the chain go from its beginning, one more each stage, some earlier by chance.

    Args:
      cfg: the curriculum.
      longest: tokens of the longest chain.

    Source: arXiv 2405.14838, sections 3 and 4, and `keep_position` of its released code. That all
      chains end where the longest does is ours: it does not change where chains are equally long,
      and elsewhere one distance serves all questions, as none tells how long its chain was.
    """
    lengths = _stage_steps(cfg, min(longest, cfg.most_removed or longest))
    room = longest if cfg.keep_position else 0
    found = [
        Phase(steps, removed_tokens=count, smoothing=cfg.smoothing, chain_room=room)
        for count, steps in enumerate(lengths)
    ]
    return _with_last(found, Phase(1, removed_steps=ALL, chain_room=room), cfg)


def _stage_steps(cfg: CurriculumConfig, stages: int) -> list[int]:
    """The lengths of `stages` stages before the last one; none if they have no steps."""
    length, first = cfg.stage_steps, cfg.first_steps
    if length == 0 or stages < 1:
        return []
    if length is None:
        shared, parts = (cfg.steps, stages) if first is None else (cfg.steps - first, stages - 1)
        length = max(7 * shared // 10 // max(parts, 1), 1)
    return [length if first is None else first, *[length] * (stages - 1)]


def _with_last(phases: list[Phase], last: Phase, cfg: CurriculumConfig) -> tuple[Phase, ...]:
    """The phases, and a last one of all remaining steps.

    Raises:
      InputError: none is left.
    """
    left = cfg.steps - sum(phase.steps for phase in phases)
    if left < 1:
        raise InputError(
            f"{len(phases)} stages of {phases[-1].steps} steps and a last one without a chain need "
            f"more than {cfg.steps} steps; give more steps, or shorter stages"
        )
    return (*phases, dataclasses.replace(last, steps=left))
