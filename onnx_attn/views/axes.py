"""Axes that keep their identity through Reshape and Transpose, whatever their sizes are.

A tensor's axes are made of atoms, outer to inner. Transpose moves axes; Reshape joins them and takes them apart, and where it
cuts through an atom, that atom is two from then on, in every frame that holds it. Sizes are one number a world, so that a cut
holds by the graph's structure: `(B·N, S, T) -> (B, N, S, T)` makes two atoms of the first axis, known in both frames.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from onnx_attn.graph.world import Shape

Sizes = tuple[int, ...]
"""The size of one axis in every world."""


@dataclass(eq=False)
class Atom:
    """A piece of an axis that is never cut, or the two that it was cut into."""

    sizes: Sizes
    parts: tuple[Atom, ...] = field(default=())

    def split(self, inner: Sizes) -> None:
        """Cut into an outer piece and an inner one of these sizes, which divide the whole."""
        outer = tuple(size // part for size, part in zip(self.sizes, inner, strict=True))
        self.parts = (Atom(outer), Atom(inner))


Axis = tuple[Atom, ...]
Frame = tuple[Axis, ...]
"""The axes of one tensor. An axis of size 1 has no atoms."""


def frame_of(shapes: Sequence[Shape]) -> Frame:
    """A frame of fresh atoms for a tensor with these shapes, one a world."""
    sizes = zip(*shapes, strict=True)
    return tuple((Atom(tuple(axis)),) if any(size != 1 for size in axis) else () for axis in sizes)


def leaves(atoms: Iterable[Atom]) -> Axis:
    """The pieces that atoms consist of by now, outer to inner."""
    found: list[Atom] = []
    stack = list(atoms)[::-1]
    while stack:
        atom = stack.pop()
        if atom.parts:
            stack.extend(reversed(atom.parts))
        else:
            found.append(atom)
    return tuple(found)


def settled(frame: Frame) -> Frame:
    """The same frame in pieces as they are by now."""
    return tuple(leaves(axis) for axis in frame)


def size_of(axis: Iterable[Atom], worlds: int) -> Sizes:
    return tuple(math.prod(atom.sizes[world] for atom in axis) for world in range(worlds))


def reshaped(frame: Frame, shapes: Sequence[Shape]) -> Frame | None:
    """The frame of a tensor after Reshape to these shapes; None if an axis cannot be put together from whole pieces."""
    waiting = [atom for axis in settled(frame) for atom in axis][::-1]
    axes: list[Axis] = []
    for wanted in zip(*shapes, strict=True):
        axis: list[Atom] = []
        while any(size != 1 for size in wanted):
            if not waiting:
                return None
            atom = waiting.pop()
            if _divides(atom.sizes, wanted):
                axis.append(atom)
                wanted = _quotient(wanted, atom.sizes)
            elif _divides(wanted, atom.sizes):
                atom.split(_quotient(atom.sizes, wanted))
                waiting.extend(reversed(atom.parts))
            else:
                return None
        axes.append(tuple(axis))
    return None if waiting else tuple(axes)


def _divides(small: Sizes, large: Sizes) -> bool:
    return all(size > 0 and total % size == 0 for size, total in zip(small, large, strict=True))


def _quotient(large: Sizes, small: Sizes) -> Sizes:
    return tuple(total // size for size, total in zip(small, large, strict=True))
