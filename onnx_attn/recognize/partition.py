"""Which part of a map each group of tokens is: windows, grids or blocks, with roll and padding read off.

groups: `(n, S)`, the places of a map, row by row, that stand together; −1 for padding. Nothing here knows a graph.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["window", "grid", "unit"]
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Line:
    """One axis of the map in the order of the windows: rolled by −shift, and padded in front and behind.

    rolled_first: the roll turns the map and not its padding.
    """

    shift: int
    padding: tuple[int, int]
    rolled_first: bool


@dataclass(frozen=True)
class Partition:
    """By axis of the map: the windows' size and number, and how it was rolled and padded before it was cut."""

    kind: Kind
    size: Sizes
    grid: Sizes
    lines: tuple[Line, ...]


def read_partition(groups: np.ndarray, sizes: Sizes) -> Partition | None:
    """The one way to cut a map of these sizes into these groups; None where there is none, or more than one.

    Windows of one token along an axis are none: nothing tells such an axis from one of the batch.
    """
    count, tokens = groups.shape
    if not each_once(groups, math.prod(sizes)):
        return None
    found = []
    for size in _factors(tokens, len(sizes)):
        grid = tuple(-(-total // each) for total, each in zip(sizes, size, strict=True))
        if math.prod(grid) == count:
            read = _read(groups, sizes, size, grid)
            found += [read] if read is not None else []
    if not found:
        return _units(groups, sizes)
    return found[0] if len(found) == 1 else None


def _factors(number: int, count: int) -> Iterator[Sizes]:
    """All ways to write a number as a product of `count` factors above 1."""
    if count == 1:
        yield from [(number,)] if number > 1 else []
        return
    for first in range(2, number // 2 + 1):
        if number % first == 0:
            yield from ((first, *rest) for rest in _factors(number // first, count - 1))


def _read(groups: np.ndarray, sizes: Sizes, size: Sizes, grid: Sizes) -> Partition | None:
    rank = len(sizes)
    lattice = groups.reshape(*grid, *size)
    places = np.stack(np.unravel_index(np.maximum(lattice, 0), sizes))
    places = np.where(lattice >= 0, places, -1)
    whole, padding = np.zeros((1,) * 2 * rank, np.int64), np.zeros((1,) * 2 * rank, bool)
    frames = []
    for axis in range(rank):
        others = tuple(at for at in range(2 * rank) if at % rank != axis)
        frame = places[axis].max(axis=others, keepdims=True)
        whole = whole + frame * math.prod(sizes[axis + 1 :])
        padding = padding | (frame < 0)
        frames.append(frame.reshape(grid[axis], size[axis]))
    if not np.array_equal(np.where(padding, -1, whole), lattice):
        return None
    kinds: tuple[Kind, Kind] = ("window", "grid")
    for kind in kinds:
        ordered = [(frame.T if kind == "grid" else frame).reshape(-1) for frame in frames]
        lines = [read_line(each, total) for each, total in zip(ordered, sizes, strict=True)]
        if None not in lines:
            return Partition(kind, size, grid, tuple(line for line in lines if line is not None))
    return None


def read_line(line: np.ndarray, size: int) -> Line | None:
    """Roll and padding of one axis of this size, of which a place is there. Rolled zeros at the end are told from rolled places
    by where they lie; what can be read as padding in front alone is."""
    real = np.flatnonzero(line >= 0)
    shift = int(line[real[0]])
    if not np.array_equal(line[real], np.roll(np.arange(size), -shift)):
        return None
    front, behind = int(real[0]), int(line.size - 1 - real[-1])
    within = line.size - size - front - behind
    if not within:
        return Line(shift, (front, behind), bool(shift and front + behind))
    last = size - shift
    if front or behind or not (line[last : last + within] < 0).all():
        return None
    return Line(shift, (0, within), False)


def each_once(groups: np.ndarray, count: int) -> bool:
    """Whether the groups hold each of this many places once, beside padding."""
    found = np.bincount(groups[groups >= 0], minlength=count)
    return len(found) == count and bool((found == 1).all())


def _units(groups: np.ndarray, sizes: Sizes) -> Partition | None:
    """Blocks that lie side by side, whose tokens or which themselves stand in an order of their own."""
    found = read_blocks(groups, sizes) if len(groups) > 1 else None
    if found is None or 1 in found[0]:
        return None
    grid = tuple(total // each for total, each in zip(sizes, found[0], strict=True))
    return Partition("unit", found[0], grid, (Line(0, (0, 0), False),) * len(sizes))


def read_blocks(groups: np.ndarray, sizes: Sizes) -> tuple[Sizes, np.ndarray] | None:
    """The size of the blocks that groups of places are, and the number `(n,)` of each among the blocks of the map, row by row.

    The groups hold each place once (`each_once`). Blocks of one size that do lie side by side, from the first corner on.
    """
    if (groups < 0).any():
        return None
    places = np.stack(np.unravel_index(groups, sizes))
    first, last = places.min(axis=2), places.max(axis=2)
    extents = last - first + 1
    size = tuple(int(each) for each in extents[:, 0])
    if math.prod(size) != groups.shape[1] or (extents != extents[:, :1]).any():
        return None
    grid = tuple(total // each for total, each in zip(sizes, size, strict=True))
    return size, np.ravel_multi_index(tuple(first // extents[:, :1]), grid)
