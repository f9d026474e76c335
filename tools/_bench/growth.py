"""How time and memory of rewriting grow, as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from _bench.peers import OURS, TOOLS, YARDSTICK
from _bench.scale import slope

Note = dict[str, Any]

LEAST = 2_000
"""Nodes below which what every run costs hides how time grows."""


def growth(found: Note) -> list[str]:
    """Both tables, as far as they were measured."""
    parts: list[str] = []
    if "nodes" in found:
        rows = found["nodes"]["rows"]
        parts += [
            "## As models grow in nodes",
            "One attention block as torch exported it, again and again. Seconds of rewriting / MB at most (the process, "
            f"imports included), one run each, stopped after {found['nodes']['asked']['timeout']:g} s; results not judged. "
            + _when(found["nodes"]),
            "![time and memory against nodes](peers/nodes.svg)",
            _table(rows, "nodes", "nodes"),
            _slopes(rows),
        ]
    if "weights" in found:
        parts += [
            "## As models grow in weights",
            "Eight blocks and an embedding, weights in a data file (`tools/large.py` makes them). The same measures. "
            "onnx-attn is asked for the model in memory, as the others are; where it writes a file, weights stay in theirs "
            "until a site needs them. onnxscript reads weights when they are needed. " + _when(found["weights"]),
            _table(found["weights"]["rows"], "megabytes", "MB of weights"),
        ]
    return parts


def _when(about: Note) -> str:
    return f"{about['date']}, load of the machine as it began {about['load']:g}."


def tools(rows: Sequence[Note]) -> list[str]:
    return [
        key
        for key in TOOLS
        if any(row["tools"].get(key, {}).get("failure") != "not installed" for row in rows)
        and any(key in row["tools"] for row in rows)
    ]


def points(rows: Sequence[Note], size: str, key: str, what: str = "seconds") -> tuple[list[float], list[float]]:
    """Sizes and what a tool took for them, where it came to an end."""
    done = [row for row in rows if what in row["tools"].get(key, {})]
    return [row[size] for row in done], [row["tools"][key][what] for row in done]


def _table(rows: Sequence[Note], size: str, head: str) -> str:
    keys = tools(rows)
    lines = [f"| {head} | sites | {' | '.join(TOOLS[key].label for key in keys)} |", f"|{'---|' * (len(keys) + 2)}"]
    lines += [
        f"| {row[size]:,.0f} | {row['sites']:,} | {' | '.join(_cell(row['tools'][key]) for key in keys)} |"
        for row in rows
    ]
    return "\n".join(lines)


def _cell(told: Note) -> str:
    if "failure" in told:
        return told["failure"].split(":")[0]
    return f"{told['seconds']:.3g} / {told['peak']:,.0f}"


def _slopes(rows: Sequence[Note]) -> str:
    """The exponents, what the largest costs a node, and ours as a ratio to graphsurgeon's import and export."""
    large = [row for row in rows if row["nodes"] >= LEAST]
    lines = []
    for key in tools(rows):
        sizes, seconds = points(large, "nodes", key)
        exponent = slope(sizes, seconds)
        if exponent is not None:
            each = 1e6 * seconds[-1] / sizes[-1]
            lines.append(
                f"- {TOOLS[key].label}: time grows with nodes to the power {exponent:.2f}; "
                f"{each:,.0f} µs a node at {sizes[-1]:,.0f}"
            )
    ratios = [
        f"{row['tools'][OURS]['seconds'] / row['tools'][YARDSTICK]['seconds']:.2f} at {row['nodes']:,}"
        for row in rows
        if "seconds" in row["tools"].get(OURS, {}) and "seconds" in row["tools"].get(YARDSTICK, {})
    ]
    if ratios:
        lines.append(
            f"- onnx-attn's time as a ratio to graphsurgeon's import and export of the same graph: {', '.join(ratios)}"
        )
    calls = [f"{call:.3g} s at {nodes:,.0f}" for nodes, call in zip(*points(large, "nodes", OURS, "call"), strict=True)]
    if calls:
        lines.append(
            f"- onnx-attn's whole call without proof (with reading, statistics and the report): {', '.join(calls)}"
        )
    return "\n".join(lines)
