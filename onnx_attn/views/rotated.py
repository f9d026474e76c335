"""What a RotaryEmbedding operator does to elements, as terms (`views.terms`)."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.world import Shape
from onnx_attn.views.terms import NOTHING, CannotRun, Term


def rotated_terms(node: gs.Node, x: Term, cos: Term, sin: Term, shape: Shape) -> list[Term]:
    """Of x `(B, N, S, H)` or `(B, S, N·H)`; tables `(B, S, D/2)`."""
    heads = _heads(x, node.attrs.get("num_heads", 0), cos.table.shape[-1])
    partial = node.attrs.get("rotary_embedding_dim", 0)
    size = heads.x.shape[-1]
    dim = partial or size
    if cos.table.shape != sin.table.shape or cos.table.shape[-1] * 2 != dim:
        raise CannotRun("tables that do not fit the heads")
    interleaved = node.attrs.get("interleaved", 0)
    if interleaved not in (0, 1):
        raise CannotRun("interleaved is neither 0 nor 1")
    channels = np.arange(dim)
    partner = channels ^ 1 if interleaved else (channels + dim // 2) % dim
    pair = channels // 2 if interleaved else channels % (dim // 2)
    sign = np.where(partner > channels, np.float32(-1), np.float32(1))
    batch, count, length = heads.x.shape[:3]
    angle = _by_position(cos, batch, length)[..., pair], _by_position(sin, batch, length)[..., pair]
    wide = (batch, count, length, dim)
    own = [heads.x[..., :dim], np.broadcast_to(angle[0][:, None], wide), heads.factor[..., :dim]]
    other = [heads.x[..., partner], np.broadcast_to(angle[1][:, None], wide), heads.factor[..., partner] * sign]
    rest = heads.x[..., dim:]
    none = np.full(rest.shape, NOTHING, np.int32)
    terms = [
        Term(*(np.concatenate(pair, -1) for pair in zip(own, (rest, none, heads.factor[..., dim:]), strict=True))),
        Term(
            *(
                np.concatenate(pair, -1)
                for pair in zip(other, (none, none, np.zeros(rest.shape, np.float32)), strict=True)
            )
        ),
    ]
    return [Term(*(_back(each, shape) for each in (term.x, term.table, term.factor))) for term in terms]


def _heads(x: Term, count: int, half: int) -> Term:
    """`(B, N, S, H)`. Without a count, ONNX Runtime's operator takes heads to be as wide as the table says."""
    if x.x.ndim == 4:
        return x
    batch, length, width = x.x.shape
    size = width // count if count else 2 * half
    apart = (batch, length, width // size, size)
    return Term(*(each.reshape(apart).transpose(0, 2, 1, 3) for each in (x.x, x.table, x.factor)))


def _back(value: np.ndarray, shape: Shape) -> np.ndarray:
    return value if len(shape) == 4 else value.transpose(0, 2, 1, 3).reshape(shape)


def _by_position(table: Term, batch: int, length: int) -> np.ndarray:
    """The table's numbers as `(B, S, D/2)`."""
    if not (table.factor == 1.0).all():
        raise CannotRun("tables that are scaled")
    return np.broadcast_to(table.table, (batch, length, table.table.shape[-1]))
