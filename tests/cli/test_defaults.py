"""A command's defaults are those of the library: what is left out means the same in both."""

import dataclasses
import importlib
import inspect
import typing

import pytest

from pangu_jax.cli.main import COMMANDS
from pangu_jax.decode.sample import SamplingConfig
from pangu_jax.eval.perplexity import measure
from pangu_jax.models.timepro import TimeProConfig
from pangu_jax.pruning.compress import Recipe
from pangu_jax.pruning.stats import SweepConfig
from pangu_jax.train import distill, language
from pangu_jax.train.forecast import FitConfig
from pangu_jax.train.loop import LoopConfig
from pangu_jax.train.optimizer import OptimizerConfig

# What a command hands its options to.
HANDS = {
    "train": (LoopConfig, language.language_loss, language.train_language),
    "distill": (LoopConfig, distill.distill_loss),
    "prune": (Recipe, SweepConfig),
    "eval": (measure,),
    "forecast": (TimeProConfig, FitConfig),
    "generate": (),
    "chat": (),
}
# Where None is for the command to choose, by the rest of what it is given.
CHOSEN = {("prune", "allocation"), ("prune", "seed")}
# Configurations that a command has of its own, and what they are.
OWN = {
    ("distill", "optimizer"): distill.OPTIMIZER,
    ("chat", "sampling"): SamplingConfig(temperature=0.6, top_k=50, top_p=0.95),
}


def defaults(thing):
    if dataclasses.is_dataclass(thing):
        found = {f.name: f.default for f in dataclasses.fields(thing)}
    else:
        found = {n: p.default for n, p in inspect.signature(thing).parameters.items()}
    missing = (dataclasses.MISSING, inspect.Parameter.empty)
    return {name: value for name, value in found.items() if value not in missing}


@pytest.mark.parametrize("command", HANDS)
def test_what_a_command_shares_with_the_library_has_one_default(command):
    kinds = importlib.import_module(COMMANDS[command][0]).Options
    compared = 0
    for options in typing.get_args(kinds) or (kinds,):
        given = defaults(options)
        for theirs in map(defaults, HANDS[command]):
            for name in given.keys() & theirs.keys() - {n for c, n in CHOSEN if c == command}:
                assert given[name] == theirs[name], name
                compared += 1
        for name, value in given.items():
            if isinstance(value, OptimizerConfig | SamplingConfig):
                assert value == OWN.get((command, name), type(value)()), name
    assert compared >= 2 * len(HANDS[command])
