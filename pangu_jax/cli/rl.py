"""Runs `pangu-jax rl`; its options are in `cli/options/rl.py`."""

import contextlib
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from pangu_jax.checkpoint import store
from pangu_jax.checkpoint.open import open_checkpoint
from pangu_jax.cli.distill import write_model
from pangu_jax.cli.generate_file import note_length
from pangu_jax.cli.options.rl import Options
from pangu_jax.cli.progress import progress, working
from pangu_jax.cli.stopping import PLACEMENT, joined, stoppable
from pangu_jax.core.config import check_size, to_json
from pangu_jax.core.digest import json_digest, sha256
from pangu_jax.core.errors import InputError
from pangu_jax.core.run_folder import Claim
from pangu_jax.data.checkpoint_chat_template import choose_template
from pangu_jax.data.tokenizer import check_vocabulary, load_tokenizer
from pangu_jax.decode.engine import Answer, check_max_new_tokens, round_up
from pangu_jax.losses.policy import DAPO, GRPO, dr_grpo
from pangu_jax.losses.policy_config import PolicyConfig
from pangu_jax.nn.how import How
from pangu_jax.reasoning import bench, reward_sources
from pangu_jax.reasoning.bench_prompts import TEXTS, Prompt, Prompter
from pangu_jax.reasoning.bench_tasks import Item, Task, read_items
from pangu_jax.reasoning.curriculum import CurriculumConfig
from pangu_jax.reasoning.reward import ROUTES, Graded, Sample, Source, SourceHealth, grade
from pangu_jax.reasoning.rl import Grader, NothingToLearn, RlConfig, train
from pangu_jax.reasoning.sampler import LocalSampler, MakeSampler
from pangu_jax.reasoning.sampler_ray import RaySampler, import_ray
from pangu_jax.reasoning.schedule_state import ScheduleConfig
from pangu_jax.sharding.launch import (
    check_equal,
    first_process,
    gathered,
    layout_of,
)
from pangu_jax.train.optimizer import make_optimizer

# What may differ when a run is resumed. Who writes the answers decides when they end and how their
# scores are rounded, so a run goes on otherwise, as any on Ray does; what was written down stays.
FREE = ("out", *PLACEMENT, "save_every", "rollouts", "workers", "worker_gpus")


def main(options: Options) -> None:
    """Trains, from the last checkpoint in OUT if there is one, and writes OUT/model."""
    with joined(options.coordinator, options.processes, options.process) as claims:
        _main(options, claims)


def _main(options: Options, claims: contextlib.ExitStack) -> None:
    check_max_new_tokens(options.max_new_tokens)
    layout, sampler = layout_of(options.mesh, options.rules), _sampler(options)
    with working("reading the questions"):
        items = read_items(options.data)
    sources = _sources(options, items)
    with working(f"reading {options.model}"):
        params, model, found = open_checkpoint(
            options.model, kind="decoder", by="`pangu-jax rl`", dtype="float32", layout=layout
        )
    tokenizer = load_tokenizer(options.tokenizer or found, checkpoint=options.model)
    dialogue = options.mode not in TEXTS
    template = choose_template(options.template, options.model, tokenizer) if dialogue else None
    prompter = Prompter(tokenizer, options.mode, template)
    prompts = [prompter.prompt(item) for item in items]
    for prompt in prompts:
        check_vocabulary(prompt.ids, tokenizer, model.vocab)
    longest = max(len(prompt.ids) for prompt in prompts)
    note_length(longest + options.max_new_tokens, model)
    cfg, questions = (
        _config(options, len(items), longest, prompter.stops),
        _Questions(items, prompts, options.seed, mixed=options.curriculum),
    )
    settings = {**to_json(options), "out": "", "questions": sha256(options.data)}
    decisive = {name: value for name, value in settings.items() if name not in FREE}
    check_equal(json_digest(decisive), "other questions or options")
    folder = Path(options.out)
    place: Path | Claim = folder
    if first_process():
        place = claims.enter_context(store.begin(model, folder, settings, free=FREE))
    with progress() as show, stoppable():
        try:
            state = train(
                params,
                questions.prompt,
                _reward(options, prompter, questions, sources),
                model=model,
                cfg=cfg,
                optimizer=make_optimizer(options.optimizer, options.updates),
                health=SourceHealth(),
                folder=place,
                on_update=lambda line: (
                    show("updates", line["step"], options.updates, _text(line))
                    if first_process()
                    else None
                ),
                sampler=sampler,
                how=How(layout, remat=options.remat, dtype=options.dtype),
            )
        except NothingToLearn as end:
            if first_process():
                print(end, file=sys.stderr)
            state = end.state
    found = gathered(state.params)
    if not first_process():
        return
    if (folder / "model").exists():
        print(f"{folder / 'model'} is there already", file=sys.stderr)
        return
    write_model(found, model, folder / "model", options.model, options.tokenizer)
    print(f"{folder / 'model'} holds the model; try: pangu-jax bench {folder / 'model'} ...")


