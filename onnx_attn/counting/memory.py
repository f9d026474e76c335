"""Which bytes live at a time: a scan over the operations in their own order.

A tensor lives from the operation that makes it to the last that reads it, outputs of the model to the end; while an operation
runs, what it reads and what it makes are both there. Reshape, Squeeze, Unsqueeze, Flatten, Identity and Dropout at inference
take no bytes of their own: their result is what they read, which lives on. Inputs and weights are counted by themselves; what
is computed from weights alone, and whole numbers that follow from sizes, are there before the model runs and count nothing.

Fused, nothing that is read inside a site alone takes any bytes, and what a site reads lives until its result is there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onnx import TensorProto

from onnx_attn.counting.flow import Flow
from onnx_attn.counting.operator import REPEAT
from onnx_attn.counting.regions import Region
from onnx_attn.graph.element import bytes_of
from onnx_attn.graph.world import Known

VIEWS = frozenset({"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Identity", "Dropout", REPEAT})


@dataclass(frozen=True)
class Peak:
    """The most bytes that live at a time, and the operation at which they do."""

    bytes: int = 0
    node: str | None = None


@dataclass(frozen=True)
class Life:
    """The bytes of one tensor and the operations from which and to which it lives."""

    size: int
    first: int
    last: int


def tensor_bytes(entry: Known | None) -> int:
    """0 where the size is not known; `Flow.unknown` says of what."""
    if entry is None or entry.shape is None or not entry.elem_type or entry.elem_type == TensorProto.STRING:
        return 0
    return bytes_of(entry.elem_type, math.prod(entry.shape))


def interior(flow: Flow, region: Region) -> set[str]:
    """What is made and read in a site and nowhere else."""
    made = (name for number in region.ops if number != region.end for name in flow.ops[number].outputs)
    return {
        name
        for name in made
        if name not in flow.outputs and region.ops.issuperset(flow.busy_readers(name)) and name not in flow.free
    }


def lives(flow: Flow, regions: Sequence[Region] = (), without: frozenset[str] = frozenset()) -> dict[str, Life]:
    """Every tensor that takes bytes, by name. without: those that are not allocated; regions: the sites that are fused then."""
    ends = {number: region.end for region in regions for number in region.ops if region.end >= 0}
    root: dict[str, str] = {}
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for number, op in enumerate(flow.ops):
        until = max(number, ends.get(number, 0))
        for name in op.inputs:
            own = root.get(name, name)
            if own in first:
                last[own] = max(last[own], until)
        if op.kind in VIEWS and op.inputs:
            root[op.outputs[0]] = root.get(op.inputs[0], op.inputs[0])
            made: Sequence[str] = ()
        else:
            made = op.outputs
        for name in made:
            if name not in without and name not in flow.free:
                first[name] = last[name] = number
    for name in flow.outputs:
        if (own := root.get(name, name)) in first:
            last[own] = len(flow.ops)
    return {name: Life(tensor_bytes(flow.known.get(name)), number, last[name]) for name, number in first.items()}


def peak(flow: Flow, found: Sequence[Life], extra: Callable[[int], int] = lambda number: 0) -> Peak:
    """extra: bytes that an operation with bodies needs while it runs."""
    if not found:
        return Peak()
    start, end = min(life.first for life in found), max(life.last for life in found)
    change = [0] * (end - start + 2)
    for life in found:
        change[life.first - start] += life.size
        change[life.last - start + 1] -= life.size
    most, living = Peak(), 0
    for number in range(start, min(end + 1, len(flow.ops))):
        op = flow.ops[number]
        living += change[number - start]
        now = living + (extra(number) if op.bodies else 0)
        if now > most.bytes:
            most = Peak(now, op.label)
    return most
