"""Operators that ATC, the Ascend Tensor Compiler, accepts from ONNX, as data.

The list is that of the operator reference of CANN 8.0, commercial edition ("ONNX operator list",
operatorlist_00176), which also says: ONNX 1.12.0, hence opset 17 and IR 8 at most. Names are
compared without regard to case, as the page spells some otherwise than ONNX does (Argmax, Cumsum).
Being on the list is what we check; no Ascend device was available to compile on.
"""

import dataclasses
from collections.abc import Iterable

from pangu_jax.core.errors import InputError
from pangu_jax.export.onnx.graph import Node


@dataclasses.dataclass(frozen=True)
class OperatorProfile:
    """The operators and versions that one release of the compiler supports.

    Attributes:
      name: of the profile.
      cann: version of CANN.
      source: origin of the list.
      opset: the newest opset.
      ir: the newest IR version.
      operators: ONNX operators, in lower case.
      doubtful: {operator: what is uncertain about it}.
    """

    name: str
    cann: str
    source: str
    opset: int
    ir: int
    operators: frozenset[str]
    doubtful: dict[str, str] = dataclasses.field(default_factory=dict)


_CANN_8_0 = """
abs acos acosh adaptiveavgpool2d add affinegrid and argmax argmin ascendantiquant ascendquant
asin asinh atan atanh averagepool batchnormalization batchmulticlassnms bitshift bitwiseand
bitwisenot bitwiseor bitwisexor cast ceil celu clip compress concat constant constantofshape
conv convtranspose corr cos cosh cumsum deformableconv2d depthtospace det div dropout
dynseqouter einsum elu embeddingbag equal erf exp expand eyelike flatten floor gather
gatherelements gathernd gemm globalaveragepool globallppool globalmaxpool greater greaterorequal
gridsample gru hardmax hardsigmoid hardswish identity if instancenormalization isinf isnan
layernormalization leakyrelu less lessorequal log logsoftmax lpnormalization lppool lrn lstm
lstmp matmul max maxpool maxroipool maxunpool mean meanvariancenormalization min mod
movingsumwithsigmoid mul multinomial neg nonmaxsuppression nonzero not onehot or pad pow
randomnormal randomnormallike randomuniform randomuniformlike range reciprocal reducel1 reducel2
reducelogsum reducelogsumexp reducemean reducemin reduceprod reducesumsquare reducesum reducemax
relu reshape resize reversesequence roialign roiextractor round prelu scatter scatterelements
scatternd selu shape shrink sigmoid sign sin sinh size slice softmax softmaxcrossentropyloss
softplus softsign spacetodepth split sqrt squeeze sub sum tan tanh tfidfvectorizer
thresholdedrelu tile topk transpose trilu unsqueeze where xor
"""

# The list of CANN 5.0.4 (operatorlist_0071) lacks these of the newer one.
_LATER = frozenset(["einsum", "trilu", "layernormalization", "gridsample", "isnan"])

PROFILES = {
    profile.name: profile
    for profile in (
        OperatorProfile(
            "cann-8.0",
            "8.0",
            "CANN 8.0 commercial edition, operatorlist_00176",
            17,
            8,
            frozenset(_CANN_8_0.split()),
            {"ScatterND": "the list does not say whether its reduction attribute is taken"},
        ),
        OperatorProfile(
            "cann-5.0.4",
            "5.0.4",
            "CANN 5.0.4, ONNX operator list (operatorlist_0071), as far as it differs",
            17,
            8,
            frozenset(_CANN_8_0.split()) - _LATER,
        ),
    )
}


@dataclasses.dataclass(frozen=True)
class Violation:
    """An operator that the profile lacks, and its origin: "primitive at file:line"."""

    program: str
    operator: str
    origin: str
    count: int


def profile(name: str) -> OperatorProfile:
    """The profile of that name.

    Raises:
      InputError: an unknown name.
    """
    if name not in PROFILES:
        raise InputError(f"there is no operator profile {name!r}; known: {', '.join(PROFILES)}")
    return PROFILES[name]


def violations(program: str, nodes: Iterable[Node], profile: OperatorProfile) -> list[Violation]:
    """The operators outside the profile, one entry for each operator and source line."""
    found: dict[tuple[str, str], int] = {}
    for node in nodes:
        if node.op.lower() not in profile.operators:
            found[node.op, node.origin] = found.get((node.op, node.origin), 0) + 1
    return [Violation(program, op, origin, count) for (op, origin), count in found.items()]


def report(counts: dict[str, dict[str, int]], found: list[Violation], used: OperatorProfile) -> str:
    """The operator report as text: counts of each program, then a verdict."""
    lines = [f"operators, against {used.name} ({used.source}):"]
    for name, operators in counts.items():
        total = sum(operators.values())
        lines.append(
            f"  {name}: {total} nodes: " + ", ".join(f"{o} {n}" for o, n in operators.items())
        )
    for name, doubt in used.doubtful.items():
        if any(name in operators for operators in counts.values()):
            lines.append(f"  {name}: {doubt}")
    if not found:
        return "\n".join([*lines, "ATC-clean: every operator is on the list"])
    lines.append("not ATC-clean:")
    lines += [f"  {o.program}: {o.count} x {o.operator}, from {o.origin}" for o in found]
    return "\n".join(lines)
