"""Rows that are masked throughout and answer 0, as forms of ours write them behind the product (forms/body.py)."""

from __future__ import annotations

import math
from dataclasses import replace

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.recognize.triangle import made_by
from onnx_attn.site import AttentionSite, Guard
from onnx_attn.views.trace import lowest


def with_row_guard(view: GraphView, site: AttentionSite) -> AttentionSite:
    """The site with the choice that follows it, `Where(max of a mask's row ≤ the lowest number, 0, attention)`; itself, where
    another thing follows."""
    readers = view.readers(site.output)
    masks = site.masks
    if site.guard is not None or site.result or len(readers) != 1 or view.is_output(site.output) or not masks:
        return site
    node = readers[0]
    if node.op != "Where" or node.domain not in STANDARD or not view.in_main_graph(node):
        return site  # A branch that clears rows may not run.
    if node.inputs[2] is not site.output:
        return site
    mask = masks[-1].mask
    if mask is None or masks[-1].kind != "add" or view.scalar(node.inputs[1]) != 0.0:
        return site
    guard = _guard(view, node.inputs[0], mask)
    same = view.shapes(node.outputs[0]) == view.shapes(site.output)
    return replace(site, guard=guard, output=node.outputs[0]) if guard is not None and same else site


def _guard(view: GraphView, condition: gs.Tensor, mask: gs.Tensor) -> Guard:
    """Which rows a condition picks: those that the mask blocks by the lowest number, or by −inf alone."""
    compared = made_by(view, condition, "LessOrEqual")
    if compared is None:
        return None
    peak, bound = made_by(view, compared.inputs[0], "ReduceMax"), view.scalar(compared.inputs[1])
    if peak is None or peak.inputs[0] is not mask or not peak.attrs.get("keepdims", 1):
        return None
    axes = view.constant(peak.inputs[1]) if len(peak.inputs) > 1 else peak.attrs.get("axes")
    if axes is None or [int(axis) for axis in axes] not in ([-1], [(view.rank(mask) or 0) - 1]):
        return None
    if bound == -math.inf:
        return "blocked"
    return "row" if bound == lowest(view.elem_type(mask)) else None
