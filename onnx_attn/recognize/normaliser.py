"""The softmax itself, in one node or in many: what it reads, what it makes, over which axes.

Softmax(x)      exp(LogSoftmax(x))      exp(x − ReduceLogSumExp(x))      exp(x − max x) / Σ exp(x − max x)
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView
from onnx_attn.match import HERE, Match, chain, either, match_value, op, var

SCORES = var("scores")
EXPONENTIAL = either(op("Sub", SCORES, op("ReduceMax", SCORES, name="peak")), SCORES)
_EXP = op("Exp", EXPONENTIAL, name="exponential")
_SUM = op("ReduceSum", HERE, name="sum")
SPELLED = chain(_EXP, either(op("Div", HERE, _SUM), op("Mul", HERE, op("Reciprocal", _SUM))))
"""`exp(x − max x) / Σ`, where the exponential is divided by its own sum; with or without the maximum."""
DIVISOR = chain(_EXP, _SUM)
"""`Σ exp(x − max x)`, by which a product with values is divided afterwards."""
IN_LOGARITHMS = op(
    "Exp", either(op("LogSoftmax", SCORES, name="log"), op("Sub", SCORES, op("ReduceLogSumExp", SCORES, name="log")))
)


@dataclass(frozen=True)
class Normaliser:
    """`probabilities = softmax(scores)` over `axes` (from 0 on) together.

    node: whose name the candidate has. overflows: exponentials are taken without their maximum being subtracted, so that
    large scores have no finite result.
    """

    node: gs.Node
    scores: gs.Tensor
    probabilities: gs.Tensor
    axes: tuple[int, ...]
    overflows: bool = False

    @property
    def in_one_node(self) -> bool:
        return self.node.op == "Softmax"


def read_normaliser(view: GraphView, node: gs.Node) -> Normaliser | None:
    """The softmax that ends at a node, which is of the standard domain; None if none does, or where the rank of what it reads is
    not known."""
    if node.op == "Softmax":
        return _softmax(view, node, node, node.outputs[0])
    if node.op in ("Div", "Mul"):
        return _spelled(view, node)
    return _in_logarithms(view, node)


def _softmax(view: GraphView, node: gs.Node, named: gs.Node, probabilities: gs.Tensor) -> Normaliser | None:
    """Source: onnx operator specification: from opset 13 on over one axis, the last by default; before, over all axes from
    `axis` on, 1 by default, as one."""
    rank = view.rank(node.inputs[0])
    if rank is None:
        return None
    axis = node.attrs.get("axis", -1 if view.opset >= 13 else 1) % max(rank, 1)
    axes = (axis,) if view.opset >= 13 else tuple(range(axis, rank))
    return Normaliser(named, node.inputs[0], probabilities, axes)


def is_spelled(view: GraphView, node: gs.Node) -> bool:
    """Whether a Div or Mul ends a spelled-out softmax; shapes need not be known."""
    return isinstance(match_value(SPELLED, view, node.outputs[0], bodies=True), Match)


def _spelled(view: GraphView, node: gs.Node) -> Normaliser | None:
    found = match_value(SPELLED, view, node.outputs[0])
    if not isinstance(found, Match):
        return None
    return _over_its_sum(view, found, node, node.outputs[0])


def _over_its_sum(view: GraphView, found: Match, named: gs.Node, probabilities: gs.Tensor) -> Normaliser | None:
    """The softmax of exponentials and their sum; None where a maximum was subtracted that is not one number for the sum."""
    axes = _reduced(view, found.node("sum"))
    peak = found.node("peak") if "peak" in found.captures else None
    if axes is None or (peak is not None and not set(axes) <= set(_reduced(view, peak) or ())):
        return None
    return Normaliser(named, found["scores"], probabilities, axes, overflows=peak is None)


def read_exponentials(view: GraphView, division: gs.Node) -> tuple[Normaliser, gs.Tensor] | None:
    """Of a Div by the sum of exponentials, which divides something else that is made of them: the softmax that the
    exponentials would be, and they themselves."""
    if division.op != "Div":
        return None
    found = match_value(DIVISOR, view, division.inputs[1])
    if not isinstance(found, Match):
        return None
    exponential = found.node("exponential").outputs[0]
    softmax = _over_its_sum(view, found, division, exponential)
    return (softmax, exponential) if softmax is not None else None


def _in_logarithms(view: GraphView, node: gs.Node) -> Normaliser | None:
    found = match_value(IN_LOGARITHMS, view, node.outputs[0])
    if not isinstance(found, Match):
        return None
    log = found.node("log")
    if log.op == "LogSoftmax":
        return _softmax(view, log, log, node.outputs[0])
    axes = _reduced(view, log)
    return Normaliser(node, found["scores"], node.outputs[0], axes) if axes is not None else None


def _reduced(view: GraphView, node: gs.Node) -> tuple[int, ...] | None:
    """The axes that a reduction runs over and keeps with size 1, from 0 on; all if it names none. An attribute, and an input
    from opset 13 (ReduceSum) or 18 on."""
    rank = view.rank(node.inputs[0])
    if not rank or not node.attrs.get("keepdims", 1):
        return None
    given = node.attrs.get("axes")
    if len(node.inputs) > 1 and node.inputs[1].name:
        given = view.constant(node.inputs[1])
        if given is None:
            return None
    if given is None or np.size(given) == 0:
        return None if node.attrs.get("noop_with_empty_axes", 0) else tuple(range(rank))
    return tuple(sorted(int(axis) % rank for axis in np.asarray(given).reshape(-1)))
