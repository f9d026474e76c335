"""Where an operand's axes run over the channels of its layer, and where over something else: the first are its heads."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from onnx_attn.graph.world import Shape
from onnx_attn.views.layout import REPEAT, Digit


@dataclass(frozen=True)
class Run:
    """A piece of an axis, which runs over channels or does not."""

    size: int
    head: bool


def runs_of(digits: tuple[Digit, ...], channels: Collection[int], shape: Shape) -> list[Run]:
    """The runs of one axis of a layout over a base of this shape, outer to inner; copies belong to what stands before them."""
    runs: list[Run] = []
    for digit in digits:
        size = shape[digit.axis] if digit.size is None else digit.size
        head = digit.axis in channels
        if runs and (runs[-1].head == head or digit.axis == REPEAT):
            runs[-1] = Run(runs[-1].size * size, runs[-1].head)
        else:
            runs.append(Run(size, head))
    return runs


def runs_in(index: np.ndarray, shape: Shape, channels: Collection[int]) -> list[list[Run]] | None:
    """The same off an index map that is no layout, as where rows are rolled or heads are picked in some order: of each axis one
    run, or an outer and an inner one. None where an axis runs over both in another way."""
    if not index.size:
        return None
    strides = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    over = np.zeros_like(index)
    for axis in channels:
        over += index // strides[axis] % shape[axis] * strides[axis]
    rest = index - over
    found = []
    for axis in range(index.ndim):
        lines = [np.moveaxis(each, axis, 0).reshape(index.shape[axis], -1)[:, 0] for each in (over, rest)]
        runs = _two_runs(*lines)
        if runs is None:
            return None
        found.append(runs)
    return found


def _two_runs(over: np.ndarray, rest: np.ndarray) -> list[Run] | None:
    length = over.size
    if length == 1:
        return []
    if (rest == rest[0]).all():
        return [Run(length, bool((over != over[0]).any()))]
    if (over == over[0]).all():
        return [Run(length, False)]
    for inner in (size for size in range(2, length) if length % size == 0):
        by_over, by_rest = over.reshape(-1, inner), rest.reshape(-1, inner)
        for head, (outside, inside) in ((True, (by_over, by_rest)), (False, (by_rest, by_over))):
            if (outside == outside[:, :1]).all() and (inside == inside[:1]).all():
                return [Run(length // inner, head), Run(inner, not head)]
    return None
