"""Weights that are computed in float64 and rounded once, piece by piece: a group of them may be of gigabytes in its own type."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import ml_dtypes
import numpy as np

ELEMENTS = 2**18
"""Of a piece: 2 MB in float64, of which there are a few at a time."""

Exact = Callable[[], np.ndarray]
"""Computes a weight in float64: kept as a way to it, not as numbers, since few are asked for at a time."""

Place = tuple[slice, ...]
Pieces = Callable[[], Iterator[tuple[Place, np.ndarray]]]
"""A weight in float64, by pieces and where they lie (rows, columns). Of two at one place the later counts, the other is zeros.
What is as the model stores it may come in the model's type."""


class RoundsBadlyError(ArithmeticError):
    """New weights do not fit the model's type."""


def row_slices(rows: int, columns: int) -> list[slice]:
    """All rows, a piece at a time."""
    step = max(1, ELEMENTS // max(1, columns))
    return [slice(first, min(first + step, rows)) for first in range(0, rows, step)]


def assembled(shape: tuple[int, ...], pieces: Pieces) -> np.ndarray:
    """All of a weight in float64."""
    whole = np.zeros(shape)
    for place, piece in pieces():
        whole[place] = piece
    return whole


def rounded(shape: tuple[int, ...], pieces: Pieces, dtype: np.dtype, hint: str) -> np.ndarray:
    """A weight in the model's type. Raises RoundsBadlyError where that cannot hold it to its own precision.

    Column by column: a channel whose weights overflow, or sink below the smallest normal number, is lost in a sum.
    """
    found = np.zeros(shape, dtype)
    lost, norm = np.zeros(shape[1:]), np.zeros(shape[1:])
    for place, wide in pieces():
        if wide.dtype == dtype:
            found[place] = wide
            continue
        with np.errstate(over="ignore"):
            piece = wide.astype(dtype)
        columns = place[1:]
        lost[columns] += ((wide - piece.astype(np.float64)) ** 2).sum(axis=0)
        norm[columns] += (wide**2).sum(axis=0)
        found[place] = piece
    if not (np.sqrt(lost) <= ml_dtypes.finfo(dtype).eps * np.sqrt(norm)).all():
        raise RoundsBadlyError(f"{hint} cannot be held in {dtype}")
    return found
