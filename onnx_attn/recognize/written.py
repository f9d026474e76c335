"""A call of one of our own functions: a site that is fused already."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView, label
from onnx_attn.site import ScoreTerm, Written


def recognize_written(view: GraphView, node: gs.Node) -> Written:
    """Read heads and sizes off the call's inputs `(…, N, S, H)`, masks and scale off the call itself."""
    query, key, value = node.inputs[:3]
    kinds = [part for part in node.op.split("_") if part in ("Mask", "Where", "WhereNot")]
    masks = tuple(
        ScoreTerm("add" if kind == "Mask" else "where", mask)
        for kind, mask in zip(kinds, node.inputs[3:], strict=False)
    )

    def size(tensor: gs.Tensor, axis: int) -> int | None:
        rank = view.rank(tensor)
        return view.static(tensor, axis) if rank is not None and rank >= -axis else None

    return Written(
        name=label(node),
        node=node,
        scale=float(node.attrs.get("scale", 1.0)),
        causal="Causal" in node.op.split("_"),
        masks=masks,
        heads=size(query, -3) or 1,
        kv_heads=size(key, -3) or 1,
        head_dim=size(query, -1),
        value_dim=size(value, -1),
    )
