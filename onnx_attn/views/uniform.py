"""One number everywhere: what Expand, ConstantOfShape and the like spread, at any size."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView

MOST_NODES = 16
_SPREADS = frozenset({"Expand", "Tile", "Reshape", "Unsqueeze", "Squeeze", "Identity", "Transpose"})
"""What repeats or moves its first input, and so leaves one number everywhere one number everywhere."""


def uniform(view: GraphView, tensor: gs.Tensor) -> float | None:
    """The number that every element of a tensor is, whatever the inputs are; None where this cannot be told."""
    factor = 1.0
    for _ in range(MOST_NODES):
        value = view.constant(tensor)
        if value is not None and value.size:
            return _same(value, factor)
        node = view.producer(tensor)
        if node is None or node.domain not in STANDARD:
            return _same(view.numbers(tensor.name), factor) if view.is_weight(tensor) else None
        if node.op == "ConstantOfShape":
            filled = node.attrs.get("value")
            return 0.0 if filled is None else _same(np.asarray(filled.values), factor)
        if node.op == "Mul":
            numbers = [view.scalar(each) for each in node.inputs]
            if numbers.count(None) != 1:
                return None
            factor *= next(number for number in numbers if number is not None)
            tensor = node.inputs[numbers.index(None)]
            if factor == 0.0 and view.is_weight(tensor) and view.producer(tensor) is None:
                # What was never filled in, and is multiplied by zero: baddbmm(empty, …, beta=0).
                stored = view.numbers(tensor.name)
                return 0.0 if np.isfinite(stored.astype(np.float64)).all() else None
        elif node.op in _SPREADS:
            tensor = node.inputs[0]
        else:
            return None
    return None


def _same(value: np.ndarray, factor: float) -> float | None:
    if value.dtype.kind not in "fiub" and value.dtype.kind != "V":
        return None
    first = value.flat[0] if value.size else None
    return float(first) * factor if first is not None and (value == first).all() else None
