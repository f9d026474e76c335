"""The operators before → after, for people: those whose number changed, what changed most first."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from onnx_attn.domain import DOMAIN
from onnx_attn.report.lines import count, escape, say, show_table, table_of

MOST = 10
"""Operators that are named unless all are asked for; our functions in any case."""
OURS = f"{DOMAIN}."


def show_operators(stats: dict[str, Any] | None, console: Console, verbose: bool) -> None:
    if stats is None:
        return
    before, after = (stats[when]["by_operator"] for when in ("before", "after"))
    changed = {kind: after.get(kind, 0) - before.get(kind, 0) for kind in {**before, **after}}
    kinds = sorted((kind for kind, change in changed.items() if change), key=lambda kind: (-abs(changed[kind]), kind))
    if not kinds:
        return
    ours_first = sorted(kinds, key=lambda kind: not kind.startswith(OURS))
    shown = set(kinds if verbose else ours_first[:MOST])
    table = table_of("operator", ">before", ">after", ">change")
    for kind in filter(shown.__contains__, kinds):
        colour = "green" if changed[kind] < 0 else "yellow"
        row = (str(before.get(kind, 0)), str(after.get(kind, 0)), f"[{colour}]{changed[kind]:+d}[/]")
        table.add_row(escape(kind.removeprefix(OURS)), *row)
    show_table(table, console)
    if len(shown) < len(kinds):
        say(console, "", f"[dim]and {count(len(kinds) - len(shown), 'operator')} more: --verbose shows them[/]")
