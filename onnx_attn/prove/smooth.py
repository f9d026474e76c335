"""A cut whose quantisation steps are taken by a continuous function, for comparing two spellings of one computation.

Two correct computations differ in their last bits, and where a number lies between two steps a quantiser makes a whole step of
that. So what is compared is, in place of `round`, a wave of the same step:

    x ↦ scale · (u + sin(2π·u) / 4π),   u = clamp(x / scale)

(A step whose input was rounded by the same step already, and only moved since, leaves it as it is; so does the wave's stand-in.)
It is continuous, stretches a difference by no more than 1.5, is no step that another scale, range or place in the
order of arithmetic would make, and runs in float64, in which QuantizeLinear does not.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

from onnx_attn.graph.weights import to_array

STEPS = ("QuantizeLinear", "DequantizeLinear")
BOUNDS: Mapping[int, tuple[float, float]] = {
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.UINT16: (0, 65535),
    TensorProto.FLOAT8E4M3FN: (-448, 448),
    TensorProto.FLOAT8E5M2: (-57344, 57344),
}


EIGHT_BITS = (TensorProto.INT8, TensorProto.UINT8, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2)
MOVEMENT = frozenset("Reshape Transpose Squeeze Unsqueeze Flatten Identity Split Slice Gather Expand Tile".split())


def is_quantised(model: onnx.ModelProto) -> bool:
    bodies = (model.graph.node, *(function.node for function in model.functions))
    return any(node.op_type in STEPS for nodes in bodies for node in nodes)


def smoothed(model: onnx.ModelProto, without: Collection[str] = ()) -> onnx.ModelProto:
    """A copy with a wave in place of every quantisation step, and nothing in place of those whose scale has a name of `without`.
    Stored weights are dequantised as they are. The model itself where it has no such step."""
    return _Smoother(model, without).model if is_quantised(model) else model


def unrounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with nothing in place of every quantisation step."""
    return _Smoother(model, None).model if is_quantised(model) else model


