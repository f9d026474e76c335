"""The rotary embedding of Q or K: channels of each head are rotated in pairs, by an angle of the token's position.

What each channel is made of is read off the operand as a whole (`views.numbered`), whatever nodes spell it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView
from onnx_attn.recognize.rotation import Kind, rotation_of
from onnx_attn.site import AttentionSite, Written
from onnx_attn.views.arrange import moved, unarranged
from onnx_attn.views.numbered import run_program
from onnx_attn.views.products import Program
from onnx_attn.views.terms import Term


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
    if len(operands) < 2:  # An operator of ONNX Runtime that takes Q, K and V as one.
        return None, None
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
            except (ValueError, LookupError):
                found.append(None)
                continue
            rotation = rotation_of(numbers, terms)
            found.append(Rotary(rotation.kind, rotation.dim, rotation.first, rotation.whole) if rotation else None)
        view.rotaries[key] = found[0] if len(set(found)) == 1 else None
    read: Rotary | None = view.rotaries[key]
    return read


def _arranged(term: Term, moves: Sequence[object], world: int) -> Term:
    """In rows of one head of one token, `(rows, H)`."""
    values = (moved(each, moves, world) for each in (term.x, term.table, term.factor))  # type: ignore[arg-type]
    return Term(*(value.reshape(-1, value.shape[-1]) for value in values))
