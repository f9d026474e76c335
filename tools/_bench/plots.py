"""The plots of docs/peers.md, drawn by matplotlib: the same figures give the same bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from _bench import figures
from _bench.growth import points, tools
from _bench.inference import ITSELF
from _bench.peers import OURS, TOOLS, YARDSTICK
from onnx_attn.errors import OnnxAttnError

Note = dict[str, Any]

STYLE = {
    "svg.fonttype": "none",  # Text stays text.
    "svg.hashsalt": "onnx-attn",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
}
COLOURS = dict(
    zip(TOOLS, ("#b5179e", "#f08fd8", "#1f6fb4", "#6fb1e0", "#2a9d54", "#c98a00", "#8a6d3b", "#888888"), strict=True)
)


def _library() -> Any:
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise OnnxAttnError(
            f"{error.name} is not installed; install the extra: pip install '.[bench]', or leave --docs out"
        ) from error
    matplotlib.use("svg")
    from matplotlib import pyplot

    return pyplot


def draw(found: Note, folder: Path) -> None:
    """Write every plot there is something for. Raises OnnxAttnError without matplotlib."""
    pyplot = _library()
    folder.mkdir(parents=True, exist_ok=True)
    rows = found["models"]["rows"]
    with pyplot.rc_context(STYLE):
        _write(pyplot, _sites(pyplot, rows), folder / "sites.svg")
        _write(pyplot, _seconds(pyplot, rows), folder / "seconds.svg")
        if some := figures.inferred(rows):
            _write(pyplot, _inference(pyplot, some), folder / "inference.svg")
        if "nodes" in found:
            _write(pyplot, _nodes(pyplot, found["nodes"]["rows"]), folder / "nodes.svg")


def _write(pyplot: Any, figure: Any, path: Path) -> None:
    figure.savefig(path, format="svg", metadata={"Date": None})
    pyplot.close(figure)


def _peers(rows: Sequence[Note]) -> list[str]:
    return [key for key in figures.present(rows) if key != YARDSTICK]


def _sites(pyplot: Any, rows: Sequence[Note]) -> Any:
    """One bar a tool: fused and right, of all."""
    keys = _peers(rows)[::-1]
    figure, axes = pyplot.subplots(figsize=(6.4, 0.4 * len(keys) + 0.9))
    sums = [figures.summed(rows, key) for key in keys]
    total = sum(row["true_sites"] or 0 for row in rows)
    bars = axes.barh(
        [TOOLS[key].label for key in keys], [each.sites for each in sums], color=[COLOURS[key] for key in keys]
    )
    axes.bar_label(
        bars,
        [f"{each.sites}" + (f"; models with a wrong result: {each.wrong}" if each.wrong else "") for each in sums],
        padding=3,
    )
    axes.axvline(total, color="#444444", linewidth=0.8, linestyle=":")
    axes.set_xlim(0, total * 1.3)
    axes.set_xlabel(f"attention sites written as one node and right, of {total} in {len(rows)} models")
    return figure


def _seconds(pyplot: Any, rows: Sequence[Note]) -> Any:
    """One dot a model: how many times as long as ours a tool takes."""
    keys = [key for key in figures.present(rows) if not TOOLS[key].is_ours][::-1]
    figure, axes = pyplot.subplots(figsize=(6.4, 0.4 * len(keys) + 1.0))
    for place, key in enumerate(keys):
        ratios = figures.times(rows, key)
        axes.plot(ratios, [place] * len(ratios), "o", color=COLOURS[key], alpha=0.45, markersize=4, markeredgewidth=0)
        if ratios:
            axes.plot([figures.mean(ratios)], [place], "|", color="black", markersize=16)
    axes.axvline(1, color="#444444", linewidth=0.8)
    axes.axvline(figures.GOAL, color="#444444", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(keys)), [TOOLS[key].label for key in keys])
    axes.set_ylim(-0.6, len(keys) - 0.4)
    axes.set_xscale("log")
    ticks = [0.1, 0.3, 1, 3, 10, 30, 100]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("time of rewriting ÷ onnx-attn's; a dot a model, bars geometric means")
    return figure


def _inference(pyplot: Any, rows: Sequence[Note]) -> Any:
    """For every tool the medians of all models, each with its middle half, beside the original against itself."""
    keys = [ITSELF, *_peers(rows)][::-1]
    figure, axes = pyplot.subplots(figsize=(6.4, 0.5 * len(keys) + 0.9))
    for place, key in enumerate(keys):
        told = [row["inference"]["ratios"].get(key, {}) for row in rows]
        some = sorted((each for each in told if "median" in each), key=lambda each: each["median"])
        colour = "#444444" if key == ITSELF else COLOURS[key]
        heights = [place + 0.7 * (number / max(1, len(some) - 1) - 0.5) for number in range(len(some))]
        lines = [end for each in some for end in (each["first"], each["third"], math.nan)]  # One path, with gaps.
        ends = [height for height in heights for _ in range(3)]
        axes.plot(lines, ends, color=colour, linewidth=0.8, alpha=0.5)
        axes.plot([each["median"] for each in some], heights, "o", color=colour, markersize=2.5, markeredgewidth=0)
    axes.axvline(1, color="#444444", linewidth=0.8)
    axes.set_yticks(range(len(keys)), ["the original again" if key == ITSELF else TOOLS[key].label for key in keys])
    axes.set_xscale("log")
    axes.set_xlim(0.4, 2.5)
    ticks = [0.5, 0.7, 1.0, 1.4, 2.0]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlabel("time of a run ÷ the original's; a dot a model, a line its middle half")
    return figure


def _nodes(pyplot: Any, rows: Sequence[Note]) -> Any:
    """Seconds and memory against nodes."""
    figure, both = pyplot.subplots(1, 2, figsize=(7.6, 3.4))
    for axes, what, label in zip(both, ("seconds", "peak"), ("seconds of rewriting", "MB at most"), strict=True):
        for key in tools(rows):
            sizes, values = points(rows, "nodes", key, what)
            style = {"color": COLOURS[key], "label": TOOLS[key].label, "linewidth": 2.0 if key == OURS else 1.0}
            axes.plot(sizes, values, "o-", markersize=3, **style)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("nodes")
        axes.set_title(label, fontsize=9)
    both[0].legend(frameon=False, fontsize=7)
    return figure
