"""The pass: a model whose batch is baked in becomes one whose batch is a dimension with a name.

1. Which inputs have the batch as their first axis: those with one static size there. Where sizes differ, each size is tried, and
   the batch is the one size for which all entries can be kept apart; two such sizes are ambiguous.
2. `batch.walk` follows it and notes what has to be written anew.
3. That is composed into the model; inputs, outputs and annotations say the dimension's name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx

from onnx_attn.batch.place import Batch, Blocked
from onnx_attn.batch.reading import Reading
from onnx_attn.batch.walk import Walk
from onnx_attn.domain import DOMAIN
from onnx_attn.errors import InputError
from onnx_attn.graph.compose import compose
from onnx_attn.graph.edit import Names, SiteEdit, Splice
from onnx_attn.graph.inline import inline_functions
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.opset import LEAST_OPSET, raise_opset
from onnx_attn.graph.view import GraphView

WAY_OUT = "export the model with a dynamic batch"


@dataclass(frozen=True)
class Varied:
    """What was done: the new dimension's name, the batch that was baked in, the inputs that have it and the axis of each output
    that does."""

    name: str
    was: int
    inputs: tuple[str, ...]
    outputs: dict[str, int]

    @property
    def document(self) -> dict[str, Any]:
        return {"name": self.name, "was": self.was, "inputs": list(self.inputs)}


def with_dynamic_batch(loaded: Loaded, view: GraphView) -> tuple[GraphView, Varied | None]:
    """Make the batch of `loaded`, whose model is changed, dynamic; None if it is already.

    Raises InputError with the node that does not let it be.
    """
    proto = loaded.proto
    groups = _groups(proto)
    if groups is None:
        return view, None
    if not groups:
        raise InputError(f"{loaded.name}: --dynamic-batch: no input has an axis that could be the batch; {WAY_OUT}")
    view = _prepared(loaded, view)
    walks, blocked = [], []
    for size, inputs in groups.items():
        reading = Reading(view, size, Names(proto))
        walk = None
        try:
            walk = Walk(reading, inputs)
            walk.run()
            walks.append((inputs, walk))
        except Blocked as error:
            blocked.append((size, error))
    if len(walks) > 1:
        told = " or ".join(f"that of '{inputs[0]}'" for inputs, _ in walks)
        raise InputError(f"{loaded.name}: --dynamic-batch: the batch may be the first axis of {told}; {WAY_OUT}")
    if not walks:
        size, first = blocked[0]
        place = f"'{first.node}' ({first.op})" if first.node else "the inputs"
        raise InputError(
            f"{loaded.name}: --dynamic-batch: the batch, which is {size}, cannot vary at {place}: {first.reason}; {WAY_OUT}"
        )
    inputs, walk = walks[0]
    varied = _apply(proto, walk, inputs)
    return GraphView(proto), varied


def _groups(proto: onnx.ModelProto) -> dict[int, list[str]] | None:
    """The inputs by the size of their first axis; None where one is dynamic already."""
    stored = {tensor.name for tensor in proto.graph.initializer}
    groups: dict[int, list[str]] = {}
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if value.name in stored or not dims:
            continue
        if not dims[0].HasField("dim_value"):
            return None
        if dims[0].dim_value > 0:
            groups.setdefault(dims[0].dim_value, []).append(value.name)
    return groups


def _prepared(loaded: Loaded, view: GraphView) -> GraphView:
    """The model at an opset whose operators the rules know, without functions but for those of an earlier fusing."""
    proto = loaded.proto
    functions = [(function.domain, function.name) for function in proto.functions if function.domain != DOMAIN]
    if not functions and view.opset >= LEAST_OPSET:
        return view
    if functions:
        inline_functions(proto, functions)
    if view.opset < LEAST_OPSET:
        stuck = raise_opset(proto, LEAST_OPSET)
        if stuck is not None:
            raise InputError(
                f"{loaded.name}: --dynamic-batch: reads models from opset {LEAST_OPSET} on, and this one cannot be raised "
                f"to it ({stuck}); {WAY_OUT}"
            )
    return GraphView(proto)


def _apply(proto: onnx.ModelProto, walk: Walk, inputs: list[str]) -> Varied:
    reading = walk.reading
    first = reading.first
    splices = [Splice(0, tuple(first.nodes), ())] if first.nodes else []
    stored = dict(first.initializers)
    for position, step in enumerate(walk.steps):
        if step is not None and step.changed:
            nodes = (*step.writer.nodes, step.written())
            splices.append(Splice(position, nodes, tuple(name for name in step.node.output if name)))
            stored |= step.writer.initializers
    name = _free_name(proto)
    outputs = {
        value.name: place.axis for value in proto.graph.output if isinstance(place := reading.place(value.name), Batch)
    }
    edit = SiteEdit("dynamic batch", tuple(splices), tuple(stored.values()), (), (), False)
    compose(proto, [edit] if splices else [])
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        if isinstance(place := reading.place(value.name), Batch):
            _say(value, place, name, reading)
    return Varied(name, reading.batch, tuple(inputs), outputs)


def _free_name(proto: onnx.ModelProto) -> str:
    """A name that no dimension has yet."""
    graph = proto.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    taken = {dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim}
    names = ["batch", *(f"batch_{number}" for number in range(2, len(taken) + 3))]
    return next(name for name in names if name not in taken)


def _say(value: onnx.ValueInfoProto, place: Batch, name: str, reading: Reading) -> None:
    """Put the dimension's name where the batch is, with what it is multiplied by."""
    dims = value.type.tensor_type.shape.dim
    if place.axis >= len(dims):
        return
    dim = dims[place.axis]
    factors = {shape[place.axis] // reading.batch for shape in reading.per_world(reading.shapes(value.name))}
    dim.ClearField("dim_value")
    dim.ClearField("dim_param")
    if len(factors) == 1:
        factor = factors.pop()
        dim.dim_param = name if factor == 1 else f"{factor}*{name}"
