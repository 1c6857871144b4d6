"""What is exported: named pure functions over one tree of parameters."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np


@dataclasses.dataclass(frozen=True)
class Program:
    """One function to export.

    Attributes:
      name: of its file.
      function: `function(params, **inputs)`, pure, giving {name: array}.
      inputs: {name: shape and type}, in the order in which they are documented.
      reference: the same function as jax runs it here, to compare with; None is `function`.
      samples: inputs to compare on: {how they are called: {name: array}}.
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
      facts: what a caller of the artefact needs to know beside the signature: JSON values.
      notes: what the user should be told.
    """

    params: Any
    programs: tuple[Program, ...]
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


def references(bundle: Bundle) -> dict[tuple[str, str], dict[str, Any]]:
    """What jax gives for every sample: {(program, sample): {result: array}}."""
    found = {}
    with jax.default_matmul_precision("highest"):
        for program in bundle.programs:
            run = jax.jit(program.reference or program.function)
            for name, inputs in program.samples.items():
                results = run(bundle.params, **inputs)
                found[program.name, name] = {n: np.asarray(x) for n, x in results.items()}
    return found
