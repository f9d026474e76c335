"""How an operand reads the channels of its projection: as heads of features, perhaps each head several times."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_attn.graph.world import Shape
from onnx_attn.views.layout import REPEAT, Layout
from onnx_attn.views.linear import Linear


@dataclass(frozen=True)
class Heads:
    """`columns[n, h]` is the channel of head n and feature h, −1 for zeros behind a padded head;
    `order` has the source axes in the operand's order.

    copies: how often each head stands in the operand, one copy beside the other (K and V that query heads share).
    """

    columns: np.ndarray
    order: tuple[int, ...]
    copies: int

    @property
    def count(self) -> int:
        return int(self.columns.shape[0])

    @property
    def size(self) -> int:
        return int(self.columns.shape[1])


HEAD = -1
"""Stands for the head axis among the source axes of `Heads.order`."""


def read_heads(layout: Layout, layer: Linear, shapes: tuple[Shape, ...]) -> Heads | None:
    """Read a layout `(…, S, H)` over `(…, C)` as heads: whole source axes, at most one head digit, one feature digit."""
    channel = len(layout.offsets) - 1
    *leading, sequence, feature = layout.axes
    if any(layout.offsets[:-1]) or len(feature) != 1 or feature[0].axis != channel:
        return None
    if len(sequence) > 1 or any(digit.axis in (channel, REPEAT) or digit.size is not None for digit in sequence):
        return None
    order: list[int] = []
    head_step, head_count, copies = 0, 1, 1
    for digit in (digit for axis in leading for digit in axis):
        if digit.axis == REPEAT:
            # The heads' own copies come right behind them; other repetition is no matter of heads.
            if copies != 1 or digit.size is None or (HEAD in order and order[-1] != HEAD):
                return None
            copies = digit.size
            order.extend([] if HEAD in order else [HEAD])
        elif copies != 1:
            return None
        elif digit.axis != channel:
            if digit.size is not None:
                return None
            order.append(digit.axis)
        elif HEAD in order or digit.size is None:
            return None
        else:
            order.append(HEAD)
            head_step, head_count = digit.step, digit.size
    if HEAD not in order:
        order.append(HEAD)
    order.extend(digit.axis for digit in sequence)
    if len(set(order)) != len(order):
        return None
    # Source axes of size 1 leave no digit: they go first, or, as a sequence of length 1, behind the heads.
    missing = [axis for axis in range(channel) if axis not in order]
    if any(shape[axis] != 1 for shape in shapes for axis in missing):
        return None  # One row of many: a slice, not the sequence.
    if not sequence and missing:
        order.append(missing.pop())
    order[:0] = missing
    size = layer.channels if feature[0].size is None else feature[0].size
    columns = layout.offsets[channel] + np.add.outer(
        np.arange(head_count) * head_step, np.arange(size) * feature[0].step
    )
    return Heads(columns, tuple(order), copies)
