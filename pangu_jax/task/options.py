"""What pruning and export are asked for, by keyword from Python and by flag from a shell.

The commands' options are these and where to read and write. Nothing heavy is imported here, so that
a command's help is instant; `tests/cli/test_defaults.py` compares the defaults with the library's.
"""

from dataclasses import dataclass
from typing import Literal

from pangu_jax.core.config import check_choices
from pangu_jax.models.pooling_config import Pooling


@dataclass(frozen=True, kw_only=True)
class PruneOptions:
    """How a language model is pruned, and to what size."""

    target: str | None = None
    """What to keep: "params=0.8", "flops=0.7", or axes: "ffn=0.5,groups=0.75,layers=24"."""
    calib: str | None = None
    """Calibration text: a file or folder of .txt or .jsonl, either possibly .gz; "stdlib"."""
    method: Literal[
        "slimllm", "pangu-light", "flap", "wanda-sp", "minitron", "taylor", "magnitude", "random"
    ] = "slimllm"
    """How units are scored."""
    repair: Literal["ridge", "affine", "scale", "bias", "none"] = "ridge"
    """How pruned projections are refitted; ridge without biases where the family has none."""
    export: Literal["uniform", "padded", "per-layer"] = "uniform"
    """Layers of equal widths; zero-padded to equal widths; or each as it is."""
    allocation: Literal["equal", "cosine", "global"] | None = None
    """Shares of the layers; None is equal for uniform, and cosine (flap: global) otherwise."""
    windows: int = 32
    """Calibration windows."""
    length: int = 128
    """Tokens per window, and the context for which a flops target counts attention."""
    seed: int | None = None
    """Draws random windows of the text; None takes its first ones."""
    prunable_axes: tuple[Literal["groups", "ffn", "hidden"], ...] = ()
    """Axes that a params or flops target cuts; empty is the method's own."""
    ridge: float | None = None
    """Strength of the ridge repair; None chooses it on held-out windows."""
    propagate: Literal["pruned", "dense"] = "pruned"
    """Whether scores and repairs see the preceding layers as already pruned."""
    norm: Literal["none", "l2", "dim", "calibrated"] = "l2"
    """How norm gains are re-initialized when hidden channels are pruned (SLNP)."""
    clap: bool = True
    """Whether removed layers pass their best KV groups to the preceding layer (CLAP)."""
    alpha: float = 10.0
    """Unevenness of the cosine allocation."""
    pruned_layers: int | None = None
    """How many layers the cosine allocation prunes; None is all."""
    keep_lowest: float = 0.0
    """Share of the least important channels kept (0.01 in SlimLLM's released code)."""
    multiple: int | None = None
    """FFN and hidden widths are multiples of it, where the model's own are (128 suits Ascend); None
    is 16 for widths of at least 256, and 1 below."""
    absorb: float | None = None
    """Fold sandwich norms into the projections where the relative error is below this."""
    plan: str | None = None
    """Replay this plan.json instead of choosing; the text then only serves the repair."""
    eval_windows: int = 40
    """Windows after the calibration ones on which perplexity is measured; 0 for none."""
    batch: int = 8
    """Windows computed at once."""
    tokenizer: str | None = None
    """"bytes" or a tokenizer.json; None takes the checkpoint's own."""
    field: str = "text"
    """The key of the text in .jsonl lines."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of parameters and activations; None keeps the checkpoint's."""

    def __post_init__(self):
        check_choices(self)


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """To which target a model is exported, and how it is checked."""

    target: Literal["stablehlo", "onnx", "ascend"]
    """stablehlo: runs with jax alone. onnx: opset 17. ascend: onnx, and what atc needs."""
    profiles: str | None = None
    """Prompt or text lengths, such as 128,512,2048: one static program for each. None is 128, or
    the longest question that a run of `latent train` says it had, if that is longer."""
    cache: int | None = None
    """Slots of the key-value cache; None is twice the longest profile, if the model allows it."""
    batch: int | None = None
    """Rows of a batch; None is 1 for onnx and ascend, and open for stablehlo."""
    platforms: str = "cpu"
    """For stablehlo: the platforms, of cpu,cuda,tpu, that the artifact runs on."""
    weights: Literal["beside", "inside"] = "beside"
    """For stablehlo: weights in a file shared by the programs, or embedded in each."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of parameters and activations; ONNX is float32."""
    precision: Literal["highest", "default"] = "highest"
    """For stablehlo: precision of float32 matmuls on GPU and TPU; default is faster, less exact."""
    experts: Literal["dense", "gather"] | None = None
    """How routed experts are computed; None is dense-in-group. gather suits batch 1 on a CPU."""
    soc: str | None = None
    """For ascend: the chip, such as Ascend310P3 (see `npu-smi info`)."""
    operators: Literal["cann-8.0", "cann-5.0.4"] = "cann-8.0"
    """For ascend: the operator list to comply with."""
    precision_mode: str | None = None
    """For ascend: the precision mode that atc is given."""
    tolerance: float | None = None
    """Maximum relative error against jax; None is 1e-4 in float32 (1e-2 with precision default),
    1e-1 in bfloat16."""
    pooling: Pooling | None = None
    """For an encoder: which hidden states make a vector; None is what the folder says."""
    thoughts: bool = True
    """For a run of `latent train`: the programs think as its model learned to, with the thoughts of
    its last stage; without it the decoder alone is exported."""
    tokenizer: str | None = None
    """"bytes" or a tokenizer.json, for the real prompts; None takes the checkpoint's own."""

    def __post_init__(self):
        check_choices(self)
