"""A bundle as ONNX files that share their weights, each checked and compared with jax."""

from pathlib import Path
from typing import Any

import numpy as np

import pangu_jax
from pangu_jax.core.errors import InputError
from pangu_jax.core.extras import check_extra
from pangu_jax.export.artifact import Artifact, Compiled, Tensor, save
from pangu_jax.export.onnx.model import (
    IR,
    OPSET,
    Lowered,
    Weights,
    check_model,
    convert,
    load_onnx,
    to_model,
)
from pangu_jax.export.parity import Row
from pangu_jax.export.program import Bundle, Program, compare_samples

WEIGHTS = "weights.bin"


def export(
    bundle: Bundle, folder: Path, *, external: bool | None = None, tolerance: float = 1e-4
) -> tuple[Artifact, list[Row], dict[str, Lowered]]:
    """Writes the programs of a bundle into a folder.

    Args:
      bundle: the programs to export; inputs of static shape.
      folder: an empty folder.
      external: whether weights go into a file of their own; None does so for several programs,
        which then share it, and for more than 2 GiB.
      tolerance: written into the manifest; the caller checks the rows against it.

    Returns:
      The manifest, the comparison with jax, and the graphs.

    Raises:
      InputError: a function that has no ONNX form, an invalid file, or a missing library.
    """
    onnx = load_onnx()
    onnxruntime()
    total = sum(a.nbytes for a in _leaves(bundle.params))
    apart = external if external is not None else len(bundle.programs) > 1 or total >= 2**31
    weights = Weights(folder / WEIGHTS) if apart else None
    lowered: dict[str, Lowered] = {}
    for program in bundle.programs:
        made = convert(program.function, bundle.params, dict(program.inputs))
        lowered[program.name] = made
        onnx.save_model(to_model(made, weights), str(folder / f"{program.name}.onnx"))
    if weights is not None:
        weights.write()

    def run(program: Program) -> Session:
        path = folder / f"{program.name}.onnx"
        check_model(path)
        return Session(path)

    rows = compare_samples(bundle, folder, run)
    import jax

    versions = {
        "pangu_jax": pangu_jax.__version__,
        "jax": jax.__version__,
        "onnx": onnx.__version__,
        "onnx_opset": str(OPSET),
        "onnx_ir": str(IR),
    }
    artifact = Artifact(
        "onnx",
        tuple(_compiled(n, made) for n, made in lowered.items()),
        {},
        ("onnxruntime", "ascend"),
        versions,
        WEIGHTS if weights is not None else "",
        tolerance,
        dict(bundle.facts),
        tuple(bundle.notes),
    )
    return save(artifact, folder), rows, lowered


class Session:
    """A program of onnxruntime: call it with {name: array}, get {name: array}."""

    def __init__(self, path: str | Path, provider: str = "CPUExecutionProvider"):
        """Loads a file.

        Raises:
          InputError: an unknown provider, or a file that cannot be loaded.
        """
        runtime = onnxruntime()
        if provider not in runtime.get_available_providers():
            known = ", ".join(runtime.get_available_providers())
            raise InputError(f"onnxruntime has no {provider} here; it has {known}")
        try:
            self.session = runtime.InferenceSession(str(path), providers=[provider])
        except Exception as error:  # onnxruntime's own types have no common public base
            raise InputError(f"onnxruntime cannot load {path}: {error}") from error
        self.names = [o.name for o in self.session.get_outputs()]
        self.takes = {i.name for i in self.session.get_inputs()}

    def __call__(self, inputs: Any) -> dict[str, np.ndarray]:
        """Runs it; inputs that the program does not depend on are left out."""
        given = {n: np.asarray(a) for n, a in inputs.items() if n in self.takes}
        return dict(zip(self.names, self.session.run(None, given), strict=True))


def onnxruntime() -> Any:
    """The onnxruntime package.

    Raises:
      InputError: it is not installed.
    """
    check_extra("export", "onnxruntime", by="running an ONNX model")
    import onnxruntime as runtime

    return runtime


def _leaves(params: Any) -> list[np.ndarray]:
    import jax

    return [np.asarray(x) for x in jax.tree.leaves(params)]


def _compiled(name: str, made: Lowered) -> Compiled:
    return Compiled(
        name,
        f"{name}.onnx",
        _tensors(made.inputs.items()),
        _tensors(made.outputs.items()),
        made.operators,
    )


def _tensors(items: Any) -> tuple[Tensor, ...]:
    return tuple(Tensor(n, tuple(s.shape), np.dtype(s.dtype).name) for n, s in items)
