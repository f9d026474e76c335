"""Masks as small pictures: at most so many cells a side, a few heads or windows of them."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from onnx_attn.graph.view import GraphView
from onnx_attn.recognize.causality import BLOCKED, numbers_of
from onnx_attn.site import ScoreTerm
from onnx_attn.views.arrange import real, rearranged
from onnx_attn.views.folding import constant_value

Picture = dict[str, Any]
"""`at`: which of the mask's tables, by its axes in front of the last two. `rows`, `columns` and `cells`: bytes row by row in
base64, 0 to 254 from `low` to `high`, 255 for what is blocked. `of`: the table's own sizes, of which evenly spaced cells are
shown."""

MOST_CELLS = 48
MOST_TABLES = 4
_BLOCKED_CELL = 255


def pictures(view: GraphView, term: ScoreTerm) -> list[Picture]:
    """Of a mask whose numbers are stored, computed from stored ones, or follow from sizes with nothing padded away; none of
    one that is given when the model runs."""
    stored, value = _numbers(view, term)
    if value is None or value.ndim < 2 or not value.size:
        return []
    of = value.shape[-2:]
    # Evenly spaced cells first: a mask may be as large as the scores.
    value = value[..., _evenly(of[0]), :][..., _evenly(of[1])].astype(np.float32)
    if term.kind == "where":
        value = np.where(value.astype(bool) == term.keep_when, np.float32(0), np.float32(-np.inf))
    elif term.kind == "subtract":
        value = -value
    tables = np.ascontiguousarray(value.reshape(-1, *value.shape[-2:]))
    distinct: dict[bytes, int] = {}
    for place, table in enumerate(tables):
        distinct.setdefault(table.tobytes(), place)
    if not stored and len(np.unique(tables)) == 1:
        return []  # Decided when the model runs.
    shown = list(distinct.values())[:MOST_TABLES]
    return [_picture(tables[place], np.unravel_index(place, value.shape[:-2]), of) for place in shown]


def _numbers(view: GraphView, term: ScoreTerm) -> tuple[bool, np.ndarray | None]:
    """Whether no input decides the mask, and its numbers."""
    assert term.mask is not None
    stored = constant_value(view, real(view, term.mask))
    if stored is not None:
        return True, rearranged(view, stored, term.mask)
    if view.producer(real(view, term.mask)) is None:
        return False, None
    return False, next(iter(numbers_of(view, term.mask)), None)


def _picture(cells: np.ndarray, at: tuple[Any, ...], of: tuple[int, ...]) -> Picture:
    blocked = ~(cells > BLOCKED)
    free = cells[~blocked]
    low, high = (float(free.min()), float(free.max())) if free.size else (0.0, 0.0)
    scaled = (cells - low) / (high - low) if high > low else np.zeros_like(cells)
    levels = np.where(blocked, _BLOCKED_CELL, np.rint(np.where(blocked, 0.0, scaled) * 254)).astype(np.uint8)
    return {
        "at": [int(place) for place in at],
        "of": list(of),
        "rows": len(cells),
        "columns": cells.shape[1],
        "cells": base64.b64encode(levels.tobytes()).decode(),
        "low": low,
        "high": high,
        "blocked": bool(blocked.any()),
    }


def _evenly(size: int) -> np.ndarray:
    return np.unique(np.linspace(0, size - 1, min(size, MOST_CELLS)).round().astype(int))
