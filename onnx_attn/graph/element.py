"""How many bytes numbers take as ONNX stores them."""

from __future__ import annotations

from functools import cache

import ml_dtypes
import numpy as np
from onnx import helper


@cache
def bits_of(elem_type: int) -> int | None:
    """Of one element as a file has it: numpy gives four and two bits a byte each. None for a type of no fixed size."""
    try:
        dtype = np.dtype(helper.tensor_dtype_to_np_dtype(elem_type))
    except (KeyError, TypeError, ValueError):
        return None
    if dtype.kind == "O":
        return None
    if dtype.kind == "c":  # Two numbers each, of which finfo tells one.
        return dtype.itemsize * 8
    for info in (ml_dtypes.iinfo, ml_dtypes.finfo):
        try:
            return int(info(dtype).bits)
        except ValueError:
            continue
    return dtype.itemsize * 8


def bytes_of(elem_type: int, elements: int) -> int:
    """Those of a packed tensor, of a type that has a size."""
    bits = bits_of(elem_type)
    if bits is None:
        raise ValueError(f"elements of type {elem_type} have no fixed size")
    return -(-elements * bits // 8)
