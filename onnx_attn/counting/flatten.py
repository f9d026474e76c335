"""The flow of a model at one world's sizes: functions, `Attention` operators and ONNX Runtime's own are said in primitives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnx_attn.counting.flow import Flow, Op, Unit
from onnx_attn.counting.operator import Readings, spelled_attention
from onnx_attn.domain import DOMAIN, MICROSOFT, is_attention_function, is_window_function
from onnx_attn.graph.edit import reads, subgraphs
from onnx_attn.graph.inference import BODIES, Inference
from onnx_attn.graph.inline import bind
from onnx_attn.graph.world import Known, World, overridable, stored_value
from onnx_attn.recognize.runtime_operator import OPERATORS

RANDOM = frozenset("RandomNormal RandomUniform RandomNormalLike RandomUniformLike Bernoulli Multinomial".split())
WITH_BODIES = ("If", "Loop", "Scan", "SequenceMap")
Opsets = dict[str, int]


def flatten(proto: onnx.ModelProto, worlds: Sequence[World], readings: Readings, world: World | None = None) -> Flow:
    """The main graph. worlds: by which it is known what varies; without `world`, the flow is at the sizes of the first.

    What a world does not know yet, as of nodes that were written since, is inferred; the world stays as it is.
    """
    graph = proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    given = {value.name for value in graph.input} - stored
    fixed = stored - overridable(proto)
    flattener = _Flattener(proto, worlds, readings, world or worlds[0])
    flattener.world.known.update(
        (tensor.name, stored_value(tensor, tensor.name in fixed))
        for tensor in graph.initializer
        if tensor.name not in flattener.world.known
    )
    return flattener.flow(graph, given, fixed)


@dataclass(frozen=True)
class _Inside:
    """What a node stands for, in names of its own. stored: constants among them."""

    ops: Sequence[Op]
    known: Mapping[str, Known]
    inputs: Sequence[str]
    outputs: Sequence[str]
    stored: Sequence[str] = ()


class _Flattener:
    def __init__(self, proto: onnx.ModelProto, worlds: Sequence[World], readings: Readings, world: World) -> None:
        self.worlds, self.readings = worlds, readings
        self.world = World(world.sizes, dict(world.known))
        self.inference = Inference(proto)
        self.opset = self.inference.opsets.get("", 0)
        self.stored: set[str] = set()
        self._templates: dict[object, _Inside] = {}

    def flow(self, graph: onnx.GraphProto, given: set[str], constant: set[str]) -> Flow:
        ops: list[Op] = []
        units: list[Unit] = []
        for node in graph.node:
            self._append(node, ops, units)
        constant = constant | self.stored
        for op in ops:
            if self._is_constant(op, constant):
                constant.update(op.outputs)
            if op.bodies:
                op.bodies = [self._body(each, constant) for each in subgraphs(op.node)]
        return Flow(ops, units, self.world.known, given, {value.name for value in graph.output}, constant)

    def _body(self, graph: onnx.GraphProto, constant: set[str]) -> Flow:
        stored = {tensor.name for tensor in graph.initializer}
        return self.flow(graph, {value.name for value in graph.input}, constant | stored)

    def _append(self, node: onnx.NodeProto, ops: list[Op], units: list[Unit]) -> None:
        self._infer(node, self.world, self.inference.opsets)
        inside = self._inside(node, self.world)
        role = fixed_role(node)
        if inside is not None and not role and (node.domain, node.op_type) in self.inference.functions:
            for op in inside:  # A function of the user's counts as what it calls.
                ops.append(op.at(len(units)))
                units.append(Unit(op.kind, op.label))
            return
        ops.extend(op.at(len(units)) for op in inside or [_op(node)])
        units.append(Unit(_kind(node), _label(node), role or ("other" if inside else "")))

    def _infer(self, node: onnx.NodeProto, world: World, opsets: Opsets) -> None:
        known = world.known
        if all(name in known for name in node.output if name):
            return
        found = self.inference.outputs(node, [known.get(name) for name in node.input], world, opsets)
        known.update((name, each) for name, each in zip(node.output, found, strict=False) if name and each is not None)

    def _inside(self, node: onnx.NodeProto, world: World) -> list[Op] | None:
        """The operations that a node stands for, if it is not one itself; what they make is added to what the world knows."""
        inputs = [world.known.get(name) if name else None for name in node.input]
        function = self.inference.functions.get((node.domain, node.op_type))
        domain = "" if node.domain == "ai.onnx" else node.domain
        if function is not None:
            return self._placed(node, self._called(node, function, inputs), world)
        if node.op_type == "Attention" and not domain:
            call = spelled_attention(node, inputs, self.readings(_label(node)), self.opset)
            if call is None:
                return None
            world.known.update(call.known)
            entries = [world.known.get(name) for name in call.node.input]
            inside = self._placed(call.node, self._called(call.node, call.function, entries), world)
            return [*map(_op, call.views), *inside, *map(_op, call.after)]
        if (domain, node.op_type) not in BODIES or (not domain and self.opset >= 17):
            return None
        try:
            body = BODIES[domain, node.op_type](node, inputs, self.opset)
        except ValueError:  # Sizes that contradict each other: the node is counted as it stands.
            body = None
        if body is None:
            return None
        scope = World(
            world.sizes, {name: each for name, each in zip(node.input, inputs, strict=True) if each is not None}
        )
        scope.known |= {tensor.name: stored_value(tensor) for tensor in body[1]}
        stored = [tensor.name for tensor in body[1]]
        ops = self._ops(body[0], scope, self.inference.opsets)
        return self._placed(node, _Inside(ops, scope.known, node.input, node.output, stored), world)

    def _called(self, node: onnx.NodeProto, function: onnx.FunctionProto, inputs: Sequence[Known | None]) -> _Inside:
        """The body of a function. Equal calls are looked into once."""
        attributes = [each.SerializeToString(deterministic=True) for each in node.attribute]
        key = (id(function), *attributes, *map(_signature, inputs))
        if key not in self._templates:
            given = {each.name: each for each in (*function.attribute_proto, *node.attribute)}
            pairs = zip(function.input, inputs, strict=False)
            scope = World(self.world.sizes, {name: entry for name, entry in pairs if entry is not None})
            opsets = {("" if each.domain == "ai.onnx" else each.domain): each.version for each in function.opset_import}
            ops = self._ops([bind(inner, given) for inner in function.node], scope, opsets)
            self._templates[key] = _Inside(ops, scope.known, function.input, function.output)
        return self._templates[key]

    def _ops(self, nodes: Iterable[onnx.NodeProto], scope: World, opsets: Opsets) -> list[Op]:
        ops: list[Op] = []
        for node in nodes:
            self._infer(node, scope, opsets)
            ops.extend(self._inside(node, scope) or [_op(node)])
        return ops

    def _placed(self, node: onnx.NodeProto, inside: _Inside, world: World) -> list[Op]:
        """The operations under names that nothing else has, but for what the node itself reads and makes."""
        prefix, label = f"{next(filter(None, node.output))}/", _label(node)
        names = dict(zip(inside.inputs, node.input, strict=False)) | dict(
            zip(inside.outputs, node.output, strict=False)
        )

        def renamed(name: str) -> str:
            return names[name] if name in names else prefix + name

        world.known.update((renamed(name), entry) for name, entry in inside.known.items() if name not in names)
        self.stored.update(map(renamed, inside.stored))
        return [
            Op(
                op.node,
                op.kind,
                f"{label}/{op.label}",
                [each for each in map(renamed, op.inputs) if each],
                [each for each in map(renamed, op.outputs) if each],
                bodies=op.bodies,
            )
            for op in inside.ops
        ]

    def _is_constant(self, op: Op, constant: set[str]) -> bool:
        """Shape and Size tell what is known before where their input does not vary; CastLike reads a type alone of its second."""
        if op.kind in ("Shape", "Size"):
            return bool(op.inputs) and self._is_static(op.inputs[0])
        if op.kind in RANDOM or op.bodies:
            return False
        data = op.inputs[:1] if op.kind == "CastLike" else op.inputs
        return constant.issuperset(data)

    def _is_static(self, name: str) -> bool:
        if len(self.worlds) == 1:
            return True
        shapes = {world.shape(name) for world in self.worlds}
        return len(shapes) == 1 and None not in shapes


def _op(node: onnx.NodeProto) -> Op:
    names = [name for name in node.input if name]
    bodies: Sequence[Flow] = ()
    if node.op_type in WITH_BODIES:
        names, bodies = [name for name in reads(node) if name], _TO_READ
    return Op(node, _kind(node), _label(node), names, [name for name in node.output if name], bodies=bodies)


_TO_READ = (Flow([], [], {}, set(), set(), set()),)
"""Stands for bodies that are yet to be read."""


def fixed_role(node: onnx.NodeProto) -> str:
    """The role of a node that is attention, or movement, as one node."""
    if node.domain == DOMAIN:
        if is_attention_function(node.op_type):
            return "attention"
        return "movement" if is_window_function(node.op_type) else ""
    own = OPERATORS if node.domain == MICROSOFT else ("Attention",) if node.domain in ("", "ai.onnx") else ()
    return "attention" if node.op_type in own else ""


def _kind(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _label(node: onnx.NodeProto) -> str:
    return node.name or next(filter(None, node.output), node.op_type)


def _signature(entry: Known | None) -> object:
    return entry and (entry.elem_type, entry.shape, entry.value.tobytes() if entry.value is not None else None)