@dataclass(frozen=True)
class _Questions:
    """The order of questions: a new one for each pass over them, or that of a curriculum."""

    items: list[Item]
    prompts: list[Prompt]
    seed: int
    mixed: bool

    def of(self, number: int) -> int:
        """The index of the question that a group answers."""
        if self.mixed:
            return number
        turn, place = divmod(number, len(self.items))
        return int(_order(self.seed, turn, len(self.items))[place])

    def prompt(self, number: int) -> list[int]:
        """The prompt that a group answers, as ids."""
        return self.prompts[self.of(number)].ids


@lru_cache(maxsize=4)
def _order(seed: int, turn: int, count: int) -> np.ndarray:
    return np.random.default_rng([seed, turn]).permutation(count)


def _sampler(options: Options) -> MakeSampler:
    if options.rollouts == "local":
        return LocalSampler
    if options.mesh:
        raise InputError("--mesh splits what this process holds; workers of Ray have whole models")
    check_size("workers", options.workers)
    import_ray()
    return partial(RaySampler, workers=options.workers, gpus=options.worker_gpus)


def _config(options: Options, count: int, longest: int, stops: tuple[int, ...]) -> RlConfig:
    shared = ("updates", "max_new_tokens", "temperature", "accumulate", "seed", "save_every")
    sizes = ("staleness", "batch", "group", "slots")
    plan: dict[str, Any] = {name: getattr(options, name) for name in sizes}
    return RlConfig(
        ScheduleConfig(**plan, replace_equal_groups=options.algorithm == "dapo"),
        _policy(options),
        length=round_up(longest + options.max_new_tokens),
        stop_ids=stops,
        overlong=0.5 if options.algorithm == "dapo" else 0.0,
        corrected=options.corrected,
        curriculum=CurriculumConfig(count, options.updates) if options.curriculum else None,
        **{name: getattr(options, name) for name in shared},
    )


def _policy(options: Options) -> PolicyConfig:
    if options.algorithm == "dr-grpo":
        return dataclasses.replace(dr_grpo(options.max_new_tokens), kl=options.kl)
    return dataclasses.replace(DAPO if options.algorithm == "dapo" else GRPO, kl=options.kl)


def _sources(options: Options, items: Sequence[Item]) -> dict[str, Source]:
    kinds = {item.kind for item in items}
    if options.reward == "code" and kinds != {"code"}:
        raise InputError(f"{options.data} has questions that code is no answer to")
    if options.reward == "math" and "code" in kinds:
        raise InputError(f"{options.data} has questions that code answers; give --reward code")
    if options.reward == "code" and not options.allow_code_execution:
        raise InputError(
            "--reward code runs code that the model writes, which is done only with "
            "--allow-code-execution"
        )
    asked = Task("--data", Path(options.data), "", tuple(items))
    bench.check_judges([asked], allow_code=options.allow_code_execution)
    found: dict[str, Source] = {}
    if options.reward == "math":
        found["answer"] = reward_sources.per_sample(reward_sources.answer, threads=4)
    else:
        found["code"] = reward_sources.code(allow=options.allow_code_execution)
    return found


def _reward(
    options: Options, prompter: Prompter, questions: _Questions, sources: dict[str, Source]
) -> Grader:
    def reward(number: int, answers: Sequence[Answer], health: SourceHealth) -> Graded:
        place = questions.of(number)
        item, prompt = questions.items[place], questions.prompts[place]
        like = Sample(
            item.question,
            "",
            "",
            kind=item.kind,
            gold=item.gold,
            code=item.code,
            starts_in_thinking=prompt.starts_in_thinking,
        )
        samples = []
        for answer in answers:
            ids = answer.ids.tolist()
            text, (_, said) = prompter.tokenizer.decode(ids), prompter.read(item, prompt, ids)
            samples.append(dataclasses.replace(like, text=text, said=said, tokens=len(ids)))
        return grade(samples, ROUTES, sources, health)

    return reward


def _text(line: dict[str, Any]) -> str:
    """The text that progress shows about an update."""
    return (
        f"reward {line['reward']:.3f}, {line['tokens']:.0f} tokens, {line['masked_groups']:.0%} of "
        f"the groups masked, largest age {max(line['ages'])}, "
        f"{line.get('tokens_per_second', 0):,.0f} tokens/s, "
        f"slots {line.get('generator_idle', 0):.0%} idle"
    )
