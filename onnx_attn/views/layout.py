"""Data movement, understood by running it.

A chain of movement nodes (Reshape, Transpose, Squeeze, Split, Slice, Gather, …) computes an index map: each element of
the result is one element of the source. Feed the chain `arange`, read the map off the result, and describe it as einops
would: every axis of the result is a list of digits, outer to inner, and each digit walks one axis of the source.

    b s (three h d) -> b h s d, three=1     axes (B) (h: C, step D) (S) (d: C, step 1), offset 1·H·D on C

However many nodes spell a movement, and in whatever order, equal movements give equal layouts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


REPEAT = -1
"""Stands for an axis of the source where there is none: the same elements are read again, as Expand and Tile do."""


@dataclass(frozen=True)
class Digit:
    """`size` steps of `step` along one axis of the source; size None: the whole axis, whatever its size.

    Of axis `REPEAT`: the same elements, `size` times.
    """

    axis: int
    step: int
    size: int | None


@dataclass(frozen=True)
class Layout:
    """How a tensor reads its source. `axes[i]` are the digits of axis i (none: the axis has size 1); `offsets` by source axis."""

    axes: tuple[tuple[Digit, ...], ...]
    offsets: tuple[int, ...]

    def swapped(self) -> Layout:
        """The layout of the same tensor with its last two axes exchanged."""
        return Layout((*self.axes[:-2], self.axes[-1], self.axes[-2]), self.offsets)

    @property
    def digits(self) -> tuple[Digit, ...]:
        """All digits in the order of the result's axes: the atoms that a transpose would order."""
        return tuple(digit for axis in self.axes for digit in axis)


def decode(index: np.ndarray, source: Shape, positions: np.ndarray | None = None) -> Layout | None:
    """Read the layout off an index map into a C-contiguous source; None if it is no plain re-arrangement.

    positions: what the map was made of, if that counts the source through. A view of it lies along its own strides, and no number
    has to be looked at."""
    if index.size == 0:
        return None
    origin = int(index[(0,) * index.ndim])
    runs = _strided(index) if positions is not None and index.base is positions else _read_runs(index, origin)
    if runs is None:
        return None
    strides = [math.prod(source[i + 1 :]) for i in range(len(source))]
    axes = []
    for run in runs:
        digits: list[Digit] = []
        for stride, size in run:
            split = _digits(stride, size, source, strides)
            if split is None:
                return None
            digits.extend(split)
        axes.append(tuple(digits))
    offsets, rest = [], origin
    for stride in strides:
        offsets.append(rest // stride)
        rest %= stride
    if not _stays_inside(axes, offsets, source):
        return None
    return Layout(tuple(axes), tuple(offsets))


def common(layouts: Sequence[Layout | None]) -> Layout | None:
    """The one layout that holds in every world, or None. Sizes that follow the source are `whole axis` in all."""
    first = layouts[0]
    return first if first is not None and all(layout == first for layout in layouts[1:]) else None


Runs = list[tuple[int, int]]
"""Of one axis, (stride, size), outer to inner."""


def _strided(index: np.ndarray) -> list[Runs] | None:
    """Of a view of numbers that count through: None if some axis goes backwards."""
    axes = [(stride // index.itemsize, size) for stride, size in zip(index.strides, index.shape, strict=True)]
    if any(stride < 0 for stride, size in axes if size > 1):
        return None
    return [[(stride, size)] if size > 1 else [] for stride, size in axes]


def _read_runs(index: np.ndarray, origin: int) -> list[Runs] | None:
    """Off the numbers: along each axis by itself, if all others are what these make together."""
    runs, expected = list[Runs](), np.asarray(origin, index.dtype)
    for axis in range(index.ndim):
        line = index[tuple(slice(None) if i == axis else 0 for i in range(index.ndim))].astype(np.int64) - origin
        run = _runs(line)
        if run is None:
            return None
        runs.append(run)
        expected = expected + line.reshape([-1 if i == axis else 1 for i in range(index.ndim)])
    return runs if np.array_equal(index, expected) else None


def _runs(line: np.ndarray) -> Runs | None:
    """Factor a line of offsets into (stride, size), outer to inner: 0 1 2 10 11 12 is [(10, 2), (1, 3)]."""
    runs: Runs = []
    while line.size > 1:
        stride = int(line[1])
        steps = np.arange(line.size, dtype=np.int64) * stride
        breaks = np.flatnonzero(line != steps)
        size = int(breaks[0]) if breaks.size else line.size
        if stride < 0 or line.size % size:
            return None
        blocks = line.reshape(-1, size)
        if not np.array_equal(blocks, blocks[:, :1] + steps[:size]):
            return None
        runs.insert(0, (stride, size))
        line = blocks[:, 0]
    return runs


def _digits(stride: int, size: int, source: Shape, strides: list[int]) -> list[Digit] | None:
    """Break a run at the borders of the source's axes, inner to outer, and give the digits outer to inner."""
    if stride == 0:
        return [Digit(REPEAT, 0, size)]
    digits: list[Digit] = []
    for axis in range(len(source) - 1, -1, -1):
        length, unit = source[axis], strides[axis]
        if length == 1 or stride >= unit * length:
            continue
        if stride % unit:
            return None
        step = stride // unit
        if step * size <= length:
            inner = size
        elif length % step or size % (length // step):
            return None
        else:
            inner = length // step
        digits.insert(0, Digit(axis, step, None if step == 1 and inner == length else inner))
        size //= inner
        stride = unit * length
        if size == 1:
            return digits
    return None


def _stays_inside(axes: list[tuple[Digit, ...]], offsets: list[int], source: Shape) -> bool:
    """Offsets plus steps must not carry from one source axis into the next, else digits would not be independent."""
    reach = list(offsets)
    for digits in axes:
        for digit in (digit for digit in digits if digit.axis != REPEAT):
            size = source[digit.axis] if digit.size is None else digit.size
            reach[digit.axis] += digit.step * (size - 1)
    return all(end < length for end, length in zip(reach, source, strict=True))
