"""The table of targets as Markdown: `python -m onnx_attn.targets`."""

from __future__ import annotations

from onnx_attn.targets.editions import EVERY
from onnx_attn.targets.onnxruntime_speed import ITSELF, data
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
SPEED_HEADING = """\
## ONNX Runtime CPU: what is fastest

Blocks of float32 (LayerNorm, in-projection, attention, out-projection), each form's time as a ratio to the export's, run in turn;
`itself` is the export in a second session. Measured with onnxruntime {onnxruntime}, {machine}, {date}, by
`tools/runtime_forms.py`. A site is written in the way that is fastest for the nearest of them; where sizes vary, in the one that
is slower for none of those with such a mask and fastest in the mean, and
`contrib` for none with a mask.
"""
COLUMNS = ("form", "where", "outcome", "why", "way out", "evidence")


def page() -> str:
    """All of it."""
    return f"{markdown()}\n{speed_markdown()}\n{rotary_markdown()}"


def markdown() -> str:
    """One table an edition, one line a row, in the order in which the table is asked."""
    parts = [HEADING]
    for edition in EVERY:
        rows = [row for row in TABLE if edition in (*row.editions, *row.presumed)]
        parts.append(f"## {edition}\n\n{_line(COLUMNS)}\n{_line(['---'] * len(COLUMNS))}")
        parts[-1] += "".join(f"\n{_line(_cells(row, edition))}" for row in rows) + "\n"
    return "\n".join(parts)


def speed_markdown() -> str:
    """What `--target onnxruntime` chooses by, one line a block."""
    ways = sorted({way for row in data()["shapes"] for way in row["ratios"]} - {ITSELF})
    columns = ("batch × heads × queries × keys × head size", "mask", "ms", ITSELF, *ways)
    lines = [_line(columns), _line(["---"] * len(columns))]
    for row in data()["shapes"]:
        sizes = " × ".join(str(row[key]) for key in ("batch", "heads", "queries", "keys", "head_dim"))
        best = min(ratio for way, ratio in row["ratios"].items() if way != ITSELF)
        cells = [_ratio(row["ratios"].get(way), best) for way in (ITSELF, *ways)]
        sizes += ", varying" if row["dynamic"] else ""
        lines.append(_line((sizes, row["mask"], f"{row['milliseconds']:.3g}", *cells)))
    return SPEED_HEADING.format(**data()["measured"]) + "\n" + "\n".join(lines) + "\n"


def _ratio(ratio: float | None, best: float) -> str:
    """The fastest stands out; a form that cannot say the mask has none."""
    return "–" if ratio is None else f"**{ratio:.2f}**" if ratio == best else f"{ratio:.2f}"


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
    print(page(), end="")
