"""Time and memory of rewriting as models grow: in nodes (a block as torch exported it, again and again), and in weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import large
import onnx
from onnx import compose

from _bench.apart import one
from _bench.files import EXPORTS
from _bench.measure import Asked
from _bench.peers import Tool

BLOCK = EXPORTS / "handwritten_no_bias.torchscript.17.static.onnx"
NODES = (1_000, 3_000, 10_000, 30_000, 100_000)
WIDTHS = (256, 512, 1024)
"""Of the model of tools/large.py: eight blocks, weights by the square of this."""
LAYERS = 8

Row = dict[str, Any]


def stacked(nodes: int, path: Path) -> Path:
    """The block `BLOCK`, output to input, until the graph has about so many nodes."""
    block = onnx.load(BLOCK)
    source, result = block.graph.input[0].name, block.graph.output[0].name
    stack = onnx.ModelProto()
    stack.CopyFrom(block)
    for field in ("node", "initializer", "value_info", "output"):
        stack.graph.ClearField(field)
    value = source
    for number in range(nodes // len(block.graph.node)):
        part = compose.add_prefix(block, f"layer{number}/").graph
        for node in part.node:
            node.input[:] = [value if name == f"layer{number}/{source}" else name for name in node.input]
        stack.graph.node.extend(part.node)
        stack.graph.initializer.extend(part.initializer)
        value = f"layer{number}/{result}"
    stack.graph.output.add().CopyFrom(block.graph.output[0])
    stack.graph.output[0].name = value
    onnx.save(stack, path)
    return path


def by_nodes(tools: Sequence[Tool], asked: Asked, folder: Path, sizes: Sequence[int] = NODES) -> list[Row]:
    """A row for each size; a tool that did not come to an end is not asked for larger ones."""
    rows: list[Row] = []
    for size in sizes:
        model = stacked(size, folder / "stack.onnx")
        graph = onnx.load(model).graph
        row: Row = {"nodes": len(graph.node), "sites": sum(node.op_type == "Softmax" for node in graph.node)}
        rows.append(row | {"tools": _asked(tools, model, asked, folder, rows)})
        print(f"scale: {row['nodes']:,} nodes", flush=True)
    return rows


def by_weights(tools: Sequence[Tool], asked: Asked, folder: Path, widths: Sequence[int] = WIDTHS) -> list[Row]:
    """The same for weights."""
    rows: list[Row] = []
    for width in widths:
        model = folder / "large.onnx"
        large.make(str(model), LAYERS, width, "float32")
        size = model.with_suffix(".bin").stat().st_size
        row: Row = {"megabytes": size / 1e6, "sites": LAYERS}
        rows.append(row | {"tools": _asked(tools, model, asked, folder, rows)})
        print(f"scale: {row['megabytes']:,.0f} MB of weights", flush=True)
    return rows


def _asked(tools: Sequence[Tool], model: Path, asked: Asked, folder: Path, before: Sequence[Row]) -> dict[str, Any]:
    told: dict[str, Any] = {}
    for tool in tools:
        if tool.version is None:
            told[tool.key] = {"failure": "not installed"}
        elif before and "failure" in before[-1]["tools"][tool.key]:
            told[tool.key] = {"failure": "not tried: did not come to an end on a smaller one"}
        else:
            way, out = tool.ways()[0], folder / "out.onnx"
            given = {"tool": tool.key, "model": str(model), "out": str(out), "repeat": 1}
            told[tool.key] = one("rewrite", way, asked.timeout, **given)
    return told


def slope(sizes: Sequence[float], seconds: Sequence[float]) -> float | None:
    """The exponent with which time grows, by least squares on logarithms; None for fewer than two points."""
    if len(sizes) < 2:
        return None
    x, y = [math.log(size) for size in sizes], [math.log(value) for value in seconds]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
