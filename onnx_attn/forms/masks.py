"""What a mask computes from weights alone is written as the numbers that it is.

Source, measured with TensorRT for RTX 1.7.1, fp16: a relative position bias that dynamo leaves as Gather, Reshape and
Transpose of its table keeps 10 of 12 sites of a Swin-T off the attention kernels (321 kernels); as numbers all of them land
(142). A BERT whose padding mask joins constant parts spends a kernel on these (21, as numbers 20).
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
import onnx_graphsurgeon as gs

from onnx_attn.graph.edit import Splice
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite
from onnx_attn.views.folding import is_constant, remembered

MOST_NODES = 256
"""How many nodes above a mask are looked at: some masks are made from the hidden states, and so from the whole model."""


def fold_masks(view: GraphView, site: AttentionSite) -> tuple[list[Splice], list[onnx.TensorProto]]:
    """For each constant part of the site's masks: the splice that takes its last node away, and its value, under the same
    name. Sites that share a mask share the value."""
    splices: list[Splice] = []
    values: list[onnx.TensorProto] = []
    for mask in site.mask_tensors:
        for tensor in _constant_parts(view, mask):
            value, producer = remembered(view, tensor), view.producer(tensor)
            if value is not None and producer is not None:
                splices.append(Splice(view.position(producer), (), (tensor.name,)))
                values.append(value)
    return splices, values


def _constant_parts(view: GraphView, mask: gs.Tensor) -> Iterator[gs.Tensor]:
    """The largest constant parts of what a mask is made of. Vectors and numbers are shapes and scales: the runtimes fold
    these themselves."""
    queue, seen = [mask], {mask.name}
    while queue and len(seen) <= MOST_NODES:
        tensor = queue.pop()
        node = view.producer(tensor)
        if node is None or not view.in_main_graph(node):
            continue
        if not is_constant(view, node):
            queue.extend(above for above in node.inputs if above.name not in seen)
            seen.update(above.name for above in node.inputs)
        elif _may_be_replaced(view, node, tensor) and (view.rank(tensor) or 0) >= 2:
            yield tensor


def _may_be_replaced(view: GraphView, node: gs.Node, tensor: gs.Tensor) -> bool:
    return node.op != "Constant" and len(node.outputs) == 1 and tensor.name not in view.pinned
