"""A cut whose quantisation steps are taken by a continuous function, for comparing two spellings of one computation.

Two correct computations differ in their last bits, and where a number lies between two steps a quantiser makes a whole step of
that. So what is compared is, in place of `round`, a wave of the same step:

    x ↦ scale · (u + sin(2π·u) / 4π),   u = clamp(x / scale)

(A step whose input was rounded by the same step already, and only moved since, leaves it as it is; so does the wave's stand-in.)
It is continuous, stretches a difference by no more than 1.5, is no step that another scale, zero point, type or place in the
order of arithmetic would make, and runs in float64, in which QuantizeLinear does not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, inliner, numpy_helper

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


def smoothed(model: onnx.ModelProto, wave: bool = True) -> onnx.ModelProto:
    """A copy with a wave in place of every quantisation step; without `wave` with nothing in its place. Stored weights are
    dequantised as they are. The model itself where it has no such step.

    Raises ValueError for a step that is not understood: one with a scale for each slice of an activation.
    """
    if not is_quantised(model):
        return model
    copy = inliner.inline_local_functions(model)
    return _Smoother(copy, wave).model


class _Smoother:
    def __init__(self, model: onnx.ModelProto, wave: bool):
        self.model, self.wave = model, wave
        graph = model.graph
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
        for node in graph.node:
            if node.op_type not in STEPS or node.domain not in ("", "ai.onnx"):
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

    def _scale(self, node: onnx.NodeProto) -> str:
        scale = self.stored.get(node.input[1])
        if scale is not None and int(np.prod(scale.dims)) != 1:
            raise ValueError(f"'{node.output[0]}' has a scale for each slice")
        return self._add("Reshape", self._float(node.input[1]), self._vector())

    def _vector(self) -> str:
        return self._add("Constant", value=numpy_helper.from_array(np.asarray([], np.int64)))

    def _zero(self, node: onnx.NodeProto) -> tuple[str, int]:
        """The zero point as a float, "" if it is 0 by its absence, and the narrow type."""
        if len(node.input) < 3 or not node.input[2]:
            return "", TensorProto.UINT8
        name = node.input[2]
        if name not in self.stored:
            return self._add("Reshape", self._float(name), self._vector()), self.given.get(name, TensorProto.UINT8)
        values = numpy_helper.to_array(self.stored[name])
        if values.size != 1:
            raise ValueError(f"'{node.output[0]}' has a zero point for each slice")
        return self._number(float(values.reshape(-1)[0])), self.stored[name].data_type

    def _quantize(self, node: onnx.NodeProto) -> None:
        if not self.wave or self._is_rounded(node):
            self._add("Div", self._float(node.input[0]), self._scale(node), made=node.output[0])
            return
        zero, elem_type = self._zero(node)
        share = self._add("Div", self._float(node.input[0]), self._scale(node))
        shifted = self._add("Add", share, zero) if zero else share
        bounds = [self._number(bound) for bound in BOUNDS[elem_type]]
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
        scale, zero = (numpy_helper.to_array(self.stored[name]) for name in node.input[1:3])
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
        if node.input[0] in self.given:
            raise ValueError(f"'{node.output[0]}' is dequantised from what is quantised elsewhere")
        scale = self.stored.get(node.input[1])
        if scale is not None:
            self._add("Cast", product, to=scale.data_type, made=node.output[0])
        else:
            self._add("CastLike", product, node.input[1], made=node.output[0])

    def _store(self, node: onnx.NodeProto) -> None:
        """The weights that a DequantizeLinear makes of stored numbers, in the type of their scale."""
        value, scale, *zero = (numpy_helper.to_array(self.stored[name]) for name in node.input if name)
        axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
        if any(attribute.name == "block_size" and attribute.i for attribute in node.attribute):
            raise ValueError(f"'{node.output[0]}' is quantised in blocks")
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
