"""StableHLO artifacts through jax.export: for CPU, GPU and TPU, batch size open, no model code.

An artifact loads with the jax that made it or a newer one. Programs that are exported in float32
ask for full precision in every product, so that a GPU or TPU matches a CPU; `precision`
"default" leaves that to the platform, which is faster and rounds more.
"""

import dataclasses
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.export as jax_export
import jax.numpy as jnp
import numpy as np

import pangu_jax
from pangu_jax.core.errors import InputError
from pangu_jax.core.platform import targeting
from pangu_jax.core.tree import flatten
from pangu_jax.export.artifact import (
    Artifact,
    Compiled,
    Tensor,
    fit_inputs,
    load,
    save,
)
from pangu_jax.export.parity import Row
from pangu_jax.export.program import Bundle, Program, Run, compare_samples

PLATFORMS = ("cpu", "cuda", "tpu")
WEIGHTS = "weights.safetensors"


def symbolic_batch() -> Any:
    """The batch dimension whose size is chosen at each call."""
    return jax_export.symbolic_shape("b")[0]


def check_platforms(platforms: Sequence[str]) -> tuple[str, ...]:
    """The platforms, if they are known ones.

    Raises:
      InputError: an unknown platform, or none.
    """
    for name in platforms:
        if name not in PLATFORMS:
            raise InputError(f"there is no platform {name!r}; known: {', '.join(PLATFORMS)}")
    if not platforms:
        raise InputError(f"name at least one platform of {', '.join(PLATFORMS)}")
    return tuple(platforms)


def here() -> str:
    """The platform of this process, by the names used here."""
    name = jax.default_backend()
    return "cuda" if name == "gpu" else name


def export(
    bundle: Bundle,
    folder: Path,
    *,
    platforms: Sequence[str] = ("cpu",),
    inside: bool = False,
    precision: str = "highest",
    tolerance: float = 1e-4,
) -> tuple[Artifact, list[Row]]:
    """Writes the programs of a bundle into a folder.

    Args:
      bundle: the programs to export; the shapes of inputs may have the symbolic batch.
      folder: an empty folder.
      platforms: of `PLATFORMS`; one artifact serves them all.
      inside: whether weights are constants of the programs, instead of one file beside them.
      precision: of products in float32: "highest" or "default".
      tolerance: written into the manifest; the caller checks the rows against it.

    Returns:
      The manifest, and the comparison with jax, empty if this machine's platform is not among them.

    Raises:
      InputError: an unknown platform.
    """
    platforms = check_platforms(platforms)
    leaves = {n: jnp.asarray(x) for n, x in flatten(bundle.params).items()}
    if not inside:
        _save_weights(leaves, folder / WEIGHTS)
    compiled, exported = [], {}
    for program in bundle.programs:
        function = _closed(program.function, bundle.params, leaves if inside else None)
        weights = {} if inside else _abstract(leaves)
        target = targeting({"cuda": "gpu"}.get(platforms[0], platforms[0]))
        with target, jax.default_matmul_precision(precision if precision != "default" else None):
            made = jax_export.export(jax.jit(function), platforms=platforms)(
                weights, dict(program.inputs)
            )
        (folder / f"{program.name}.stablehlo").write_bytes(made.serialize())
        exported[program.name] = made
        compiled.append(_compiled(program.name, program.inputs, made))

    def run(program: Program) -> Run:
        call, weights = exported[program.name].call, {} if inside else leaves
        return lambda inputs: call(weights, dict(inputs))

    rows = compare_samples(bundle, folder, run if here() in platforms else None)
    versions = {
        "pangu_jax": pangu_jax.__version__,
        "jax": jax.__version__,
        "calling_convention": str(made.calling_convention_version),
        "precision": precision,
    }
    artifact = Artifact(
        "stablehlo", tuple(compiled), {}, platforms, versions, "" if inside else WEIGHTS,
        tolerance, dict(bundle.facts), tuple(bundle.notes),
    )  # fmt: skip
    return save(artifact, folder), rows


