"""How a world comes to know a graph: node by node forward, by onnx's shape inference and reference operators."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, cast

import onnx
from onnx import defs, helper, shape_inference

from onnx_attn.graph.common_shapes import constant_said, shape_said
from onnx_attn.graph.contradictions import check
from onnx_attn.graph.inline import bind
from onnx_attn.graph.place import Place, place_of, standard
from onnx_attn.graph.slim import SMALL
from onnx_attn.graph.small_values import at_most, made_of_values, small_values
from onnx_attn.graph.world import Known, Shape, World, common, decided, input_shape, known_of, overridable, stored_value

INVALID = (
    shape_inference.InferenceError,
    onnx.checker.ValidationError,
    defs.SchemaError,
    RuntimeError,
    TypeError,
    ValueError,
    KeyError,
)
"""What onnx raises about a node that cannot run, and what a node that nobody knows comes to."""

Body = tuple[Sequence[onnx.NodeProto], Sequence[onnx.TensorProto]]
"""Plain nodes that make what a node makes, under the same names, and the constants that they read."""

BODIES: dict[tuple[str, str], Callable[[onnx.NodeProto, Sequence[Known | None], int], Body | None]] = {}
"""Operators that onnx has no schema of, by (domain, name), and who says them in plain nodes (operators/microsoft/table.py)."""


Memo = dict[Any, tuple[Known | None, ...]]
"""What a node of one operator and one set of attributes makes of inputs that are known to be so and so."""


class Inference:
    """Runs a model forward on types, shapes and small values. Equal nodes on equal inputs are inferred once."""

    def __init__(self, proto: onnx.ModelProto, most: int = SMALL, memo: Memo | None = None):
        """most: how many whole numbers a result may have of which each is known; of other values there are SMALL. memo: what is
        known already of such nodes, as from another version of the model; it grows."""
        self.proto = proto
        self.most = most
        self.functions = {(f.domain, f.name): f for f in proto.functions}
        self.memo: Memo = {} if memo is None else memo
        self.types: dict[tuple[int, Shape | None], onnx.TypeProto] = {}
        self.schemas: dict[tuple[str, str, int], defs.OpSchema] = {}
        self.texts: dict[tuple[str, str], bytes] = {}
        self.imports: dict[tuple[tuple[str, int], ...], list[onnx.OperatorSetIdProto]] = {}
        self.opsets = {standard(entry.domain): entry.version for entry in proto.opset_import}

    def outputs(
        self, node: onnx.NodeProto, inputs: list[Known | None], world: World, opsets: dict[str, int] | None = None
    ) -> Sequence[Known | None]:
        """What one node of the main graph (or, with `opsets`, of a function) makes of `inputs`, known or not; what cannot run is
        added to the world's failures."""
        opsets = self.opsets if opsets is None else opsets
        return self._node(self._place(node, opsets), inputs, world, opsets)

    def run(self, sizes: dict[str, int]) -> World:
        world = World(sizes)
        graph = self.proto.graph
        for value in graph.input:
            world.known[value.name] = Known(value.type.tensor_type.elem_type, input_shape(value, sizes))
        world.known |= self._stored
        annotated = {value.name: value for value in (*graph.value_info, *graph.output)}
        self._run(self._main, world, self.opsets, annotated)
        return world

    @cached_property
    def _stored(self) -> dict[str, Known]:
        defaults = overridable(self.proto)
        return {t.name: stored_value(t, fixed=t.name not in defaults) for t in self.proto.graph.initializer}

    @cached_property
    def _main(self) -> list[Place]:
        return [self._place(node, self.opsets) for node in self.proto.graph.node]

    def _nodes(
        self,
        nodes: Iterable[onnx.NodeProto],
        world: World,
        opsets: dict[str, int],
        annotated: dict[str, onnx.ValueInfoProto],
    ) -> None:
        self._run([self._place(node, opsets) for node in nodes], world, opsets, annotated)

    def _run(
        self,
        places: Iterable[Place],
        world: World,
        opsets: dict[str, int],
        annotated: dict[str, onnx.ValueInfoProto],
    ) -> None:
        known = world.known
        for place in places:
            outputs = self._node(place, [known.get(name) if name else None for name in place.inputs], world, opsets)
            for position, name in enumerate(place.outputs):
                if not name:  # An output that is left out: not the value of an input that is.
                    continue
                entry = outputs[position] if position < len(outputs) else None
                if (entry is None or entry.shape is None) and name in annotated:
                    value = annotated[name]
                    entry = Known(value.type.tensor_type.elem_type, input_shape(value, world.sizes))
                if entry is not None:
                    known[name] = entry
                else:  # A value of that name in a body is another one.
                    known.pop(name, None)

    def _place(self, node: onnx.NodeProto, opsets: dict[str, int]) -> Place:
        return place_of(node, self.functions, self.texts, opsets)

    def _node(
        self, place: Place, inputs: list[Known | None], world: World, opsets: dict[str, int]
    ) -> Sequence[Known | None]:
        node = place.node
        if place.key is None:
            if place.like_the_first:
                return [inputs[0] and Known(inputs[0].elem_type, inputs[0].shape)]
            results = self._subgraphs(node, world, opsets)
            return decided(inputs[0], results) if node.op_type == "If" and place.domain == "" else ()
        key = (self.most, place.key, tuple([None if entry is None else entry.key for entry in inputs]))
        result = self.memo.get(key)
        if result is None:
            result = self.memo[key] = self._made(place, inputs, opsets)
        if place.function is not None:
            return result
        if not result:
            if place.domain == "" or (place.domain, node.op_type) in BODIES:
                world.failures.append(node.name or node.output[0])
        elif place.checked:
            check(node, inputs, result, world, opsets.get("", 0))
        return result

    def _made(self, place: Place, inputs: list[Known | None], opsets: dict[str, int]) -> tuple[Known | None, ...]:
        """Nothing, of what cannot run."""
        try:
            if place.function is None:
                return self._infer(place, inputs, opsets)
            return self._function(place.node, place.function, inputs)
        except INVALID:
            return ()

    def _infer(self, place: Place, inputs: list[Known | None], opsets: dict[str, int]) -> tuple[Known | None, ...]:
        node, domain = place.node, place.domain
        if (domain, node.op_type) in BODIES and not defs.has(node.op_type, opsets.get(domain, 0), domain):
            return self._plain(node, inputs, opsets)
        if (held := constant_said(place)) is not None:
            return (held,)
        if (made := made_of_values(place, inputs, opsets)) is not None:
            return (
                made
                if made.value is None or made.value.size <= at_most(made.elem_type, self.most)
                else Known(made.elem_type, made.shape),
            )
        said = shape_said(place, inputs, opsets.get("", 0))
        known = [said] if said is not None else self._asked(place, inputs, opsets)
        if not known:
            return ()
        values = small_values(place, inputs, known, opsets, self.most)
        return tuple(
            [
                entry if value is None or entry is None else Known(entry.elem_type, tuple(value.shape), value)
                for entry, value in zip(known, values, strict=True)
            ]
        )

    def _asked(self, place: Place, inputs: list[Known | None], opsets: dict[str, int]) -> Sequence[Known | None]:
        """What onnx's inference says; nothing where an input is not known."""
        node, schema = place.node, self._schema(place.node.op_type, place.domain, opsets[place.domain])
        types, data = {}, {}
        for name, entry in zip(place.inputs, inputs, strict=True):
            if not name:
                continue
            if entry is None:
                return ()
            types[name] = self._type(entry)
            if (tensor := entry.tensor) is not None:
                data[name] = tensor
        outputs = shape_inference.infer_node_outputs(
            schema,
            node,
            types,
            input_data=data,
            opset_imports=self._imports(opsets),
            ir_version=self.proto.ir_version,
        )
        known = [known_of(outputs.get(name)) for name in place.outputs]
        if any(entry is None or entry.shape is None for entry in known) and schema.function_body.node:
            # Below opset 16 GreaterOrEqual and its like have a body and no inference of their own.
            return self._function(node, schema.function_body, inputs)
        return known

    def _plain(
        self, node: onnx.NodeProto, inputs: list[Known | None], opsets: dict[str, int]
    ) -> tuple[Known | None, ...]:
        """Through plain nodes that do the same; a node that cannot be said so gives nothing that is known."""
        body = BODIES[standard(node.domain), node.op_type](node, inputs, opsets.get("", 0))
        if body is None:
            return (None,) * len(node.output)
        nodes, stored = body
        scope = World({})
        scope.known = {
            name: entry for name, entry in zip(node.input, inputs, strict=True) if name and entry is not None
        }
        scope.known |= {tensor.name: stored_value(tensor) for tensor in stored}
        self._nodes(nodes, scope, opsets, {})
        failed = {*scope.failures}
        contradicts = any(
            inner.name in failed and all(scope.shape(name) is not None for name in inner.input if name)
            for inner in nodes
        )
        return () if contradicts else tuple(scope.known.get(name) for name in node.output)

    def _type(self, entry: Known) -> onnx.TypeProto:
        key = (entry.elem_type, entry.shape)
        if key not in self.types:
            self.types[key] = helper.make_tensor_type_proto(*key)
        return self.types[key]

    def _schema(self, *operator: Any) -> defs.OpSchema:
        """Of an operator, its domain, and the domain's version."""
        if operator not in self.schemas:
            name, domain, version = operator
            self.schemas[operator] = defs.get_schema(name, version, domain)
        return self.schemas[operator]

    def _imports(self, opsets: dict[str, int]) -> list[onnx.OperatorSetIdProto]:
        key = tuple(opsets.items())
        if key not in self.imports:
            self.imports[key] = [helper.make_opsetid(domain, version) for domain, version in key]
        return self.imports[key]

    def _function(
        self, node: onnx.NodeProto, function: onnx.FunctionProto, inputs: list[Known | None]
    ) -> tuple[Known | None, ...]:
        scope = World({})
        for name, entry in zip(function.input, inputs, strict=False):
            if entry is not None:
                scope.known[name] = entry
        given = {a.name: a for a in (*function.attribute_proto, *node.attribute)}
        body = [bind(inner, given) for inner in function.node]
        self._nodes(body, scope, {standard(o.domain): o.version for o in function.opset_import}, {})
        return tuple([scope.known.get(name) for name in function.output])

    def _subgraphs(self, node: onnx.NodeProto, world: World, opsets: dict[str, int]) -> dict[str, list[Known | None]]:
        """What the bodies of a node give, by attribute. Those of If are inferred in the enclosing scope, of Loop and Scan as
        far as their inputs are annotated; each by itself, since two bodies may use one name."""
        results: dict[str, list[Known | None]] = {}
        inner: list[dict[str, Known]] = []
        for attribute in node.attribute:
            for graph in [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else attribute.graphs:
                own: dict[str, Known] = {}
                scope = World(world.sizes, cast("dict[str, Known]", ChainMap(own, world.known)), world.failures)
                for value in graph.input:
                    scope.known[value.name] = Known(value.type.tensor_type.elem_type, input_shape(value, world.sizes))
                for tensor in graph.initializer:
                    scope.known[tensor.name] = stored_value(tensor)
                self._nodes(graph.node, scope, opsets, {v.name: v for v in (*graph.value_info, *graph.output)})
                results[attribute.name] = [scope.known.get(output.name) for output in graph.output]
                world.kept_axes += scope.kept_axes
                inner.append(own)
        for name in {name for own in inner for name in own}:
            agreed = common([own[name] for own in inner if name in own])
            if agreed is not None:
                world.known[name] = agreed
        return results
