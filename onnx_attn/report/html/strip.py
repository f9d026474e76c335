"""A long row of things as a strip of coloured stretches, at most so many: the nodes of a model, the kernels of an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

MOST_STRETCHES = 500


@dataclass(frozen=True)
class Piece:
    """One of the row: its size along the strip, what it is (a class of the page's style), and what is said of it."""

    size: float
    kind: str
    title: str = ""
    link: str = ""


def stretches(pieces: Sequence[Piece], whole: float) -> list[dict[str, object]]:
    """Pieces as `left` and `width` in percent of `whole`. Of a row with too many, neighbours that would be too narrow to be
    seen are drawn as the widest of them; those with a link never are."""
    least = whole / MOST_STRETCHES if len(pieces) > MOST_STRETCHES else 0.0
    found: list[dict[str, object]] = []
    start = 0.0
    held: list[Piece] = []
    for number, piece in enumerate(pieces):
        held.append(piece)
        size = sum(each.size for each in held)
        last = number + 1 == len(pieces)
        if size >= least or piece.link or last or pieces[number + 1].link:
            shown = next((each for each in held if each.link), max(held, key=lambda each: each.size))
            found.append(
                {
                    "left": round(100 * start / whole, 4) if whole else 0.0,
                    "width": round(100 * size / whole, 4) if whole else 0.0,
                    "kind": shown.kind,
                    "title": shown.title,
                    "link": shown.link,
                }
            )
            start, held = start + size, []
    return found
