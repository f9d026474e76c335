"""Two whole models, run on the same inputs and compared output by output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import onnx

from onnx_attn.progress import step
from onnx_attn.prove.compare import RTOL, Difference, difference, worst
from onnx_attn.prove.slices import WHOLE, Slices
from onnx_attn.runtime import CannotRun, Session

Model = onnx.ModelProto | str | Path


@dataclass(frozen=True)
class WholeProof:
    """The comparison of two models: per output the worst difference over all cases."""

    outputs: dict[str, Difference]
    cases: int
    rtol: float
    atol: float

    @property
    def worst(self) -> Difference:
        return worst(list(self.outputs.values()))

    @property
    def ok(self) -> bool:
        return all(found.within(self.rtol, self.atol) for found in self.outputs.values())

    @property
    def failing(self) -> list[str]:
        return [name for name, found in self.outputs.items() if not found.within(self.rtol, self.atol)]


def compare_models(
    before: tuple[Model, str],
    after: tuple[Model, str],
    inputs: Sequence[Mapping[str, np.ndarray]],
    rtol: float,
    atol: float = 0.0,
    slices: tuple[Slices, Slices] = (WHOLE, WHOLE),
    also: Sequence[Mapping[str, np.ndarray]] = (),
) -> WholeProof:
    """Run both (each with a name for messages) on every set of inputs, one after the other, never both in memory.

    slices: how many entries of a batch each takes at a time, where that is fixed. also: more inputs, as far as the first model
    runs on them.
    """
    total = 2 * (len(inputs) + len(also))
    step(1, total, before[1])
    session = Session(*before)
    outputs, runs = session.outputs, list[tuple[Mapping[str, np.ndarray], list[np.ndarray]]]()
    for number, values in enumerate([*inputs, *also]):
        step(number + 1, total, before[1])
        try:
            runs.append((values, slices[0].run(session, values, outputs)))
        except CannotRun:
            if number < len(inputs):
                raise
    del session
    step(total // 2 + 1, total, after[1])
    session = Session(*after)
    found: dict[str, list[Difference]] = {name: [] for name in outputs}
    for number, (values, wanted) in enumerate(runs, total // 2 + 1):
        step(number, total, after[1])
        for name, a, b in zip(outputs, wanted, slices[1].run(session, values, outputs), strict=True):
            found[name].append(difference(a, b))
    return WholeProof({name: worst(differences) for name, differences in found.items()}, len(runs), rtol, atol)


def rtol_between(before: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """The bound for two models; where the second computes parts in half precision that the first does not, that of these."""
    casts = [_half_casts(proto) for proto in (before, after)]
    types = {elem_type for elem_type in _HALF if casts[1][elem_type] > casts[0][elem_type]}
    return max(default_rtol([before, after]), *(RTOL[_HALF[elem_type]] for elem_type in types), 0.0)


def _half_casts(proto: onnx.ModelProto) -> Counter[int]:
    nodes = chain(proto.graph.node, *(function.node for function in proto.functions))
    return Counter(each.i for node in nodes if node.op_type == "Cast" for each in node.attribute if each.name == "to")


_HALF = {onnx.TensorProto.FLOAT16: "float16", onnx.TensorProto.BFLOAT16: "bfloat16"}


def default_rtol(protos: Iterable[onnx.ModelProto]) -> float:
    """The bound for the narrowest floating-point type that the models' inputs or weights have."""
    found = [RTOL["float32"]]
    for proto in protos:
        types = {tensor.data_type for tensor in proto.graph.initializer}
        types |= {value.type.tensor_type.elem_type for value in proto.graph.input}
        found.extend(RTOL[_HALF[elem_type]] for elem_type in types if elem_type in _HALF)
    return max(found)
