"""One mask for all that an `Attention` node blocks keys by: its mask, padded; is_causal with an offset; a window; a number of
valid keys.

Source: operator specification, Attention-23 to -25. Under is_causal a query i attends to a key j iff j ≤ i + offset; the offset
is the length of the past, or nonpad_kv_seqlen − Sq, or 0. nonpad_kv_seqlen `(B,)`: from this number on keys are padding. A mask
may be shorter than the keys (24): the keys behind it are blocked. A window (25) leaves left_window_size keys before i + offset
and right_window_size behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper

from onnx_attn.graph.edit import Writer


@dataclass(frozen=True)
class Lengths:
    """Of queries, of keys with the past, and of the past: each a number where it is static, and a name of a vector of one."""

    queries: int | None
    keys: int | None
    past: int | None
    query: str
    key: str
    past_key: str = ""


@dataclass(frozen=True)
class Mask:
    """A mask as a node has it. short: it may have fewer columns than there are keys."""

    name: str
    elem_type: int
    short: bool


@dataclass(frozen=True)
class Span:
    """How many keys before a query's own place it sees, and behind it; None for all."""

    left: int | None = None
    right: int | None = None

    def __bool__(self) -> bool:
        return self != Span()


def one_mask(writer: Writer, lengths: Lengths, mask: Mask | None, span: Span, nonpad: str) -> str:
    """The mask that blocks what all of them block: boolean, or additive where the given one is."""
    allowed = []
    if nonpad:
        columns = writer.add(
            "Less", [_range(writer, lengths.keys, lengths.key, "keys"), _beside(writer, nonpad)], "valid"
        )
        allowed.append(columns)
    if span:
        allowed += _spanned(writer, lengths, span, nonpad)
    together = allowed[0] if allowed else ""
    for other in allowed[1:]:
        together = writer.add("And", [together, other], "attended")
    if mask is None:
        return together
    name = _padded(writer, mask, lengths) if mask.short else mask.name
    if not together:
        return name
    if mask.elem_type == TensorProto.BOOL:
        return writer.add("And", [name, together], "mask")
    return writer.add("Where", [together, name, _number(writer, -np.inf, mask.elem_type)], "mask")


def _spanned(writer: Writer, lengths: Lengths, span: Span, nonpad: str) -> list[str]:
    """What a span allows on each side, as `(Sq, Sk)`, or `(B, 1, Sq, Sk)` where sequences have offsets of their own."""
    queries, keys, past = lengths.queries, lengths.keys, lengths.past
    if not nonpad and queries is not None and keys is not None and past is not None:
        behind = np.arange(keys) - np.arange(past, past + queries)[:, None]
        right = np.ones_like(behind, bool) if span.right is None else behind <= span.right
        left = np.ones_like(behind, bool) if span.left is None else behind >= -span.left
        return [writer.constant(left & right, "causal_mask")]
    rows = _range(writer, lengths.queries, lengths.query, "queries")
    rows = writer.add("Unsqueeze", [rows, writer.shape(1)], "query_rows")
    if nonpad:
        offset = writer.add("Sub", [_beside(writer, nonpad), lengths.query], "offset")
        rows = writer.add("Add", [rows, offset], "own_key")
    elif lengths.past_key:
        rows = writer.add("Add", [rows, lengths.past_key], "own_key")
    columns, allowed = _range(writer, lengths.keys, lengths.key, "keys"), []
    if span.right is not None:
        last = writer.add("Add", [rows, writer.shape(span.right)], "last_key") if span.right else rows
        allowed.append(writer.add("LessOrEqual", [columns, last], "causal_mask"))
    if span.left is not None:
        first = writer.add("Sub", [rows, writer.shape(span.left)], "first_key")
        allowed.append(writer.add("GreaterOrEqual", [columns, first], "window_mask"))
    return allowed


def _range(writer: Writer, size: int | None, vector: str, hint: str) -> str:
    """0, 1, … as a vector of int64."""
    if size is not None:
        return writer.constant(np.arange(size), hint)
    scalar = writer.add("Squeeze", [vector, writer.shape(0)], f"{hint}_count")
    zero, one = (writer.constant(np.asarray(number, np.int64), f"{number}") for number in (0, 1))
    return writer.add("Range", [zero, scalar, one], hint)


def _beside(writer: Writer, nonpad: str) -> str:
    """A number of each sequence as `(B, 1, 1, 1)`."""
    return writer.add("Unsqueeze", [nonpad, writer.shape(1, 2, 3)], "valid_keys")


def _padded(writer: Writer, mask: Mask, lengths: Lengths) -> str:
    """The mask with as many columns as there are keys; those that are added block. (A mask of booleans is padded as numbers: Pad
    of booleans has no kernel in TensorRT.)"""
    columns = writer.add("Shape", [mask.name], "columns", start=-1)
    missing = writer.add("Sub", [lengths.key, columns], "missing_keys")
    pads = writer.add("Concat", [writer.shape(0), missing], "pads", axis=0)
    boolean = mask.elem_type == TensorProto.BOOL
    name = writer.add("Cast", [mask.name], "mask_numbers", to=TensorProto.FLOAT) if boolean else mask.name
    fill = _number(writer, 0.0, TensorProto.FLOAT) if boolean else _number(writer, -np.inf, mask.elem_type)
    padded = writer.add("Pad", [name, pads, fill, writer.shape(-1)], "mask_padded")
    return writer.add("Cast", [padded], "mask_whole", to=TensorProto.BOOL) if boolean else padded


def _number(writer: Writer, number: float, elem_type: int) -> str:
    return writer.constant(np.asarray(number, helper.tensor_dtype_to_np_dtype(elem_type)), "fill")
