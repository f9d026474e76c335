"""The rotary embedding of Q or K: channels of each head are rotated in pairs, by an angle of the token's position.

What each channel is made of is read off the operand as a whole (`views.numbered`): one channel times a cosine, and its partner
times a sine, with the signs of a rotation, `(a·cos − b·sin, b·cos + a·sin)`. Which channel is the partner tells the kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, Written
from onnx_attn.views.arrange import moved, unarranged
from onnx_attn.views.numbered import Numbers, Term, run_program
from onnx_attn.views.products import Program

Kind = Literal["half", "interleaved"]
NEAR = 1e-2
"""How far cos² + sin² of stored tables may be from one number: half precision rounds to 5e-4, bfloat16 to 4e-3."""


@dataclass(frozen=True)
class Rotary:
    """kind: the partner of channel i is i + dim/2 ("half") or i ^ 1. dim: how many channels of a head are rotated, from `first`
    on. whole: whether all tokens are; a class token may stay as it is."""

    kind: Kind
    dim: int
    first: int
    whole: bool


def read_rotary(view: GraphView, site: AttentionSite | Written) -> tuple[Rotary | None, Rotary | None]:
    """The rotary embeddings of Q and of K; None where the operand has none."""
    operands = site.node.inputs[:2] if isinstance(site, Written) else [site.query.tensor, site.key.tensor]
    query, key = (_read(view, operand) for operand in operands)
    return query, key


def _read(view: GraphView, operand: gs.Tensor) -> Rotary | None:
    """Remembered by operand, and by what makes it: layers are alike."""
    if operand.name not in view.rotaries:
        view.rotaries[operand.name] = _of_operand(view, operand)
    found: Rotary | None = view.rotaries[operand.name]
    return found


def _of_operand(view: GraphView, operand: gs.Tensor) -> Rotary | None:
    tensor, moves = unarranged(view, operand)
    if view.shapes(tensor) is None:
        return None
    program = Program(view, tensor)
    if not program.has_sums:
        return None
    key = (program.key(), tuple((move.op, move.shapes, repr(move.attrs)) for move in moves))
    if key not in view.rotaries:
        found: list[Rotary | None] = []
        for number, world in enumerate(view.worlds):
            try:
                numbers = run_program(program, world)
                terms = [_arranged(term, moves, number) for term in numbers.terms]
            except ValueError:
                found.append(None)
                continue
            found.append(_rotary(numbers, terms))
        view.rotaries[key] = found[0] if len(set(found)) == 1 else None
    read: Rotary | None = view.rotaries[key]
    return read


def _arranged(term: Term, moves: Sequence[object], world: int) -> Term:
    """In rows of one head of one token, `(rows, H)`."""
    values = (moved(each, moves, world) for each in (term.x, term.table, term.factor))  # type: ignore[arg-type]
    return Term(*(value.reshape(-1, value.shape[-1]) for value in values))


def _rotary(numbers: Numbers, terms: Sequence[Term]) -> Rotary | None:
    own, other = _two(terms)
    turned = other.factor != 0
    rows, columns = turned.any(1), turned.any(0)
    first, dim = int(columns.argmax()), int(columns.sum())
    if not rows.any() or dim % 2 or not columns[first : first + dim].all() or not turned[np.ix_(rows, columns)].all():
        return None
    still = ~turned & (own.factor != 0)
    if not (turned | still).all() or (own.table[still] >= 0).any():
        return None
    part = np.ix_(rows, columns)
    pair = [Term(term.x[part], term.table[part], term.factor[part]) for term in (own, other)]
    factors = np.unique(np.abs([pair[0].factor, pair[1].factor]))
    if factors.size != 1 or (own.factor[rows][:, ~columns] != own.factor[rows][:, ~columns].flat[:1]).any():
        return None
    kinds: tuple[Kind, ...] = ("half", "interleaved")
    for kind in kinds:
        if _is_rotation(numbers, pair, kind):
            return Rotary(kind, dim, first, bool(rows.all()))
    return None


def _two(terms: Sequence[Term]) -> tuple[Term, Term]:
    """The one or two terms that each element has, and no more, whichever these are."""
    stacked = [np.stack([getattr(term, name) for term in terms]) for name in ("x", "table", "factor")]
    if len(terms) > 2:
        order = np.argsort(stacked[2] == 0, axis=0, kind="stable")
        stacked = [np.take_along_axis(each, order, 0) for each in stacked]
        if (stacked[2][2:] != 0).any():
            nothing = np.zeros_like(stacked[2][0])
            return Term(stacked[0][0], stacked[1][0], nothing), Term(stacked[0][0], stacked[1][0], nothing)
    first = Term(*(each[0] for each in stacked))
    if len(terms) == 1:
        return first, Term(first.x, first.table, np.zeros_like(first.factor))
    return first, Term(*(each[1] for each in stacked))


def _is_rotation(numbers: Numbers, pair: Sequence[Term], kind: Kind) -> bool:
    """Whether channel i and its partner are `(a·cos − b·sin, b·cos + a·sin)` in every row, times one factor of either sign."""
    dim = pair[0].x.shape[1]
    first = np.arange(0, dim, 2) if kind == "interleaved" else np.arange(dim // 2)
    second = first + (1 if kind == "interleaved" else dim // 2)
    # On the first channel the factors have two signs, and tell what is times the cosine; on the second they are the same.
    above, below = ([Term(*_columns(term, at)) for term in pair] for at in (first, second))
    sign = np.sign(below[0].factor.flat[0])
    if not all((np.sign(term.factor) == sign).all() for term in below):
        return False
    cos, sin = _sorted(above, above[0].factor * sign > 0)
    if not ((cos.factor * sign > 0).all() and (sin.factor * sign < 0).all()):
        return False
    same, turned = _sorted(below, below[0].x == sin.x)
    fits = [(same.x, sin.x), (turned.x, cos.x), (same.table, cos.table), (turned.table, sin.table)]
    if not all(np.array_equal(a, b) for a, b in fits) or (cos.table < 0).any() or (sin.table < 0).any():
        return False
    return _from_one(numbers, cos.x, sin.x) and _are_angles(numbers, cos.table, sin.table)


def _columns(term: Term, at: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return term.x[:, at], term.table[:, at], term.factor[:, at]


def _sorted(pair: Sequence[Term], chosen: np.ndarray) -> tuple[Term, Term]:
    """Element by element the first term where it is chosen, and the other one."""
    both = [[getattr(term, name) for term in pair] for name in ("x", "table", "factor")]
    return (
        Term(*(np.where(chosen, a, b) for a, b in both)),
        Term(*(np.where(chosen, b, a) for a, b in both)),
    )


def _from_one(numbers: Numbers, *elements: np.ndarray) -> bool:
    """Whether all elements are of one activation."""
    starts = np.sort(list(numbers.leaves.values()))
    return len({leaf for each in elements for leaf in np.unique(np.searchsorted(starts, each, "right"))}) == 1


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
