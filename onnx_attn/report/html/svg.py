"""A drawing of nodes as SVG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree as Xml

from onnx_attn.errors import printable
from onnx_attn.report.html.layout import Layout, layered

LINE, PAD, ROW_GAP = 15, 8, 26
"""Heights in a drawing: of a line of text, around it in a node, and between layers."""
_LETTER = 6.3
"""Width of a letter of the drawing's fixed font, 10.5 px."""
MOST_LETTERS = 34


def nodes_svg(drawing: dict[str, Any], marked: str | None = None) -> str:
    """The nodes of `drawing.piece`, laid out. marked: the name of a node to point at. Text from the model is escaped by the
    writer of XML."""
    texts = [_lines(node) for node in drawing["nodes"]]
    widths = [max(len(line) for line in lines) * _LETTER + 2 * PAD for lines in texts]
    edges = [(start, end) for start, end in drawing["edges"]]
    found = layered(widths, edges)
    heights = [float(len(lines) * LINE + PAD) for lines in texts]
    tops, depths, depth = _rows(found, heights)
    svg = Xml.Element("svg", viewBox=f"-2 -2 {found.width + 4:.0f} {depth + 4:.0f}", width=f"{found.width + 4:.0f}")
    svg.set("height", f"{depth + 4:.0f}")
    for (start, end), route in found.routes.items():
        _edge(svg, found, (tops, depths), heights[start], (start, end), route)
    for place, node in enumerate(drawing["nodes"]):
        top = tops[found.layers[place]]
        _box(svg, node, texts[place], found.centres[place], (widths[place], top), marked)
    return Xml.tostring(svg, encoding="unicode")


def _lines(node: dict[str, Any]) -> list[str]:
    """What stands in a node: the operator, what it holds, what it gives."""
    lines = [node["op"], *_packed(node["holds"])]
    if node["body"]:
        lines.append(f"= {len(node['body'])} operators")
    if node["gives"]:
        lines.append(f"→ {node['gives']}" if node["kind"] not in ("input", "output") else node["gives"])
    return [_shortened(printable(line)) for line in lines]


def _packed(texts: list[str]) -> list[str]:
    """Short things side by side."""
    lines: list[str] = []
    for text in texts:
        together = f"{lines[-1]} · {text}" if lines else text
        if lines and len(together) <= MOST_LETTERS - 8:
            lines[-1] = together
        else:
            lines.append(text)
    return lines


def _shortened(text: str) -> str:
    """Both ends tell more than the middle: the name of the layer, and the number of the value."""
    half = MOST_LETTERS // 2
    return text if len(text) <= MOST_LETTERS else f"{text[: half - 1]}…{text[-half:]}"


def _rows(found: Layout, heights: list[float]) -> tuple[list[float], list[float], float]:
    """The top and height of each layer, and the height of all."""
    depths = [0.0] * found.depth
    for layer, height in zip(found.layers, heights, strict=True):
        depths[layer] = max(depths[layer], height)
    tops, y = [], 0.0
    for height in depths:
        tops.append(y)
        y += height + ROW_GAP
    return tops, depths, max(y - ROW_GAP, 0.0)


def _edge(
    svg: Xml.Element,
    found: Layout,
    rows: tuple[list[float], list[float]],
    height: float,
    edge: tuple[int, int],
    route: Sequence[float],
) -> None:
    """From the bottom of a node to the top of its reader, straight through the layers between. height: of the node."""
    (start, end), (tops, heights) = edge, rows
    first, last = found.layers[start], found.layers[end]
    x, y = found.centres[start], tops[first]
    path = [f"M{x:.1f} {y + height:.1f}", f"L{x:.1f} {y + heights[first]:.1f}"]
    y += heights[first]
    for layer, place in [*enumerate(route, first + 1), (last, found.centres[end])]:
        middle = (y + tops[layer]) / 2
        path.append(f"C{x:.1f} {middle:.1f} {place:.1f} {middle:.1f} {place:.1f} {tops[layer]:.1f}")
        x, y = place, tops[layer]
        if layer != last:
            y += heights[layer]
            path.append(f"L{x:.1f} {y:.1f}")
    Xml.SubElement(svg, "path", d="".join(path), attrib={"class": "edge"})


def _box(
    svg: Xml.Element,
    node: dict[str, Any],
    lines: list[str],
    centre: float,
    place: tuple[float, float],
    marked: str | None,
) -> None:
    width, top = place
    group = Xml.SubElement(svg, "g", attrib={"class": f"node {node['kind']}"})
    if marked is not None and node["name"] == marked:
        group.set("class", f"node {node['kind']} marked")
    full = [node["name"] or node["op"], *node["holds"], node["gives"], " ".join(node["body"])]
    Xml.SubElement(group, "title").text = printable(" | ".join(text for text in full if text))
    height = len(lines) * LINE + PAD
    box = {"x": centre - width / 2, "y": top, "width": width, "height": height, "rx": 5}
    Xml.SubElement(group, "rect", {name: f"{value:.1f}" for name, value in box.items()})
    for number, line in enumerate(lines):
        role = "op" if number == 0 else "gives" if number == len(lines) - 1 and node["gives"] else "holds"
        y = top + PAD / 2 + LINE * (number + 0.75)
        text = Xml.SubElement(group, "text", {"x": f"{centre:.1f}", "y": f"{y:.1f}", "class": role})
        text.text = line
