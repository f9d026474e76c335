"""A softmax that is spelled out: `exp(x − max x) / Σ exp(x − max x)`, with or without the maximum."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_attn.codes import CODES
from onnx_attn.graph.view import GraphView, label
from onnx_attn.recognize.probabilities import Product, read_probabilities
from onnx_attn.recognize.result import Stop
from onnx_attn.recognize.scores import read_scores
from onnx_attn.site import Verdict


def recognize_spelled(view: GraphView, division: gs.Node) -> Verdict | None:
    """The verdict on a Div that ends a spelled-out softmax; None for any other Div."""
    exponential = _exponential(view, division)
    if exponential is None:
        return None
    below = read_probabilities(view, division)
    if isinstance(below, Stop):
        return below.verdict(label(division)) if CODES[below.code].attention else None
    above = read_scores(view, _scores(view, exponential), exponential)
    if isinstance(above, Stop) and not CODES[above.code].attention:
        return None
    stop = Stop("softmax-spelled-out", division, f"Exp '{label(exponential)}' and its sum")
    assert isinstance(below, Product)
    return stop.verdict(label(division), anchor=label(below.node))


def is_spelled(view: GraphView, division: gs.Node) -> bool:
    return _exponential(view, division) is not None


def _exponential(view: GraphView, division: gs.Node) -> gs.Node | None:
    """The Exp that is divided by its own sum."""
    top, bottom = (view.producer(tensor) for tensor in division.inputs[:2])
    if top is None or bottom is None or (top.op, bottom.op) != ("Exp", "ReduceSum"):
        return None
    return top if bottom.inputs[0] is top.outputs[0] else None


def _scores(view: GraphView, exponential: gs.Node) -> gs.Tensor:
    """What the softmax is taken of: behind the difference from its own maximum, where that is taken."""
    tensor = exponential.inputs[0]
    difference = view.producer(tensor)
    if difference is not None and difference.op == "Sub":
        peak = view.producer(difference.inputs[1])
        if peak is not None and peak.op == "ReduceMax" and peak.inputs[0] is difference.inputs[0]:
            return difference.inputs[0]
    return tensor
