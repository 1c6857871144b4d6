"""Programs to export: named pure functions that share one tree of parameters."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pangu_jax.core.errors import InputError
from pangu_jax.core.tree import flatten
from pangu_jax.export.artifact import save_samples
from pangu_jax.export.parity import Row, compare

Run = Callable[[Mapping[str, Any]], Mapping[str, Any]]  # from inputs to results, by name


@dataclasses.dataclass(frozen=True)
class Program:
    """One function to export.

    Attributes:
      name: of its file.
      function: `function(params, **inputs)`, pure, giving {name: array}.
      inputs: {name: shape and type}, in the order in which they are documented.
      reference: the same function as jax runs it here, compiled, to compare with; None compiles
        `function`.
      samples: inputs to compare on: {label: {name: array}}.
    """

    name: str
    function: Callable[..., dict[str, Any]]
    inputs: Mapping[str, jax.ShapeDtypeStruct]
    reference: Callable[..., dict[str, Any]] | None = None
    samples: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Bundle:
    """Programs that share parameters.

    Attributes:
      params: tree of arrays.
      programs: the functions.
      facts: JSON values that a caller of the artifact needs besides the signature.
      notes: remarks for the user.
    """

    params: Any
    programs: tuple[Program, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def single(
    function: Callable[..., Any],
    params: Any,
    inputs: Mapping[str, Any],
    *,
    name: str = "forward",
    samples: Mapping[str, Mapping[str, Any]] | None = None,
    reference: Callable[..., Any] | None = None,
) -> Bundle:
    """One function as a bundle.

    Args:
      function: `function(params, *inputs)`, pure, giving any tree of arrays: an array alone is
        called "output", others by their path, after "output_" if that begins with a number.
      params: tree of arrays.
      inputs: {name: array or ShapeDtypeStruct}, in the order of the arguments.
      name: of the program.
      samples: inputs to compare on; None takes `inputs`, if they are arrays.
      reference: the function to compare with; None is `function`.
    """
    specs = {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in inputs.items()}
    if samples is None:
        abstract = any(isinstance(x, jax.ShapeDtypeStruct) for x in inputs.values())
        samples = {} if abstract else {"given": inputs}
    order = tuple(inputs)
    compared = None if reference is None else jax.jit(_named(reference, order))
    return Bundle(params, (Program(name, _named(function, order), specs, compared, samples),))


def linen(
    module: Any, variables: Any, inputs: Mapping[str, Any], *, name: str = "forward"
) -> Bundle:
    """A Flax Linen module with its variables; see `single` for the rest."""
    from flax.core import meta

    return single(module.apply, meta.unbox(variables), inputs, name=name)


def nnx(module: Any, inputs: Mapping[str, Any], *, name: str = "forward") -> Bundle:
    """A Flax NNX module; see `single` for the rest."""
    from flax import nnx

    structure, state = nnx.split(module)
    leaves = nnx.to_pure_dict(state)

    def call(params: Any, *arguments: Any) -> Any:
        current = jax.tree.map(lambda x: x, state)
        nnx.replace_by_pure_dict(current, params)
        return nnx.merge(structure, current)(*arguments)

    return single(call, leaves, inputs, name=name)


def _named(function: Callable[..., Any], order: tuple[str, ...]) -> Callable[..., dict[str, Any]]:
    def call(params: Any, **inputs: Any) -> dict[str, Any]:
        results = function(params, *(inputs[n] for n in order))
        return {_name(path): x for path, x in flatten(results).items()}

    return call


def _name(path: str) -> str:
    name = path.replace("/", "_") or "output"
    return f"output_{name}" if name[0].isdigit() else name


def check_profiles(longest: int, profiles: Sequence[int]) -> None:
    """Checks that there are profiles, each a text length within the model's limit.

    Raises:
      InputError: there is none, or one is outside 1 to `longest`.
    """
    if not profiles:
        raise InputError("an export needs at least one profile (the length of a text)")
    for length in profiles:
        if not 1 <= length <= longest:
            raise InputError(
                f"profile {length} is outside 1 to {longest}, the lengths the model takes"
            )


def references(bundle: Bundle) -> dict[tuple[str, str], dict[str, Any]]:
    """The result of jax for every sample: {(program, sample): {result: array}}."""
    found = {}
    with jax.default_matmul_precision("highest"):
        for program in bundle.programs:
            run = program.reference or jax.jit(program.function)
            for name, inputs in program.samples.items():
                results = run(bundle.params, **inputs)
                found[program.name, name] = {n: np.asarray(x) for n, x in results.items()}
    return found


def compare_samples(
    bundle: Bundle, folder: Path, run: Callable[[Program], Run] | None
) -> list[Row]:
    """Compares an artifact with jax on the samples of its programs, and keeps them in its folder.

    Args:
      bundle: the programs that were exported.
      folder: the artifact's folder.
      run: opens the artifact's form of a program, as a function from inputs to results by name;
        None where this machine cannot run it, which compares nothing.

    Returns:
      A row for each program, sample and kind of result.

    Raises:
      InputError: a result is missing or has another shape.
    """
    rows, kept, wanted = [], {}, references(bundle)
    for program in bundle.programs:
        call = None if run is None else run(program)
        for name, inputs in program.samples.items():
            results = wanted[program.name, name]
            if call is not None:
                rows += compare(program.name, name, results, call(inputs))
            kept[program.name, name] = inputs, results
    save_samples(folder, kept)
    return rows
