"""Small results of small values, by onnx's reference operators: shapes, axes, positions and what is computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import onnx
from onnx import helper
from onnx.reference import ReferenceEvaluator

from onnx_attn.graph.place import Place
from onnx_attn.graph.slim import SMALL
from onnx_attn.graph.world import Known

_WHOLE = frozenset({onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL})
INDICES = 1024
"""Whole numbers that are worth knowing where sizes are chosen: an index for each query and key tells how long a mask is."""

NOT_A_FUNCTION = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial", "Dropout"}
)
"""Operators whose result does not follow from their inputs."""


def small_values(
    place: Place, inputs: list[Known | None], known: Sequence[Known | None], opsets: dict[str, int], most: int
) -> Sequence[np.ndarray | None]:
    """Results by the reference operators; Shape and Size from the shape alone. most: how many whole numbers a result may have;
    of other values there are SMALL."""
    node, nothing = place.node, [None] * len(place.outputs)
    if any(
        entry is None or entry.shape is None or math.prod(entry.shape) > at_most(entry.elem_type, most)
        for entry in known
    ):
        return nothing
    first = inputs[0].value if inputs and inputs[0] is not None else None
    if node.op_type == "CastLike" and first is not None:
        # Of the other input the type alone matters.
        kind = known[0].elem_type if known[0] is not None else 0
        return [first.astype(helper.tensor_dtype_to_np_dtype(kind))] if kind else nothing
    if node.op_type in NOT_A_FUNCTION:
        return nothing
    return _evaluated(place, inputs, opsets) or nothing


NO_LARGER = frozenset("Shape Concat Gather Slice Squeeze Unsqueeze Reshape Transpose Cast Add Sub Mul Div".split())
"""Operators whose result is about as large as what they read: to compute it takes less time than to infer its shape before."""


def made_of_values(place: Place, inputs: list[Known | None], opsets: dict[str, int]) -> Known | None:
    """What a node of such an operator makes of values that are all known, of whatever size; None of another, and where the
    reference operators cannot say."""
    if place.domain != "" or place.node.op_type not in NO_LARGER or len(place.outputs) != 1:
        return None
    found = _evaluated(place, inputs, opsets)
    if found is None or found[0].dtype.kind not in "biuf":
        return None
    return Known(helper.np_dtype_to_tensor_dtype(found[0].dtype), tuple(found[0].shape), found[0])


def _evaluated(place: Place, inputs: list[Known | None], opsets: dict[str, int]) -> list[np.ndarray] | None:
    """By onnx's reference operators; None where a value is not known, and where they raise, as they do what they like."""
    node, values = place.node, [entry.value if entry is not None else None for entry in inputs]
    if node.op_type in ("Shape", "Size") and inputs[0] is not None and inputs[0].shape is not None:
        values = [np.broadcast_to(np.zeros((), np.float32), inputs[0].shape)]
    if any(value is None and name for name, value in zip(place.inputs, values, strict=True)):
        return None
    feed = {f"x{place}": value for place, value in enumerate(values) if value is not None}
    try:
        with np.errstate(all="ignore"):  # Both sides of a Where are computed, T5's logarithm of distance 0 too.
            return [np.asarray(result) for result in _evaluator(_unnamed(node), tuple(opsets.items())).run(None, feed)]
    except Exception:
        return None


def _unnamed(node: onnx.NodeProto) -> bytes:
    """A node as it is without its names."""
    same = onnx.NodeProto(op_type=node.op_type, domain=node.domain, attribute=node.attribute)
    same.input.extend([f"x{place}" if name else "" for place, name in enumerate(node.input)])
    same.output.extend([f"y{place}" if name else "" for place, name in enumerate(node.output)])
    return same.SerializeToString()


@lru_cache(maxsize=256)
def _evaluator(node: bytes, opsets: tuple[tuple[str, int], ...]) -> ReferenceEvaluator:
    """Of equal nodes one: to make it takes longer than to run it."""
    return ReferenceEvaluator(onnx.NodeProto.FromString(node), opsets=dict(opsets))


def at_most(elem_type: int, most: int) -> int:
    """The elements up to which values are known. most: of whole numbers."""
    return most if elem_type in _WHOLE else SMALL
