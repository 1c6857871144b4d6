"""A command's defaults are those of the library: what is left out means the same in both."""

import dataclasses
import inspect
import typing

import pytest

from pangu_jax.cli.main import COMMANDS, options_of
from pangu_jax.decode.sampling_config import SamplingConfig
from pangu_jax.eval.embedding import embed
from pangu_jax.eval.perplexity import measure
from pangu_jax.export import stablehlo
from pangu_jax.models.timepro_config import TimeProConfig
from pangu_jax.pruning.allocate import Limits
from pangu_jax.pruning.recipe import Recipe
from pangu_jax.pruning.stats import SweepConfig
from pangu_jax.reasoning.latent import train as latent
from pangu_jax.reasoning.rl_config import OPTIMIZER, RlConfig
from pangu_jax.reasoning.schedule_simulate import simulate
from pangu_jax.reasoning.schedule_state import ScheduleConfig
from pangu_jax.serve.driver import Driver
from pangu_jax.train import distill, distill_config, language
from pangu_jax.train.fit_config import FitConfig
from pangu_jax.train.loop_config import LoopConfig

# What a command hands its options to, by their names; other names that are alike mean other things.
HANDS = {
    "train": (LoopConfig, language.language_loss, language.train_language),
    "distill": (LoopConfig, distill.distill_loss),
    "prune": (Recipe, SweepConfig, Limits),
    "eval": (measure,),
    "embed": (embed,),
    "rl": (RlConfig, ScheduleConfig),
    "rl simulate": (simulate,),
    "serve": (Driver,),
    "export": (stablehlo.export,),
    "forecast": (TimeProConfig, FitConfig),
}
# Where None leaves it to the command, which looks at the rest of what it is given; and a list of
# names that is a text there.
CHOSEN = {
    *(("prune", "allocation"), ("prune", "seed"), ("export", "tolerance")),
    ("export", "platforms"),
    ("rl", "curriculum"),  # a switch, where the library takes how far a curriculum reaches
}
# Where what a command does wants another configuration than the type's own default.
OWN = {
    ("distill", "optimizer"): distill_config.OPTIMIZER,
    ("rl", "optimizer"): OPTIMIZER,
    ("latent train", "optimizer"): latent.OPTIMIZER,
    ("chat", "sampling"): SamplingConfig(temperature=0.6, top_k=50, top_p=0.95),
}


def defaults(thing):
    if dataclasses.is_dataclass(thing):
        found = {f.name: f.default for f in dataclasses.fields(thing)}
    else:
        found = {n: p.default for n, p in inspect.signature(thing).parameters.items()}
    missing = (dataclasses.MISSING, inspect.Parameter.empty)
    return {name: value for name, value in found.items() if value not in missing}


def given(command):
    kinds = options_of(command).Options
    return [defaults(options) for options in typing.get_args(kinds) or (kinds,)]


@pytest.mark.parametrize("command", HANDS)
def test_what_a_command_shares_with_the_library_has_one_default(command):
    for theirs in map(defaults, HANDS[command]):
        shared = [
            (name, ours[name])
            for ours in given(command)
            for name in ours.keys() & theirs.keys()
            if (command, name) not in CHOSEN
        ]
        assert shared
        for name, value in shared:
            assert value == theirs[name], name


@pytest.mark.parametrize("command", COMMANDS)
def test_a_configuration_inside_a_command_s_options_is_the_library_s(command):
    for ours in given(command):
        for name, value in ours.items():
            if dataclasses.is_dataclass(value):
                assert value == OWN.get((command, name), type(value)()), name
