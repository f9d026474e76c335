"""The matrix as text: one row a model, one column an exporter, failures and totals beneath."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from models.cell import Cell, Note

LEGEND = (
    "Each cell: true / found / fused sites, max_rel of the whole model, kernels before → after "
    "(sites on attention kernels before → after; MB moved), seconds of fuse."
)


def is_unmet(note: Note) -> bool:
    """Whether a site that should be fused is not, one is fused that should not be, or a proof failed.

    What torch cannot export is a failure of the cell, though no one's promise; of what it exports and ONNX Runtime does not
    run, nothing can be proved, and every site has to be found.
    """
    failure = note["failure"]
    if failure is not None and failure["stage"] == "run":
        return bool(note["sites_read"] != note["true_sites"])
    if failure is not None and failure["stage"] != "land":
        return bool(failure["stage"] != "export")
    wanted = 0 if note["leave_alone"] else note["true_sites"]
    return bool(note["fused"] != wanted or not note["proof_ok"])


def _change(note: Note, what: str) -> str:
    before, after = (note.get(f"{what}_{moment}") for moment in ("before", "after"))
    return f"{'–' if before is None else before}→{'–' if after is None else after}"


def _compiled(note: Note) -> str:
    if not note["cell"]["land"] or "fused" not in note:
        return ""
    megabytes = [note.get(f"mb_{moment}") for moment in ("before", "after")]
    moved = "→".join("–" if value is None else f"{value:.4g}" for value in megabytes)
    return f"{_change(note, 'kernels')} ({_change(note, 'landed')}; {moved} MB)"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}"


def _entry(note: Note | None) -> str:
    if note is None:
        return ""
    if "fused" not in note:
        return f"**{note['failure']['stage']} failed**" if is_unmet(note) else f"no {note['failure']['stage']}"
    sites = f"{note['true_sites']}/{note['sites']}/{note['fused']}"
    if is_unmet(note):
        sites = f"**{sites}**"
    parts = (sites, _number(note["max_rel"]), _compiled(note), f"{note['seconds_sum']:.2f} s")
    return ", ".join(part for part in parts if part)


def stopped(note: Note) -> list[str]:
    """The stage that failed, and the files that do not compile, each with the reason."""
    failure = note["failure"]
    lines = [f"{failure['stage']}: {failure['reason']}"] if failure else []
    moments = [moment for moment in ("before", "after") if f"compile_{moment}" in note]
    return lines + [f"does not compile {moment}: {note[f'compile_{moment}']}" for moment in moments]


def _failures(notes: Iterable[Note]) -> list[str]:
    lines = []
    for note in notes:
        key = Cell(**note["cell"]).key
        lines += [f"- {key}: {reason}" for reason in stopped(note)]
        if note.get("refusals"):
            why = "as it should" if note["leave_alone"] and not is_unmet(note) else "should be fused"
            codes = ", ".join(f"{code} × {count}" for code, count in note["refusals"].items())
            lines.append(f"- {key}: refused: {codes} ({why})")
        elif is_unmet(note) and not note["failure"]:
            lines.append(f"- {key}: true {note['true_sites']}, found {note['sites']}, fused {note['fused']}")
    return lines


def _totals(notes: list[Note]) -> list[str]:
    done = [note for note in notes if "fused" in note]
    failed = Counter(note["failure"]["stage"] for note in notes if note["failure"])
    true, found, fused = (sum(note[key] for note in done) for key in ("true_sites", "sites", "fused"))
    alone = sum(note["true_sites"] for note in done if note["leave_alone"])
    lost = sum(note.get("true_sites", 0) for note in notes if "fused" not in note)
    read = sum(note.get("sites_read", 0) for note in notes)
    phases: Counter[str] = Counter()
    for note in done:
        phases.update(note["seconds"])
    model = max((note["max_rel"] for note in done if note["max_rel"] is not None), default=None)
    site = max((note["certificate_max_rel"] for note in done if note["certificate_max_rel"] is not None), default=None)
    lines = [
        f"- cells: {len(notes)}, unmet: {sum(map(is_unmet, notes))}, "
        f"failures: {', '.join(f'{stage} {count}' for stage, count in failed.items()) or 'none'}",
        f"- sites: true {true} (to be left alone {alone}), found {found}, fused {fused}; in cells that failed {lost}, "
        f"of which {read} were found in exports that ONNX Runtime does not run",
        f"- worst max_rel: model {_number(model)}, site {_number(site)}",
        f"- nodes: {sum(n['nodes_before'] for n in done)} → {sum(n['nodes_after'] for n in done)}",
        f"- seconds: {sum(phases.values()):.1f} ({', '.join(f'{phase} {phases[phase]:.1f}' for phase in phases)})",
    ]
    both = [note for note in done if "kernels_before" in note and "kernels_after" in note]
    if both:
        sums = {key: [sum(n[f"{key}_{m}"] or 0 for n in both) for m in ("before", "after")] for key in _COMPILED}
        text = ", ".join(f"{key} {before:g} → {after:g}" for key, (before, after) in sums.items())
        lines.append(f"- compiled before and after, {len(both)} cells: {text}")
    return lines


_COMPILED = ("kernels", "landed", "mb")


def table(notes: list[Note]) -> str:
    """The markdown of all cells."""
    by_place = {(Cell(**note["cell"]).row, Cell(**note["cell"]).column): note for note in notes}
    rows, columns = (list(dict.fromkeys(place[axis] for place in by_place)) for axis in (0, 1))
    lines = [LEGEND, "", f"| model | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    lines += [f"| {row} | {' | '.join(_entry(by_place.get((row, column))) for column in columns)} |" for row in rows]
    if failures := _failures(notes):
        lines += ["", "Not fused, or failed:", "", *failures]
    return "\n".join([*lines, "", "Totals:", "", *_totals(notes), ""])
