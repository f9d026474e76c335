"""A call of one of our own functions: a site that is fused already."""

from __future__ import annotations

from collections import Counter

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView, label
from onnx_attn.recognize.result import Stop
from onnx_attn.site import ScoreTerm, Verdict, Written
from onnx_attn.views.trace import trace

_TENSORS = ("Mask", "Minus", "Where", "WhereNot", "Factor", "Divisor", "Keep", "Clear")
"""The parts of a function's name that stand for an input each."""


def recognize_written(view: GraphView, node: gs.Node) -> Written | Verdict:
    """Read heads and sizes off the call's inputs `(…, N, S, H)`, masks and scale off the call itself."""
    bodies = [f for f in view.proto.functions if f.domain == node.domain and f.name == node.op]
    operators = Counter(inner.op_type for body in bodies for inner in body.node)
    if (operators["MatMul"], operators["Softmax"]) != (2, 1) or len(node.inputs) < 3:
        return Stop("operator-not-supported", node, "a function of our name that is not ours").verdict(label(node))
    query, key, value = node.inputs[:3]
    kinds = [part for part in node.op.split("_") if part in _TENSORS]
    masks = tuple(
        ScoreTerm("where" if kind.startswith("Where") else "add", mask)
        for kind, mask in zip(kinds, node.inputs[3:], strict=False)
        if kind not in ("Factor", "Divisor", "Keep", "Clear")
    )
    return Written(
        name=label(node),
        node=node,
        scale=_scale(view, node),
        causal="Causal" in node.op.split("_"),
        masks=masks,
        heads=_heads(view, query),
        kv_heads=_heads(view, key),
        head_dim=view.static(query, -1),
        value_dim=view.static(value, -1),
    )


def _heads(view: GraphView, tensor: gs.Tensor) -> int | None:
    """One where there is no axis of them; None where they are not static."""
    return view.static(tensor, -3) if (view.rank(tensor) or 0) > 2 else 1


def _scale(view: GraphView, node: gs.Node) -> float:
    """All of it, where it was split on Q, K and the scores."""
    scale = _number(node.attrs.get("scale", 1.0))
    parts = [part for part in node.op.split("_")[1:] if not part.endswith("D")]
    if parts[:1] != ["Scale"]:
        return scale
    return scale * _number(node.attrs.get("fill_0", 1.0)) * trace(view, node.inputs[1]).factor


def _number(value: float | gs.Constant) -> float:
    """Of double precision it is a tensor."""
    return float(value.values) if isinstance(value, gs.Constant) else float(value)
