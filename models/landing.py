"""What the compiler makes of the references, as text: one row a model, one column an exporter, means beneath.

Reads the notes of cells that were compiled as exported and fused (`cell.py`), and flags what fusing made worse.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from models.cell import Cell, Note
from models.table import stopped

LEGEND = (
    "Half precision, static shapes, batch 1 (2 where the input is a sequence). Each cell: sites on MHA kernels / kernels / "
    "MB moved, as exported → fused (one number where both are the same; – does not compile)."
)
MARKS = "<!-- landing -->", "<!-- /landing -->"
"""The lines of a document between which the table stands."""

_EXPORTERS = {"torchscript": "TorchScript", "dynamo": "dynamo"}
_LONGEST = 160
"""Characters of a reason: what torch and the compiler say of a failure can fill a page."""
_FOLDERS = re.compile(r"(?:/[\w.+-]+)+/(?=[\w.+-]+\.(?:onnx|py|so|json)\b)")
"""Where a file lies: names of nodes have slashes too, and no such endings."""
_SCALE = 4
"""Bytes of a site's scale, which the compiler may keep apart where it stands."""
_MEASURES = {"kernels": "kernels", "bytes": "bytes moved"}


def _pair(note: Note, what: str) -> tuple[int | None, int | None]:
    return note.get(f"{what}_before"), note.get(f"{what}_after")


def _both(notes: Iterable[Note], what: str) -> list[tuple[int, int]]:
    """The measure as exported and fused, of all cells that have it both ways."""
    pairs = (_pair(note, what) for note in notes)
    return [(before, after) for before, after in pairs if before is not None and after is not None]


def worse(note: Note) -> list[str]:
    """What fusing made worse in this cell: more kernels, more bytes for as many, fewer sites landed, no engine any more."""
    if "compile_after" in note and "compile_before" not in note:
        return [f"compiles as exported and not fused: {_reason(note['compile_after'])}"]
    lines = _more(note, "kernels") + ([] if _fewer_kernels(note) else _more(note, "bytes"))
    return lines + [f"sites landed {before} → {after}" for before, after in _both([note], "landed") if after < before]


def traded(note: Note) -> list[str]:
    """Fewer kernels that move more bytes, as the compiler counts them: a tensor whole, of which a kernel may read a part."""
    kernels = [f"kernels {before} → {after}" for before, after in _both([note], "kernels")]
    return [f"{kernels[0]}, {more}" for more in _more(note, "bytes")] if _fewer_kernels(note) else []


def _more(note: Note, what: str) -> list[str]:
    allowed = _SCALE * note.get("true_sites", 0) if what == "bytes" else 0
    text = _MEASURES[what]
    return [f"{text} {before:,} → {after:,}" for before, after in _both([note], what) if after > before + allowed]


def _fewer_kernels(note: Note) -> bool:
    return any(after < before for before, after in _both([note], "kernels"))


def is_broken(note: Note) -> bool:
    """Whether the cell breaks a promise: fusing made it worse, or a stage failed that is not of torch and its files."""
    return bool(worse(note)) or (note["failure"] is not None and note["failure"]["stage"] not in ("export", "run"))


def _megabytes(value: int | None) -> str | None:
    if value is None:
        return None
    return f"{value / 1e6:.0f}" if value >= 100e6 else f"{value / 1e6:.3g}"


def _change(before: object, after: object) -> str:
    first, second = ("–" if value is None else str(value) for value in (before, after))
    return first if first == second else f"{first} → {second}"


def _entry(note: Note | None) -> str:
    if note is None:
        return ""
    if note["failure"] is not None:
        return f"no {note['failure']['stage']}"
    before, after = map(_megabytes, _pair(note, "bytes"))
    text = " / ".join((_change(*_pair(note, "landed")), _change(*_pair(note, "kernels")), _change(before, after)))
    return f"**{text}**" if worse(note) else text


def _reason(text: str) -> str:
    """One line without folders of the machine, cut to what a reader needs."""
    line = _FOLDERS.sub("", " ".join(text.split()))
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST].rstrip()} …"


