"""What kind of mask a term is, and whether masks by window say what the roll says."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, ScoreTerm, Window, Written
from onnx_attn.views.arrange import real, rearranged
from onnx_attn.views.folding import constant_value

MaskKind = Literal["additive", "boolean", "relative_bias", "window"]


def mask_kinds(view: GraphView, site: AttentionSite | Written, window: Window | None) -> tuple[MaskKind, ...]:
    """The kinds of a site's masks, in order; remembered, since they are asked for once more when the graph has been rewritten."""
    key = (
        site.heads,
        window.grid if window is not None else (),
        *((t.kind, t.mask and t.mask.name) for t in site.masks),
    )
    if key not in view.mask_kinds:
        view.mask_kinds[key] = tuple(_kind(view, site, term, window) for term in site.masks)
    return view.mask_kinds[key]


def _kind(view: GraphView, site: AttentionSite | Written, term: ScoreTerm, window: Window | None) -> MaskKind:
    """window: constant, and one table for each window, or one for each window and head. relative_bias: constant, and one table
    for each head. Everything else that is added is additive."""
    if term.kind == "where":
        return "boolean"
    shape = _static_shape(view, term)
    if shape is None or len(shape) < 3 or 1 in shape[-2:]:
        return "additive"
    *batch, heads = shape[:-2]
    windows = math.prod(batch)
    if windows == 1:
        return "relative_bias" if heads == site.heads and _differ(view, term, (1, heads), axis=1) else "additive"
    by_window = window is not None and windows == window.windows == max(batch) and heads in (1, site.heads)
    return "window" if by_window and _differ(view, term, (windows, heads), axis=0) else "additive"


def masks_agree(view: GraphView, site: AttentionSite | Written, window: Window) -> bool:
    """False where a mask by window of two numbers keeps other places of a rolled map apart than those that the roll brought
    together from its two ends. Of a map that is rolled and then padded, timm's masks are those of the padded map: they keep its
    last places apart, whatever lies there."""
    if not any(window.shift):
        return True
    frames = [_frame(window, of_padded) for of_padded in (False, True)]
    for term, kind in zip(site.masks, mask_kinds(view, site, window), strict=True):
        value = _numbers(view, term) if kind == "window" else None
        tokens = math.prod(window.size)
        if value is None or value.size != window.windows * tokens**2:
            continue
        table = (-value if term.kind == "subtract" else value).reshape(window.windows, tokens, tokens)
        if len(np.unique(table)) == 2 and not any(_agrees(table < table.max(), *frame) for frame in frames):
            return False
    return True


def _agrees(apart: np.ndarray, wrapped: np.ndarray, inside: np.ndarray) -> bool:
    """Whether pairs of tokens of the map `(n, S, S)` are kept apart where the roll brought one of them alone."""
    expected = (wrapped[:, :, None] != wrapped[:, None]).any(axis=-1)
    pairs = inside[:, :, None] & inside[:, None]
    return not (apart != expected)[pairs].any()


def _frame(window: Window, of_padded: bool) -> tuple[np.ndarray, np.ndarray]:
    """Of the tokens of each window: by axis, whether the roll brought them from the map's other end, `(n, S, axes)`; and whether
    they are of the map at all, `(n, S)`. of_padded: as if the padded map had been rolled, where the roll was first."""
    rank = len(window.size)
    wrapped, inside = [], []
    for axis, (size, grid, shift) in enumerate(zip(window.size, window.grid, window.shift, strict=True)):
        padding = window.padding[axis]
        places = np.pad(np.ones(size * grid - sum(padding), bool), padding)
        along = np.arange(size * grid) >= size * grid - shift
        if not window.rolled_first[axis]:
            places = np.roll(places, -shift)
        elif not of_padded:
            along = np.pad(along[sum(padding) :], padding)
        order = (grid, size) if window.kind == "window" else (size, grid)
        lines = [each.reshape(order) if window.kind == "window" else each.reshape(order).T for each in (along, places)]
        at = tuple(slice(None) if place % rank == axis else None for place in range(2 * rank))
        whole = [np.broadcast_to(line[at], (*window.grid, *window.size)).reshape(window.windows, -1) for line in lines]
        wrapped.append(whole[0])
        inside.append(whole[1])
    return np.stack(wrapped, axis=-1), np.all(inside, axis=0)


def _static_shape(view: GraphView, term: ScoreTerm) -> tuple[int, ...] | None:
    """The mask's shape, where it is the same at all sizes."""
    assert term.mask is not None
    shapes = view.shapes(term.mask)
    return shapes[0] if shapes is not None and len(set(shapes)) == 1 else None


def _numbers(view: GraphView, term: ScoreTerm) -> np.ndarray | None:
    """The mask's numbers, where nothing that is given to the model decides them."""
    assert term.mask is not None
    value = constant_value(view, real(view, term.mask))
    return None if value is None else rearranged(view, value, term.mask)


def _differ(view: GraphView, term: ScoreTerm, tables: tuple[int, int], axis: int) -> bool:
    """Whether a mask's tables, `(windows, heads, S, L)`, are not all the same along one axis."""
    value = _numbers(view, term)
    if value is None:
        return False
    each = value.reshape(*tables, -1)
    return not (each == each.take([0], axis)).all()