class _Smoother:
    """Steps whose narrow numbers are computed with, as by MatMulInteger, and those with a scale for each slice, stay."""

    def __init__(self, model: onnx.ModelProto, without: Collection[str] | None):
        self.model, self.without = inliner.inline_local_functions(model), without
        graph = self.model.graph
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.stored |= {
            node.output[0]: attribute.t
            for node in graph.node
            if node.op_type == "Constant"
            for attribute in node.attribute
            if attribute.name == "value"
        }
        self.given = {value.name: value.type.tensor_type.elem_type for value in graph.input}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.nodes: list[onnx.NodeProto] = []
        taken = self._taken()
        for node in graph.node:
            if id(node) not in taken:
                self.nodes.append(node)
            elif node.op_type == "QuantizeLinear":
                self._quantize(node)
            else:
                self._dequantize(node)
        del graph.node[:]
        graph.node.extend(self.nodes)
        self._drop_unread()

    def _add(self, op: str, *inputs: str, made: str = "", **attributes: Any) -> str:
        made = made or f"onnx_attn/smooth_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [made], **attributes))
        return made

    def _number(self, value: float) -> str:
        return self._add("Constant", value=numpy_helper.from_array(np.asarray(value, np.float32)))

    def _float(self, name: str) -> str:
        return self._add("Cast", name, to=TensorProto.FLOAT)

    def _taken(self) -> set[int]:
        """The steps to be replaced: each QuantizeLinear with all DequantizeLinear that its numbers are moved to, and those of
        stored weights."""
        nodes = list(self.model.graph.node)
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        outputs = {value.name for value in self.model.graph.output}
        taken: set[int] = set()
        for node in nodes:
            if node.domain not in ("", "ai.onnx"):
                continue
            if node.op_type == "DequantizeLinear" and node.input[0] in self.stored and self._is_whole(node):
                taken.add(id(node))
            elif node.op_type == "QuantizeLinear":
                ends = _ends(node, readers, outputs)
                if ends is not None and all(self._has_one_scale(each) for each in (node, *ends)):
                    taken |= {id(each) for each in (node, *ends)}
        return taken

    def _is_whole(self, node: onnx.NodeProto) -> bool:
        blocks = any(attribute.name == "block_size" and attribute.i for attribute in node.attribute)
        return not blocks and all(name in self.stored for name in node.input if name)

    def _has_one_scale(self, node: onnx.NodeProto) -> bool:
        known = [self.stored[name] for name in node.input[1:3] if name in self.stored]
        return self._elem_type(node) in BOUNDS and all(int(np.prod(tensor.dims)) == 1 for tensor in known)

    def _elem_type(self, node: onnx.NodeProto) -> int:
        """The narrow type of a step, by its zero point."""
        if len(node.input) < 3 or not node.input[2]:
            return TensorProto.UINT8
        zero = node.input[2]
        return self.stored[zero].data_type if zero in self.stored else self.given.get(zero, TensorProto.UINT8)

    def _scale(self, node: onnx.NodeProto) -> str:
        return self._add("Reshape", self._float(node.input[1]), self._vector())

    def _vector(self) -> str:
        return self._add("Constant", value=numpy_helper.from_array(np.asarray([], np.int64)))

    def _zero(self, node: onnx.NodeProto) -> str:
        """The zero point as a float; "" if it is 0 by its absence."""
        if len(node.input) < 3 or not node.input[2]:
            return ""
        name = node.input[2]
        if name not in self.stored:
            return self._add("Reshape", self._float(name), self._vector())
        return self._number(float(to_array(self.stored[name]).reshape(-1)[0]))

    def _leaves(self, node: onnx.NodeProto) -> bool:
        """Whether a step leaves its input as it is."""
        return self.without is None or node.input[1] in self.without or self._is_rounded(node)

    def _quantize(self, node: onnx.NodeProto) -> None:
        if self._leaves(node):
            self._add("Div", self._float(node.input[0]), self._scale(node), made=node.output[0])
            return
        zero = self._zero(node)
        share = self._add("Div", self._float(node.input[0]), self._scale(node))
        shifted = self._add("Add", share, zero) if zero else share
        bounds = [self._number(bound) for bound in BOUNDS[self._elem_type(node)]]
        clamped = self._add("Clip", shifted, *bounds)
        turned = self._add("Sin", self._add("Mul", clamped, self._number(2 * np.pi)))
        wave = self._add("Div", turned, self._number(4 * np.pi))
        clamped = self._add("Add", clamped, wave)
        self._add("Sub", clamped, zero, made=node.output[0]) if zero else self._add(
            "Identity", clamped, made=node.output[0]
        )

    def _is_rounded(self, node: onnx.NodeProto) -> bool:
        """Whether what a QuantizeLinear reads is moved from what the same step has made."""
        above = self.producers.get(node.input[0])
        while above is not None and above.op_type in MOVEMENT:
            above = self.producers.get(above.input[0])
        if above is None or above.op_type != "DequantizeLinear":
            return False
        first, second = (self._step_of(each) for each in (above, node))
        return first is not None and first == second and first[0] in EIGHT_BITS

    def _step_of(self, node: onnx.NodeProto) -> tuple[int, float, float] | None:
        if len(node.input) < 3 or not {*node.input[1:3]} <= self.stored.keys():
            return None
        scale, zero = (to_array(self.stored[name]) for name in node.input[1:3])
        if scale.size != 1 or zero.size != 1:
            return None
        elem_type = self.stored[node.input[2]].data_type
        return elem_type, float(scale.reshape(-1)[0]), float(zero.reshape(-1)[0])

    def _dequantize(self, node: onnx.NodeProto) -> None:
        if node.input[0] in self.stored:
            self._store(node)
            return
        narrow = self._float(node.input[0])
        product = self._add("Mul", narrow, self._scale(node))
        scale = self.stored.get(node.input[1])
        if scale is not None:
            self._add("Cast", product, to=scale.data_type, made=node.output[0])
        else:
            self._add("CastLike", product, node.input[1], made=node.output[0])

    def _store(self, node: onnx.NodeProto) -> None:
        """The weights that a DequantizeLinear makes of stored numbers, in the type of their scale."""
        value, scale, *zero = (to_array(self.stored[name]) for name in node.input if name)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        sizes = [-1 if place == axis % max(value.ndim, 1) else 1 for place in range(value.ndim)]
        parts = [part.reshape(sizes) if part.size != 1 else part.reshape(()) for part in (scale, *zero)]
        whole = value.astype(scale.dtype) - (parts[1].astype(scale.dtype) if zero else 0)
        made = (whole * parts[0]).astype(scale.dtype)
        self._add("Constant", value=numpy_helper.from_array(made), made=node.output[0])

    def _drop_unread(self) -> None:
        """Narrow weights and zero points, which nothing reads any more."""
        graph = self.model.graph
        read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        del graph.initializer[:]
        graph.initializer.extend(kept)


def _ends(
    node: onnx.NodeProto, readers: Mapping[str, Sequence[onnx.NodeProto]], outputs: Collection[str]
) -> list[onnx.NodeProto] | None:
    """Every DequantizeLinear that narrow numbers are moved to; None where something else is done with them."""
    ends, queue = [], list(node.output)
    while queue:
        name = queue.pop()
        if name in outputs:
            return None
        for reader in readers.get(name, ()):
            if reader.input[0] == name and reader.op_type == "DequantizeLinear":
                ends.append(reader)
            elif reader.input[0] == name and reader.op_type in MOVEMENT:
                queue.extend(reader.output)
            else:
                return None
    return ends