def _row(cell: Cell) -> str:
    return f"{cell.name} (eager)" if cell.attn == "eager" else cell.name


def _label(cell: Cell) -> str:
    return f"{_EXPORTERS[cell.exporter]} {cell.opset}"


def _mean(pairs: list[tuple[int, int]]) -> str:
    """The geometric mean of the ratios."""
    ratios = [math.log(after / before) for before, after in pairs if before and after]
    return f"× {math.exp(sum(ratios) / len(ratios)):.3f}" if ratios else "–"


def _totals(notes: list[Note]) -> list[str]:
    both = [note for note in notes if "kernels_before" in note and "kernels_after" in note]
    landed = [sum(note.get(f"landed_{moment}") or 0 for note in notes) for moment in ("before", "after")]
    kernels = [sum(column) for column in zip(*_both(both, "kernels"), strict=True)] or [0, 0]
    means = ", ".join(f"{text} {_mean(_both(both, what))}" for what, text in _MEASURES.items())
    return [
        f"- {len(both)} of {len(notes)} cells compile both ways; geometric means, fused against exported: {means}",
        f"- sites on MHA kernels, all cells: {landed[0]} → {landed[1]} of {sum(note['true_sites'] for note in notes)}; "
        f"kernels where both compile: {kernels[0]} → {kernels[1]}",
    ]


def _listed(heading: str, notes: Iterable[tuple[Cell, list[str]]]) -> list[str]:
    lines = [f"- {_row(cell)}, {_label(cell)}: {_reason(text)}" for cell, texts in notes for text in texts]
    return ["", heading, "", *lines] if lines else []


def _versions(notes: list[Note]) -> str:
    """Every version that took part: cells may stem from several runs."""
    known: dict[str, set[str]] = {}
    for note in notes:
        for name, version in note.get("versions", {}).items():
            known.setdefault(name, set()).add(version)
    parts = (f"{'' if name == 'compiler' else name + ' '}{' and '.join(sorted(known[name]))}" for name in known)
    return ", ".join(parts)


def landing_table(notes: list[Note], date: str) -> str:
    """The markdown of all cells of models that have attention."""
    notes = [note for note in notes if note.get("true_sites", 0)]
    cells = [Cell(**note["cell"]) for note in notes]
    by_place = {(_row(cell), _label(cell)): note for cell, note in zip(cells, notes, strict=True)}
    rows, columns = (list(dict.fromkeys(place[axis] for place in by_place)) for axis in (0, 1))
    lines = [LEGEND, "", f"| model | sites | {' | '.join(columns)} |", f"|---|---|{'---|' * len(columns)}"]
    for row in rows:
        found = [by_place.get((row, column)) for column in columns]
        sites = max(note["true_sites"] for note in found if note is not None)
        lines.append(f"| {row} | {sites} | {' | '.join(map(_entry, found))} |")
    lines += ["", *_totals(notes)]
    told = list(zip(cells, notes, strict=True))
    lines += _listed("**Worse than exported:**", [(cell, worse(note)) for cell, note in told])
    lines += _listed("Fewer kernels, more bytes moved:", [(cell, traded(note)) for cell, note in told])
    lines += _listed("Not exported, or not compiled:", [(cell, stopped(note)) for cell, note in told])
    targets = ", ".join(f"SM{sm}" for sm in sorted({cell.sm for cell in cells}))
    return "\n".join([*lines, "", f"{_versions(notes)}; {targets}; {date}.", ""])


def with_table(document: str, table: str, marks: tuple[str, str] = MARKS) -> str:
    """The document with the table between its two marks. Raises ValueError where it has not one of each, in order."""
    start, end = marks
    lines = [line.strip() for line in document.splitlines()]
    if lines.count(start) != 1 or lines.count(end) != 1 or lines.index(start) > lines.index(end):
        raise ValueError(f"needs one line {start} and, after it, one line {end}")
    whole = document.splitlines(keepends=True)
    return "".join([*whole[: lines.index(start) + 1], f"\n{table.strip()}\n\n", *whole[lines.index(end) :]])
