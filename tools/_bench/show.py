"""What was measured, as Markdown: the summary for README, and the page with every model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from _bench import figures
from _bench.growth import growth
from _bench.inference import ITSELF
from _bench.measure import EXPORTED
from _bench.peers import OURS, TOOLS, YARDSTICK

Note = dict[str, Any]
NONE = "–"
_METHOD = Path(__file__).with_name("method.md")


def summary(found: Note) -> str:
    """One row a tool, and what it was measured on."""
    rows, about = found["models"]["rows"], found["models"]
    plain = [row for row in rows if not row["attention"]]
    ready = [row for row in rows if row["attention"]]
    heads = ["tool", "sites fused and right", "files with every site", "wrong results", "failures", "nodes"]
    heads += ["rewriting takes × ours (× our whole call)", "builds in TensorRT", "kernels", "bytes"]
    table = [heads]
    for key in figures.present(rows):
        if key != YARDSTICK:
            table.append([TOOLS[key].label, *_sums(plain, ready, key), *_costs(rows, key), *_engine(rows, key)])
    half = len(figures.compiled(rows))
    text = (
        f"{len(rows)} models, {sum(row['true_sites'] or 0 for row in rows)} sites; after the + those of {len(ready)} that hold "
        f"`Attention` operators already. {half} in half precision were compiled by {about['compiler']}. "
        "Nodes, kernels and bytes: geometric means against the model as exported; time: of models with attention."
    )
    missing = [TOOLS[key].label for key in figures.absent(rows)]
    lines = [text, "", _table(table), "", f"{versions(about)}."]
    return "\n".join([*lines, *([f"Not installed: {', '.join(missing)}."] if missing else [])])


def _sums(plain: Sequence[Note], ready: Sequence[Note], key: str) -> list[str]:
    first, second = figures.summed(plain, key), figures.summed(ready, key)
    sites = f"{first.sites} of {first.true}" + (f" + {second.sites} of {second.true}" if ready else "")
    some = sum(bool(row["true_sites"]) for row in (*plain, *ready))
    return [
        sites,
        f"{first.whole + second.whole} of {some}",
        str(first.wrong + second.wrong),
        str(first.failed + second.failed),
    ]


def _costs(rows: Sequence[Note], key: str) -> list[str]:
    nodes, takes, call = (
        figures.fewer_nodes(rows, key),
        figures.mean(figures.times(rows, key)),
        figures.mean(figures.times(rows, key, "call")),
    )
    shown = NONE if TOOLS[key].is_ours else f"{_number(takes)} ({_number(call)})"
    return ["×" + _number(nodes), shown]


def _engine(rows: Sequence[Note], key: str) -> list[str]:
    rows = figures.compiled(rows)
    done = sum(figures.built(row, key) for row in rows)
    ratios = [figures.engine_ratio(rows, key, what) for what in ("kernels", "moved_bytes")]
    return [f"{done} of {len(rows)}", *(NONE if ratio is None else f"×{ratio:.3f}" for ratio in ratios)]


def _number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3g}"


def _table(lines: Sequence[Sequence[str]]) -> str:
    head, *rest = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([head, f"|{'---|' * len(lines[0])}", *rest])


def versions(about: Note) -> str:
    """With what, where and when."""
    packages = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    compiler = f", {about['compiler']}" if about["compiler"] else ""
    told = f"{packages}{compiler}, Python {about['python']}; {about['machine']}; {about['date']}"
    again = [f"; {' and '.join(each['tools'])} once more on {each['date']}" for each in about.get("again", [])]
    return told + "".join(again)


def page(found: Note) -> str:
    """docs/peers.md."""
    rows, about = found["models"]["rows"], found["models"]
    parts = [
        "# Beside other tools",
        "Made by `python tools/bench.py -o DIR --docs docs --readme README.md` (needs the extras `tensorrt` and `bench`). Every "
        "tool rewrote every model in a process of its own, one at a time. Every figure is in [bench.json](peers/bench.json).",
        summary(found),
        "## Attention fused",
        "Attention nodes of each result, and all its nodes. **Bold**: an output is not the original's, or the result does not "
        "run. A failure is named.",
        "![sites fused and right](peers/sites.svg)",
        _by_model(rows, _sites, ["model", "nodes", "true sites"], lambda row: [str(row["nodes"]), _true(row)]),
        _failures(rows),
        "## Seconds of rewriting",
        f"Milliseconds, the best of {about['asked']['repeat']} in one process. onnx-attn: recognise, plan and apply; before "
        f"that, all that a call does, without and with proof. Load of the machine as it began: {about['load']:g} (what is "
        "above 0 is others' work).",
        "![times longer than onnx-attn](peers/seconds.svg)",
        _seconds(rows),
        *_compiled(rows),
        *_inference(rows),
        *growth(found),
        "## Where another tool is ahead",
        "\n".join(f"- {line}" for line in figures.ahead(rows)) or "Nowhere, on these models.",
        _METHOD.read_text(encoding="utf-8"),
    ]
    return "\n\n".join(part.strip() for part in parts if part) + "\n"


def _true(row: Note) -> str:
    ready = f" ({row['attention']} operators)" if row["attention"] else ""
    return ("?" if row["true_sites"] is None else str(row["true_sites"])) + ready


def _by_model(
    rows: Sequence[Note], cell: Callable[[Note, str], str], heads: Sequence[str], first: Callable[[Note], list[str]]
) -> str:
    tools = [key for key in figures.present(rows) if key != YARDSTICK]
    table = [[*heads, *(TOOLS[key].label for key in tools)]]
    table += [[row["file"], *first(row), *(cell(row, key) for key in tools)] for row in rows]
    return _table(table)


def _sites(row: Note, key: str) -> str:
    found = figures.told(row, key)
    if "failure" in found:
        return found["failure"].split(":")[0]
    text = f"{found['attention']} ({found['nodes']})"
    return f"**{text}**" if figures.is_wrong(row, key) else text


def _failures(rows: Sequence[Note]) -> str:
    lines = []
    for row in rows:
        for key in figures.present(rows):
            found = figures.told(row, key)
            why = found.get("failure") or (found.get("why") if figures.is_wrong(row, key) else None)
            if why and key != YARDSTICK:
                off = f" (max_rel {found['max_rel']:.1e})" if found.get("max_rel") else ""
                lines.append(f"- {row['file']}, {TOOLS[key].label}: {_words(why)}{off}")
    return "\n".join(["Wrong, or failed:", "", *lines]) if lines else ""


def _words(text: str) -> str:
    """One line of Markdown, whatever a tool said."""
    return " ".join(text.replace("|", "/").replace("<", "‹").replace("*", "∗").split())[:160]


def _seconds(rows: Sequence[Note]) -> str:
    def cell(row: Note, key: str) -> str:
        found = figures.told(row, key)
        return NONE if "failure" in found else f"{1e3 * found['seconds']:.3g}"

    def calls(row: Note) -> list[str]:
        found = figures.told(row, OURS)
        return [_milliseconds(found.get("call")), _milliseconds(found.get("proved"))]

    lines = [f"- {TOOLS[OURS].label}: {figures.memory(rows, OURS):,.0f} MB at most in the middle model"]
    for key in figures.present(rows):
        if not TOOLS[key].is_ours and (ratios := figures.times(rows, key)):
            lines.append(
                f"- {TOOLS[key].label}: × {figures.mean(ratios):.2f} of onnx-attn's (geometric mean; {min(ratios):.2f} to "
                f"{max(ratios):.2f}), × {figures.mean(figures.times(rows, key, 'call')):.2f} of its whole call without proof; "
                f"{figures.memory(rows, key):,.0f} MB at most in the middle model"
            )
    table = _by_model(rows, cell, ["model", "onnx-attn: whole call", "with proof"], calls)
    return "\n".join([*lines, "", table])


def _milliseconds(seconds: float | None) -> str:
    return NONE if seconds is None else f"{1e3 * seconds:.3g}"


def _compiled(rows: Sequence[Note]) -> list[str]:
    some = figures.compiled(rows)
    if not some:
        return []

    def cell(row: Note, key: str) -> str:
        found = row["compiled"].get(key)
        if found is None:
            return NONE
        if not found.get("built"):
            return "does not build" if found.get("parsed") else "does not parse"
        return f"{found['landed']} / {found['kernels']} / {found['moved_bytes'] / 1e6:.3g}"

    text = "Sites on attention kernels / kernels / MB moved. Every result was compiled, right or wrong."
    heads = ["model", "sites", "as exported"]
    return ["## In TensorRT", text, _by_model(some, cell, heads, lambda row: [_true(row), cell(row, EXPORTED)])]


def _inference(rows: Sequence[Note]) -> list[str]:
    some = figures.inferred(rows)
    if not some:
        return []

    def cell(row: Note, key: str) -> str:
        found = row["inference"]["ratios"].get(key)
        if found is None:
            return NONE
        return (
            "does not run"
            if "failure" in found
            else f"{found['median']:.2f} ({found['first']:.2f}–{found['third']:.2f})"
        )

    means = []
    for key in (ITSELF, *figures.present(rows)):
        ratios = [row["inference"]["ratios"].get(key, {}).get("median") for row in some]
        if known := [ratio for ratio in ratios if ratio]:
            label = "the original against itself" if key == ITSELF else TOOLS[key].label
            means.append(f"- {label}: × {figures.mean(known):.3f} (geometric mean of {len(known)} medians)")
    text = (
        "Time of a run after each tool, as a ratio to that of the original's run beside it: median, and the middle half. One "
        "thread, all optimizations of the session on. The original against itself, in a second session, shows the noise. Only "
        "right results of float32 models are run. Where a run takes less than a few milliseconds, it is mostly what a session "
        "costs beside its kernels."
    )
    heads = ["model", "ms", "itself"]
    table = _by_model(some, cell, heads, lambda row: [f"{row['inference']['milliseconds']:.3g}", cell(row, ITSELF)])
    return ["## Inference on the CPU", text, "![inference](peers/inference.svg)", "\n".join(means), table]
