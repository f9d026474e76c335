"""What the measured rows come to: sums and means for each tool, and where another tool is ahead of ours."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from _bench.measure import EXPORTED, sites_right
from _bench.peers import OPTIMIZER, OURS, OURS_RUNTIME, REWRITER, TOOLS, YARDSTICK

Note = dict[str, Any]

GOAL = 3.0
"""How many times faster than others that look for attention the rewriting is to be."""


@dataclass(frozen=True)
class Sum:
    """One tool over some models. sites: fused and right; true: of the files that it could run.

    whole: files of which every site is. wrong: results that do not run or give other outputs, or fuse what is no attention.
    """

    files: int
    run: int
    sites: int
    true: int
    whole: int
    wrong: int
    failed: int


def present(rows: Sequence[Note]) -> list[str]:
    """The tools that were installed, in order."""
    return [key for key in TOOLS if any(told(row, key).get("failure") != "not installed" for row in rows)]


def absent(rows: Sequence[Note]) -> list[str]:
    """Those that were asked for and are not installed."""
    asked = {key for row in rows for key in row["tools"]}
    return [key for key in TOOLS if key in asked and key not in present(rows)]


def told(row: Note, key: str) -> Note:
    """What came of a model and a tool."""
    found: Note = row["tools"].get(key, {"failure": "not installed"})
    return found


def ran(row: Note, key: str) -> bool:
    return "failure" not in told(row, key)


def is_wrong(row: Note, key: str) -> bool:
    """Whether the result is not what the original was. One that takes something for attention is not either."""
    found = told(row, key)
    more = row["true_sites"] == 0 and found.get("attention", 0) > 0
    return ran(row, key) and (found["right"] is False or more)


def right(row: Note, key: str) -> int:
    return sites_right(told(row, key), row["true_sites"])


def summed(rows: Sequence[Note], key: str) -> Sum:
    """Over models whose true sites are known."""
    rows = [row for row in rows if row["true_sites"] is not None]
    done = [row for row in rows if ran(row, key)]
    some = [row for row in done if row["true_sites"]]
    return Sum(
        len(rows),
        len(done),
        sum(right(row, key) for row in done),
        sum(row["true_sites"] for row in done),
        sum(right(row, key) == row["true_sites"] for row in some),
        sum(is_wrong(row, key) for row in done),
        len(rows) - len(done),
    )


def mean(ratios: Iterable[float]) -> float | None:
    """The geometric mean."""
    logs = [math.log(ratio) for ratio in ratios]
    return math.exp(sum(logs) / len(logs)) if logs else None


def times(rows: Sequence[Note], key: str, what: str = "seconds") -> list[float]:
    """How many times longer than ours the tool took, for each model with attention that both ended with.

    what: of ours, `seconds` to recognise, plan and apply, or `call`, all that a call without proof does.
    """
    both = [row for row in rows if ran(row, key) and ran(row, OURS) and row["true_sites"] != 0]
    return [told(row, key)["seconds"] / told(row, OURS)[what] for row in both]


def memory(rows: Sequence[Note], key: str) -> float:
    """The median over models of the most MB that the tool's process had."""
    return statistics.median([told(row, key)["peak"] for row in rows if ran(row, key)] or [float("nan")])


def fewer_nodes(rows: Sequence[Note], key: str) -> float | None:
    return mean(told(row, key)["nodes"] / row["nodes"] for row in rows if ran(row, key) and told(row, key)["nodes"])


def compiled(rows: Sequence[Note]) -> list[Note]:
    return [row for row in rows if "compiled" in row]


def built(row: Note, key: str) -> bool:
    return bool(row["compiled"].get(key, {}).get("built"))


def engine_ratio(rows: Sequence[Note], key: str, what: str) -> float | None:
    """Kernels or bytes as ratios to those of the model as exported, where both build."""
    both = [row["compiled"] for row in compiled(rows) if built(row, key) and built(row, EXPORTED)]
    return mean(each[key][what] / each[EXPORTED][what] for each in both)


def inferred(rows: Sequence[Note]) -> list[Note]:
    return [row for row in rows if "ratios" in row.get("inference", {})]


def ahead(rows: Sequence[Note]) -> list[str]:
    """Where another tool is ahead of ours, as lines."""
    peers = [key for key in present(rows) if not TOOLS[key].is_ours and key != YARDSTICK]
    lines = [line for row in rows for key in peers for line in _ahead(row, key)]
    wrong = [row["file"] for row in rows if is_wrong(row, OURS)]
    return [f"{file}: our own result is wrong" for file in wrong] + _faster(rows, peers) + _smaller(rows, peers) + lines


def _faster(rows: Sequence[Note], peers: Sequence[str]) -> list[str]:
    """Of those that look for attention, what is below the goal; of others, what is faster than ours."""
    lines = []
    for key in peers:
        takes, whole = mean(times(rows, key)), mean(times(rows, key, "call"))
        wanted = GOAL if key in (OPTIMIZER, REWRITER) else 1.0
        if takes is not None and whole is not None and min(takes, whole) < wanted:
            goal = f"; the goal is {GOAL:g}" if wanted == GOAL else ""
            lines.append(
                f"{TOOLS[key].label} takes {takes:.2f} × the time of recognising, planning and applying, {whole:.2f} × that of "
                f"our whole call without proof{goal}"
            )
    return lines


def _smaller(rows: Sequence[Note], peers: Sequence[str]) -> list[str]:
    """Which leave fewer nodes, where what they wrote is right."""
    lines = []
    for key in peers:
        both = [row for row in rows if ran(row, key) and ran(row, OURS) and told(row, key)["right"]]
        fewer = sum(told(row, key)["nodes"] < told(row, OURS)["nodes"] for row in both)
        if fewer:
            lines.append(f"{TOOLS[key].label} leaves fewer nodes in {fewer} of {len(both)} models")
    return lines


def _ahead(row: Note, key: str) -> Iterable[str]:
    name, file = TOOLS[key].label, row["file"]
    if right(row, key) > right(row, OURS):
        yield f"{file}: {name} fuses {right(row, key)} sites, onnx-attn {right(row, OURS)}"
    if "compiled" in row and built(row, key):
        theirs, ours = row["compiled"][key], row["compiled"].get(OURS, {})
        if not ours.get("built"):
            yield f"{file}: builds after {name}, and not after onnx-attn"
        else:
            for what, text in (("kernels", "kernels"), ("moved_bytes", "bytes")):
                if theirs[what] < ours[what]:
                    yield f"{file}: {theirs[what]:,} {text} after {name}, {ours[what]:,} after onnx-attn"
    ratios = row.get("inference", {}).get("ratios", {})
    theirs, ours = ratios.get(key, {}), ratios.get(OURS_RUNTIME, {})
    if "median" in theirs and "median" in ours and theirs["third"] < ours["first"]:
        yield (
            f"{file}: ONNX Runtime takes {theirs['median']:.2f} of the original's time after {name}, "
            f"{ours['median']:.2f} after onnx-attn"
        )
