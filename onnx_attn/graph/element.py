"""How many bytes numbers take as ONNX stores them."""

from __future__ import annotations

from onnx import TensorProto, helper

BITS: dict[int, int] = {TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4}
"""Types of less than a byte."""


def bytes_of(elem_type: int, elements: int) -> int:
    """Those of a packed tensor."""
    if elem_type in BITS:
        return (elements * BITS[elem_type] + 7) // 8
    return elements * int(helper.tensor_dtype_to_np_dtype(elem_type).itemsize)
