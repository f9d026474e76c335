"""Small results of small values, by onnx's reference operators: shapes, axes, positions and what is computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnx_attn.graph.slim import SMALL
from onnx_attn.graph.world import Known

CONSTANT_TYPES = {
    "value": None,
    "value_float": np.float32,
    "value_floats": np.float32,
    "value_int": np.int64,
    "value_ints": np.int64,
}
"""Constant's attributes and the types that they stand for."""

_WHOLE = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL})
INDICES = 1024
"""Whole numbers that are worth knowing where sizes are chosen: an index for each query and key tells how long a mask is."""

NOT_A_FUNCTION = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)
"""Operators whose result does not follow from their inputs."""


def small_values(
    node: onnx.NodeProto, inputs: list[Known | None], known: Sequence[Known | None], opsets: dict[str, int], most: int
) -> Sequence[np.ndarray | None]:
    """Results by the reference operators; Shape and Size from the shape alone. most: how many whole numbers a result may have;
    of other values there are SMALL."""
    nothing = [None] * len(node.output)
    feed = {n: e.value for n, e in zip(node.input, inputs, strict=True) if e is not None and e.value is not None}
    if node.op_type == "Constant" and node.attribute and node.attribute[0].name in CONSTANT_TYPES:
        # Most graphs' only constants: reading them here spares loading the reference operators.
        value = helper.get_attribute_value(node.attribute[0])
        is_tensor = isinstance(value, onnx.TensorProto)
        array = numpy_helper.to_array(value) if is_tensor else np.asarray(value, CONSTANT_TYPES[node.attribute[0].name])
        return [array] if array.size <= SMALL else nothing
    if node.op_type in ("Shape", "Size") and inputs[0] is not None and inputs[0].shape is not None:
        feed = {node.input[0]: np.broadcast_to(np.zeros((), np.float32), inputs[0].shape)}
    elif node.op_type == "CastLike" and inputs[0] is not None and inputs[0].value is not None:
        # Of the other input the type alone matters.
        kind = known[0].elem_type if known[0] is not None else 0
        return [inputs[0].value.astype(helper.tensor_dtype_to_np_dtype(kind))] if kind else nothing
    elif node.op_type in NOT_A_FUNCTION or any(name not in feed for name in node.input if name):
        return nothing
    if any(entry is None or entry.shape is None or math.prod(entry.shape) > _most(entry, most) for entry in known):
        return nothing
    try:
        with np.errstate(all="ignore"):  # Both sides of a Where are computed, T5's logarithm of distance 0 too.
            return [np.asarray(result) for result in ReferenceEvaluator(node, opsets=opsets).run(None, feed)]
    except Exception:  # The reference operators raise what they like; the shape is known all the same.
        return nothing


def _most(entry: Known, most: int) -> int:
    return most if entry.elem_type in _WHOLE else SMALL
