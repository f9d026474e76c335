"""Whether a value is made from another: a mask from the very scores that it is added to."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView


def depends_on(view: GraphView, tensor: gs.Tensor, node: gs.Node) -> bool:
    """Whether `tensor` is computed from what `node` makes. Only nodes behind it are looked at: a graph is sorted."""
    first = view.position(node)
    queue, seen = [tensor], {tensor.name}
    while queue:
        producer = view.producer(queue.pop())
        if producer is None or not view.in_main_graph(producer) or view.position(producer) < first:
            continue
        if producer is node:
            return True
        for above in producer.inputs:
            if above.name not in seen:
                seen.add(above.name)
                queue.append(above)
    return False
