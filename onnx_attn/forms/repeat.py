"""Heads of K and V that several heads of Q share, repeated for each of them: `b n s h -> b (n copies) s h`.

As Expand, not left to MatMul's broadcasting, which TensorRT for RTX 1.7.1 keeps off the attention kernels.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_attn.forms.dims import write_reshape
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite


def repeat_heads(writer: Writer, tensor: str, rank: int, heads: int, count: int, size: int, hint: str) -> str:
    """`(…, count, S, size)` as `(…, heads, S, size)`, each head beside its copies."""
    if heads == count:
        return tensor
    apart = writer.add("Unsqueeze", [tensor, writer.shape(rank - 2)], f"{hint}_apart")
    copies = writer.add("Expand", [apart, writer.shape(heads // count, 1, 1)], f"{hint}_copies")
    return write_reshape(writer, copies, [*[0] * (rank - 3), heads, -1, size], f"{hint}_repeated")


def own_heads(view: GraphView, site: AttentionSite, tensor: gs.Tensor) -> int | None:
    """How many heads an unpacked operand has in the graph; None where they are as many as Q's."""
    rank = view.rank(tensor) or 0
    count, heads = (view.static(each, -3) if rank > 2 else None for each in (tensor, site.query.tensor))
    return count if heads and count and count != heads and heads % count == 0 else None
