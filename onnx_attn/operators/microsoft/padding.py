"""The masks that ONNX Runtime's attention operators take, as numbers to add to the scores `(B, N, S, T)`.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, Attention and MultiHeadAttention: of a mask
`(B, T)` or `(B, S, T)` 0 blocks; `(B)` are ends of what is no padding, `(2·B)` ends and starts. What is blocked gets
mask_filter_value; keys behind a query under `unidirectional` get the lowest number instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from onnx_attn.operators.microsoft.call import Call, NotSpelled

FILTER = -10000.0


def padding_mask(call: Call, place: int, total: str, batch: int | None) -> str:
    """What the mask at an input says, `(B, 1, 1 or S, T)`; "" where there is none. total: T as a vector of one element."""
    name = call.input(place)
    if not name:
        return ""
    rank = call.rank(place)
    if rank in (2, 3):
        attended = call.op("Greater", name, call.number(0, call.elem_type(place)), hint="attended")
        attended = call.unsqueeze(attended, *((1, 2) if rank == 2 else (1,)))
    elif rank == 1:
        attended = _from_ends(call, name, total, call.size(place, 0), batch)
    else:
        raise NotSpelled("a mask of four axes")
    elem_type = call.float_type
    numbers = (0.0, float(call.attribute("mask_filter_value", FILTER)))
    return call.op("Where", attended, *(call.number(number, elem_type) for number in numbers), hint="padding_mask")


def _from_ends(call: Call, name: str, total: str, size: int | None, batch: int | None) -> str:
    """Ends of all sequences, then perhaps their starts: `(B, 1, 1, T)`, True between them."""
    wide = call.op("Cast", name, hint="ends", to=TensorProto.INT64)
    columns = call.arange(total)
    if size is not None and size == batch:
        return call.op("Less", columns, call.reshape(wide, -1, 1, 1, 1), hint="attended")
    if size is None or batch is None or size != 2 * batch:
        raise NotSpelled("a mask of one axis that is neither ends, nor ends and starts")
    ends, starts = (
        call.reshape(part, -1, 1, 1, 1) for part in call.split(wide, [batch, batch], axis=0, hint="ends_starts")
    )
    inside = call.op("Not", call.op("Less", columns, starts))
    return call.op("And", call.op("Less", columns, ends), inside, hint="attended")


@dataclass(frozen=True)
class Lengths:
    """Of queries, of all keys, and of the past: as numbers where they do not vary, and as vectors of one element."""

    numbers: tuple[int | None, int | None, int | None]
    vectors: tuple[str, str, str]


def causal_mask(call: Call, padding: str, lengths: Lengths) -> str:
    """The same, where a query sees the past and no key behind its own place."""
    elem_type = call.float_type
    queries, total, past = lengths.numbers
    if queries is not None and total is not None and past is not None:
        allowed = np.tri(queries, total, past, dtype=bool)
        if not padding:
            dtype = helper.tensor_dtype_to_np_dtype(elem_type)
            blocked = np.where(allowed, 0.0, float(ml_dtypes.finfo(dtype).min)).astype(dtype)
            return call.writer.constant(blocked, "causal_mask")
        said = call.writer.constant(allowed, "causal")
    else:
        rows = call.op("Add", call.arange(lengths.vectors[0]), lengths.vectors[2], hint="last_key")
        said = call.op("LessOrEqual", call.arange(lengths.vectors[1]), call.unsqueeze(rows, 1), hint="causal")
    kept = padding or call.number(0.0, elem_type)
    return call.op("Where", said, kept, call.number(-np.inf, elem_type), hint="causal_mask")