@dataclasses.dataclass(frozen=True)
class Loaded:
    """An artifact ready to run.

    Attributes:
      artifact: its manifest.
      weights: its parameters on this machine's device.
      programs: the programs by name.
    """

    artifact: Artifact
    weights: dict[str, jax.Array]
    programs: dict[str, Any]

    def __call__(self, name: str | None, inputs: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Runs a program.

        Args:
          name: of the program; None is the only one.
          inputs: {name: array}.

        Raises:
          InputError: no such program, or inputs or weights that do not fit its signature.
        """
        program = self.artifact.program(name)
        fitted = fit_inputs(program, inputs)
        try:
            results = self.programs[program.name](self.weights, fitted)
        except (TypeError, ValueError) as error:  # no batch at all, or weights of another program
            raise InputError(f"cannot run {program.name}: {error}") from error
        return {n: np.asarray(x) for n, x in results.items()}


def open_artifact(folder: str | Path) -> Loaded:
    """Loads an artifact, on whatever device jax has here.

    Raises:
      InputError: it is damaged, made by a newer jax, or for other platforms.
    """
    folder = Path(folder)
    artifact = load(folder)
    if artifact.target != "stablehlo":
        raise InputError(f"{folder} holds {artifact.target} programs, not StableHLO")
    _check_version(artifact)
    if here() not in artifact.platforms:
        raise InputError(
            f"{folder} was exported for {', '.join(artifact.platforms)}; this machine has {here()}"
        )
    weights = _load_weights(folder / artifact.weights) if artifact.weights else {}
    programs = {p.name: jax.jit(_read(folder / p.file).call) for p in artifact.programs}
    return Loaded(artifact, weights, programs)


def _check_version(artifact: Artifact) -> None:
    made, own = artifact.versions.get("jax", "?"), jax.__version__
    if _numbers(made) > _numbers(own):
        raise InputError(
            f"the artifact was exported by jax {made} and this is jax {own}: an artifact loads "
            "with the same jax or a newer one"
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:3] if part.isdigit())


def _read(path: Path) -> Any:
    try:
        return jax_export.deserialize(bytearray(path.read_bytes()))
    except Exception as error:  # flatbuffers and jax raise many kinds
        raise InputError(f"{path} cannot be read by this jax: {error}") from error


def _closed(function: Callable, params: Any, inside: dict | None) -> Callable:
    """`function` on {path: array}, or with the parameters built in."""
    names, tree = list(flatten(params)), jax.tree.structure(params)

    def call(weights: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
        held = weights if inside is None else inside
        return function(jax.tree.unflatten(tree, [held[n] for n in names]), **inputs)

    return call


def _abstract(leaves: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    return {n: jax.ShapeDtypeStruct(x.shape, x.dtype) for n, x in leaves.items()}


def _compiled(name: str, inputs: Mapping[str, Any], made: Any) -> Compiled:
    outputs = jax.tree.unflatten(made.out_tree, made.out_avals)
    text = made.mlir_module()
    operators: dict[str, int] = {}
    for line in text.splitlines():
        _, found, rest = line.partition("stablehlo.")
        if found:
            op = rest.split(" ")[0].split("(")[0].strip('"')
            operators[op] = operators.get(op, 0) + 1
    return Compiled(
        name,
        f"{name}.stablehlo",
        _tensors(inputs),
        _tensors(outputs),
        dict(sorted(operators.items())),
    )


def _tensors(items: Mapping[str, Any]) -> tuple[Tensor, ...]:
    form = lambda size: size if isinstance(size, int) else str(size)  # noqa: E731
    return tuple(Tensor(n, tuple(map(form, x.shape)), x.dtype.name) for n, x in items.items())


def _save_weights(leaves: Mapping[str, jax.Array], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.flax import save_file

    try:
        save_file(dict(leaves), str(path))
    except SafetensorError as error:  # it names the system's error by number alone
        code = re.search(r"(?:os error|code:) (\d+)", str(error))
        raise OSError(int(code[1]), os.strerror(int(code[1]))) if code else error from error


def _load_weights(path: Path) -> dict[str, jax.Array]:
    from safetensors.flax import load_file

    try:
        return load_file(str(path))
    except Exception as error:
        raise InputError(f"{path} cannot be read: {error}") from error
