"""The table of targets as Markdown: `python -m onnx_attn.targets`."""

from __future__ import annotations

from onnx_attn.targets.editions import EVERY
from onnx_attn.targets.rotary import ROTARY, RotaryRow
from onnx_attn.targets.rows import Row
from onnx_attn.targets.table import TABLE

HEADING = """\
# What each runtime takes of an attention site

Made by `python -m onnx_attn.targets`. *lands*: on an attention kernel; *costs*: on one, at more kernels than plain operators;
*runs*: taken, without one; *rejected*: parsing, building or loading fails; *wrong*: accepted, and something else is computed.
Rows that say "measured" are measured again by the tests; what was not tried itself is named as presumed.
"""
ROTARY_HEADING = """\
# What each runtime takes of a RotaryEmbedding operator

*runs*: taken; *costs*: taken, and at more bytes than plain nodes.
"""
COLUMNS = ("form", "where", "outcome", "why", "way out", "evidence")


def markdown() -> str:
    """One table an edition, one line a row, in the order in which the table is asked."""
    parts = [HEADING]
    for edition in EVERY:
        rows = [row for row in TABLE if edition in (*row.editions, *row.presumed)]
        parts.append(f"## {edition}\n\n{_line(COLUMNS)}\n{_line(['---'] * len(COLUMNS))}")
        parts[-1] += "".join(f"\n{_line(_cells(row, edition))}" for row in rows) + "\n"
    return "\n".join(parts)


def rotary_markdown() -> str:
    """The same of rotary embeddings."""
    parts = [ROTARY_HEADING]
    for edition in EVERY:
        rows = [row for row in ROTARY if edition in (*row.editions, *row.presumed)]
        columns = [column for column in COLUMNS if column not in ("form", "way out")]
        parts.append(f"## {edition}: rotary embeddings\n\n{_line(columns)}\n{_line(['---'] * len(columns))}")
        parts[-1] += "".join(f"\n{_line(_facts(row, edition))}" for row in rows) + "\n"
    return "\n".join(parts)


def _cells(row: Row, edition: str) -> tuple[str, ...]:
    where, outcome, reason, evidence = _facts(row, edition)
    return ", ".join(row.forms), where, outcome, reason, row.remedy or "", evidence


def _facts(row: Row | RotaryRow, edition: str) -> tuple[str, str, str, str]:
    """Where a row holds, its outcome, the reason and the evidence."""
    where = ", ".join(f"`{fact}` {condition}" for fact, condition in row.when.items())
    evidence = f"{row.evidence}; presumed here" if edition in row.presumed else str(row.evidence)
    return where or "always", row.outcome, row.reason, evidence


def _line(cells: tuple[str, ...] | list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    print(f"{markdown()}\n{rotary_markdown()}", end="")
