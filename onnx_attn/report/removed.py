"""One line of `fuse` for people: what is gone from the graph."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from onnx_attn.report.lines import count, say


def show_removed(stats: dict[str, Any] | None, console: Console) -> None:
    """`counts  12 attentions of 5 operations → 1; 268 → 136 nodes of movement; 44.7 MB of scores no longer written out`."""
    if stats is None or stats["before"] == stats["after"] or not stats["before"]["operations_exposed"]:
        return
    before, after, removed = stats["before"], stats["after"], stats["removed"]
    number = len(before["operations_exposed"])
    parts = [
        f"{count(number, 'attention')} of {exposed_line(before['operations_exposed'])} → "
        f"{exposed_line(after['operations_exposed'])} operations",
        f"movement {before['by_role']['movement']} → {after['by_role']['movement']} nodes",
    ]
    if removed["scores"]:
        parts.append(f"{megabytes(removed['scores'])} of scores no longer written out")
    say(console, "counts", "; ".join(parts))


def exposed_line(operations: list[int]) -> str:
    """How many operations sites are: `5`, or `6 to 9`."""
    least, most = min(operations, default=0), max(operations, default=0)
    return str(least) if least == most else f"{least} to {most}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.4g} MB"
