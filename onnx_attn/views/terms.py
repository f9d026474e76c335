"""Terms: element by element, what a value is a sum of. An activation's element times a table's element times a factor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_attn.graph.world import Shape

NOTHING = -1
"""The number of no element."""


class CannotRun(ValueError):
    """A program that is no sum of products of moved elements after all, or too large."""


@dataclass
class Term:
    """x, table: numbers of elements, NOTHING where there is none. factor: 0 where the term is not there."""

    x: np.ndarray
    table: np.ndarray
    factor: np.ndarray

    @property
    def is_activation(self) -> bool:
        """Whether it is nothing but elements of activations as they are."""
        return bool((self.table == NOTHING).all() and (self.factor == 1.0).all())

    @property
    def is_table(self) -> bool:
        return bool((self.x == NOTHING).all() and (self.factor == 1.0).all())


def is_one(factor: np.ndarray) -> bool:
    return bool((factor == 1.0).all())


def same_along_last(numbers: np.ndarray) -> bool:
    return bool((numbers == numbers[..., :1]).all())


def only(terms: Sequence[Term]) -> Term:
    if len(terms) != 1:
        raise CannotRun("a sum where one element was expected")
    return terms[0]


def everywhere(number: float, shape: Shape) -> np.ndarray:
    dtype = np.float32 if isinstance(number, float) else np.int32
    return np.broadcast_to(np.asarray(number, dtype), shape)


def spread(term: Term, shape: Shape) -> Term:
    return Term(*(np.broadcast_to(each, shape) for each in (term.x, term.table, term.factor)))


def product(term: Term, table: Term, shape: Shape) -> Term:
    both = spread(term, shape), spread(table, shape)
    return Term(both[0].x, both[1].table, both[0].factor * both[1].factor)


def joined(parts: Sequence[Sequence[Term]], axis: int) -> list[Term]:
    """Term by term; a part that has fewer has nothing there."""
    found = []
    for place in range(max(map(len, parts))):
        terms = [part[place] if place < len(part) else _nothing(part[0]) for part in parts]
        found.append(
            Term(*(np.concatenate([getattr(term, name) for term in terms], axis) for name in ("x", "table", "factor")))
        )
    return found


def _nothing(like: Term) -> Term:
    shape = like.x.shape
    return Term(everywhere(NOTHING, shape), everywhere(NOTHING, shape), everywhere(0.0, shape))
