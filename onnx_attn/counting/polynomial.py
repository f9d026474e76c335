"""Whole-number polynomials in the names of dimensions, and sizes read as such from what they are at several sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import Any

Monomial = tuple[str, ...]
"""Names in order, each as often as its power."""


class Poly:
    """A sum of whole numbers times names."""

    __slots__ = ("terms",)

    def __init__(self, terms: Mapping[Monomial, int]):
        self.terms = {names: factor for names, factor in terms.items() if factor}

    def __add__(self, other: Poly | int) -> Poly:
        terms = dict(self.terms)
        for names, factor in _terms(other):
            terms[names] = terms.get(names, 0) + factor
        return Poly(terms)

    def __mul__(self, other: Poly | int) -> Poly:
        terms: dict[Monomial, int] = {}
        for names, factor in self.terms.items():
            for others, by in _terms(other):
                key = tuple(sorted(names + others))
                terms[key] = terms.get(key, 0) + factor * by
        return Poly(terms)

    __radd__, __rmul__ = __add__, __mul__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Poly | int) and self.terms == Poly(dict(_terms(other))).terms

    def __hash__(self) -> int:
        return hash(frozenset(self.terms.items()))

    def at(self, sizes: Mapping[str, int]) -> int:
        found = 0
        for names, factor in self.terms.items():
            for name in names:
                factor *= sizes[name]
            found += factor
        return found

    def __str__(self) -> str:
        """`24*batch*sequence**2 + 7`, the highest powers first."""
        order = sorted(self.terms.items(), key=lambda term: (-len(term[0]), term[0]))
        return " + ".join(_written(names, factor) for names, factor in order).replace("+ -", "- ") or "0"


def _terms(value: Poly | int) -> list[tuple[Monomial, int]]:
    return list(value.terms.items()) if isinstance(value, Poly) else [((), value)]


def _written(names: Monomial, factor: int) -> str:
    powers = [f"{name}**{names.count(name)}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]
    return "*".join(([str(factor)] if factor != 1 or not powers else []) + powers)


def as_polynomial(values: Sequence[int], sizes: Sequence[Mapping[str, int]]) -> Poly | None:
    """A size by what it is where the dimensions have these sizes: a number, `a·x + b`, `a·x·y`, or `x + y + b`; None for others.

    Where sizes share no factor, and are three at least, what fits them all is no chance.
    """
    if len(set(values)) == 1:
        return Poly({(): values[0]})
    return next(
        (
            found
            for found in _guesses(values, sizes)
            if all(found.at(s) == v for s, v in zip(sizes, values, strict=True))
        ),
        None,
    )


def _guesses(values: Sequence[int], sizes: Sequence[Mapping[str, int]]) -> Iterator[Poly]:
    first, second = sizes[:2]
    for name in first:
        step = second[name] - first[name]
        if step and (values[1] - values[0]) % step == 0:
            slope = (values[1] - values[0]) // step
            yield Poly({(name,): slope, (): values[0] - slope * first[name]})
    for one, other in combinations_with_replacement(first, 2):
        whole = first[one] * first[other]
        if whole and values[0] % whole == 0:
            yield Poly({tuple(sorted((one, other))): values[0] // whole})
        if one != other:
            yield Poly({(one,): 1, (other,): 1, (): values[0] - first[one] - first[other]})


def total(parts: Sequence[Any]) -> Any:
    """The sum of numbers or polynomials."""
    terms: dict[Monomial, int] = {}
    if not any(isinstance(part, Poly) for part in parts):
        return sum(parts)
    for part in parts:
        for names, factor in _terms(part):
            terms[names] = terms.get(names, 0) + factor
    return Poly(terms)
