"""A rotation of channels in pairs, read off what each channel is made of: `(a·cos − b·sin, b·cos + a·sin)`, times one factor.

Which channel is the partner tells the kind, and the signs tell what is multiplied with the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from onnx_attn.views.numbered import Numbers
from onnx_attn.views.terms import Term

Kind = Literal["half", "interleaved"]
MOST_AT_ONCE = 2**20
"""Elements that are looked at together."""
NEAR = 1e-2
"""How far cos² + sin² of stored tables may be from one number: half precision rounds to 5e-4, bfloat16 to 4e-3."""


@dataclass(frozen=True)
class Rotation:
    """Of rows of channels `(rows, H)`. kind: the partner of channel i is i + dim/2 ("half") or i ^ 1. dim: how many channels are
    rotated, from `first` on. whole: whether all rows are that are of the same activation. factor: that of every channel.

    x: numbers of the elements that are rotated, `(rows, H)`, each at the place of its channel. cos, sin: those of the tables',
    `(rows, dim/2)`. All three of the rows that are rotated.
    """

    kind: Kind
    dim: int
    first: int
    whole: bool
    factor: float
    x: np.ndarray
    cos: np.ndarray
    sin: np.ndarray


def rotation_of(numbers: Numbers, terms: Sequence[Term]) -> Rotation | None:
    """Of the two terms over `(rows, H)` that a program with a sum has (`views.products`): both sides of the sum are products, and
    an element beside it has no second term. None where they are no rotation. Some rows at a time, which takes less memory."""
    own, other = terms
    rows, width = own.x.shape
    step = max(1, MOST_AT_ONCE // width)
    found, rotated, beside = list[Rotation](), set[int](), set[int]()
    for start in range(0, rows, step):
        part = [_rows_of(term, slice(start, start + step)) for term in (own, other)]
        turned = (part[1].factor != 0).any(1)
        still = _rows_of(part[0], ~turned)
        if (still.table >= 0).any() or (still.factor == 0).any():
            return None
        beside |= numbers.leaves_of(still.x)
        if turned.any():
            rotation = _of_rows(*(_rows_of(term, turned) for term in part))
            if rotation is None or not _are_angles(numbers, rotation.cos, rotation.sin):
                return None
            found.append(rotation)
            columns = slice(rotation.first, rotation.first + rotation.dim)
            rotated |= numbers.leaves_of(rotation.x[:, columns])
    if len({(each.kind, each.dim, each.first, each.factor) for each in found}) != 1 or len(rotated) != 1:
        return None
    x, cos, sin = (np.concatenate([getattr(each, name) for each in found]) for name in ("x", "cos", "sin"))
    return replace(found[0], whole=rotated.isdisjoint(beside), x=x, cos=cos, sin=sin)


def _rows_of(term: Term, rows: slice | np.ndarray) -> Term:
    return Term(term.x[rows], term.table[rows], term.factor[rows])


def _of_rows(own: Term, other: Term) -> Rotation | None:
    """Of rows all of which are rotated."""
    columns = (other.factor != 0).any(0)
    first, dim = int(columns.argmax()), int(columns.sum())
    if dim % 2 or not columns[first : first + dim].all() or (own.table[:, ~columns] >= 0).any():
        return None
    pair = [Term(*_columns(term, np.flatnonzero(columns))) for term in (own, other)]
    kinds: tuple[Kind, ...] = ("half", "interleaved")
    for kind in kinds:
        found = _rotated(pair, kind)
        if found is None:
            continue
        cos, sin, factor = found
        # What is not rotated goes along with the same factor.
        if (own.factor[:, ~columns] != np.float32(factor)).any():
            return None
        x = own.x.copy()
        x[:, columns] = _woven(cos.x, sin.x, kind)
        return Rotation(kind, dim, first, True, factor, x, cos.table, sin.table)
    return None


def _woven(first: np.ndarray, second: np.ndarray, kind: Kind) -> np.ndarray:
    """The first channels of all pairs and the second ones, each at its place."""
    if kind == "half":
        return np.concatenate([first, second], 1)
    return np.stack([first, second], 2).reshape(len(first), -1)


def _rotated(pair: Sequence[Term], kind: Kind) -> tuple[Term, Term, float] | None:
    """Channel i and its partner as `(a·cos − b·sin, b·cos + a·sin)` in every row, times one factor of either sign: a with the
    cosines, b with the sines, and the factor. None where they are something else, or one of the two terms is not there."""
    size = np.abs(pair[0].factor.flat[0])
    if any((np.abs(term.factor) != size).any() for term in pair):
        return None
    dim = pair[0].x.shape[1]
    first = np.arange(0, dim, 2) if kind == "interleaved" else np.arange(dim // 2)
    second = first + (1 if kind == "interleaved" else dim // 2)
    # On the first channel the factors have two signs, and tell what is times the cosine; on the second they are the same.
    above, below = ([Term(*_columns(term, at)) for term in pair] for at in (first, second))
    sign = np.sign(below[0].factor.flat[0])
    if not all((np.sign(term.factor) == sign).all() for term in below):
        return None
    cos, sin = _sorted(above, above[0].factor * sign > 0)
    if not ((cos.factor * sign > 0).all() and (sin.factor * sign < 0).all()):
        return None
    same, turned = _sorted(below, below[0].x == sin.x)
    fits = [(same.x, sin.x), (turned.x, cos.x), (same.table, cos.table), (turned.table, sin.table)]
    if not all(np.array_equal(a, b) for a, b in fits):
        return None
    return cos, sin, float(sign * size)


def _columns(term: Term, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return term.x[:, at], term.table[:, at], term.factor[:, at]


def _sorted(pair: Sequence[Term], chosen: np.ndarray) -> tuple[Term, Term]:
    """Element by element the first term where it is chosen, and the other one."""
    both = [[getattr(term, name) for term in pair] for name in ("x", "table", "factor")]
    return (
        Term(*(np.where(chosen, a, b) for a, b in both)),
        Term(*(np.where(chosen, b, a) for a, b in both)),
    )


def _are_angles(numbers: Numbers, cos: np.ndarray, sin: np.ndarray) -> bool:
    """Whether tables may be an angle's cosine and sine: they are computed so, or of stored ones cos² + sin² is one number, and
    no row is turned by a right angle throughout, as it is at position 0 where the two have changed places."""
    spaces = [numbers.spaces_of(table) for table in (cos, sin)]
    functions = [frozenset[str]().union(*(space.functions for space in found)) for found in spaces]
    if any(functions):
        return functions == [{"Cos"}, {"Sin"}]
    if any(len(found) != 1 for found in spaces) or any(found[0].values is None for found in spaces):
        return True  # Given from outside: what they are called in a graph is what they are.
    wide = [found[0].of(table).astype(np.float64) for found, table in zip(spaces, (cos, sin), strict=True)]
    if wide[0].shape != wide[1].shape:
        return False
    length = np.sqrt(wide[0] ** 2 + wide[1] ** 2)
    most = length.max(initial=0.0)
    even = bool((np.abs(length - most) <= NEAR * most).all())
    return even and not (np.abs(wide[0]) <= NEAR * most).all(-1).any()
