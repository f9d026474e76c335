"""A map cut into windows, as a picture: the colour of each place says which window it falls into."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

MOST_PLACES = 96
"""A side; a larger map is shown as its first so many places."""
_FIRST, _PADDING = 4, 5


def window_picture(window: dict[str, Any] | None) -> dict[str, Any] | None:
    """Rows, columns and cells (base64): 0 to 3 by whether a place's window has an odd row and an odd column, 4 for the first
    window (cut in pieces where the map is rolled), 5 for padding. `window` as in a report; None for maps of more than two
    axes."""
    if window is None or len(window["size"]) > 2:
        return None
    axes = [_axis(*each) for each in zip(*(window[key] for key in ("size", "shift", "grid")), strict=True)]
    axes = axes if len(axes) == 2 else [np.zeros(1, int), *axes]
    padding = window["padding"] if len(window["padding"]) == 2 else [[0, 0], *window["padding"]]
    if window["kind"] == "grid":
        axes = [np.arange(len(axis)) % max(axis.max() + 1, 1) for axis in axes]
    rows, columns = (axis[:MOST_PLACES] for axis in axes)
    cells = (rows[:, None] % 2) * 2 + columns[None, :] % 2
    cells[(rows == 0)[:, None] & (columns == 0)[None, :]] = _FIRST
    for axis, (front, back) in enumerate(padding):
        size = len(axes[axis])
        padded = np.r_[np.ones(front, bool), np.zeros(size - front - back, bool), np.ones(back, bool)][:MOST_PLACES]
        cells[padded if axis == 0 else (slice(None), padded)] = _PADDING
    code = base64.b64encode(cells.astype(np.uint8).tobytes()).decode()
    return {"rows": len(rows), "columns": len(columns), "cells": code, "padded": bool((cells == _PADDING).any())}


def _axis(size: int, shift: int, grid: int) -> np.ndarray:
    """Along one axis, the window of each place of the map as it is: it is rolled by −shift before it is cut."""
    return (np.arange(size * grid) - shift) % (size * grid) // size
