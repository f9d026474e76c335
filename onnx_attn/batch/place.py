"""Where the batch is in a tensor.

An axis of size `outer · n · inner` carries a batch of n entries if, read as three axes (outer, n, inner), slice i along the
middle one follows from entry i alone, and is the same whatever the other entries are. A plain batch axis has outer and inner 1;
windows behind it, `(B·nW, N, C)`, are an inner of nW; a sequence in front of it, `(S·B, C)`, is an outer of S.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Batch:
    """The batch lies on `axis`, behind `outer` other positions of it (one number for each of the view's worlds)."""

    axis: int
    outer: tuple[int, ...]

    @property
    def is_outermost(self) -> bool:
        return set(self.outer) == {1}

    def at(self, axis: int) -> Batch:
        """The same on another axis."""
        return Batch(axis, self.outer)


@dataclass(frozen=True)
class Nowhere:
    """A tensor that does not follow from the batch at all (`sized` False), or from its size alone, as a shape does."""

    sized: bool


FREE = Nowhere(False)
SIZED = Nowhere(True)
Place = Batch | Nowhere


class Blocked(Exception):
    """A node that does not let the batch vary, in words. output: of a model's output, its name."""

    def __init__(self, reason: str, output: str = ""):
        super().__init__(reason)
        self.reason, self.output = reason, output
        self.node, self.op = "", ""
