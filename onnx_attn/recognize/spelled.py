"""A softmax that is spelled out: `exp(x − max x) / Σ exp(x − max x)`, with or without the maximum."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_attn.codes import CODES
from onnx_attn.graph.view import GraphView, label
from onnx_attn.match import HERE, Match, chain, either, match_value, op, var
from onnx_attn.recognize.probabilities import Product, read_probabilities
from onnx_attn.recognize.result import Stop
from onnx_attn.recognize.scores import read_scores
from onnx_attn.site import Verdict

SCORES = var("scores")
EXPONENTIAL = either(op("Sub", SCORES, op("ReduceMax", SCORES)), SCORES)
SPELLED = chain(op("Exp", EXPONENTIAL, name="exponential"), op("Div", HERE, op("ReduceSum", HERE)))
"""`exp(x − max x) / Σ`, where the exponential is divided by its own sum."""


def recognize_spelled(view: GraphView, division: gs.Node) -> Verdict | None:
    """The verdict on a Div that ends a spelled-out softmax; None for any other Div."""
    spelled = match_value(SPELLED, view, division.outputs[0])
    if not isinstance(spelled, Match):
        return None
    exponential = spelled.node("exponential")
    below = read_probabilities(view, division)
    if isinstance(below, Stop):
        return below.verdict(label(division)) if CODES[below.code].attention else None
    above = read_scores(view, spelled["scores"], exponential)
    if isinstance(above, Stop) and not CODES[above.code].attention:
        return None
    stop = Stop("softmax-spelled-out", division, f"Exp '{label(exponential)}' and its sum")
    assert isinstance(below, Product)
    return stop.verdict(label(division), anchor=label(below.node))


def is_spelled(view: GraphView, division: gs.Node) -> bool:
    return isinstance(match_value(SPELLED, view, division.outputs[0], bodies=True), Match)
