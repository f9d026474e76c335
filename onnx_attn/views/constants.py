"""What is weights rather than an activation, and what no input's numbers decide."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.views.folding import RANDOM
from onnx_attn.views.linear import weight_tensor


def is_constant(view: GraphView, tensor: gs.Tensor) -> bool:
    """Weights, as they are stored or turned round, and small values that follow from constants alone."""
    return view.is_weight(tensor) or weight_tensor(view, tensor) is not None or view.constant(tensor) is not None


MOST_NODES = 64


def ignores_numbers(view: GraphView, tensor: gs.Tensor) -> bool:
    """Whether weights and the inputs' sizes alone decide a tensor: a stored mask that is cut to the length, positions counted
    from it. False where this takes more than MOST_NODES nodes to tell."""
    queue, seen = [tensor], {tensor.name}
    while queue:
        tensor = queue.pop()
        node = view.producer(tensor)
        if node is None:
            if tensor.name and not (isinstance(tensor, gs.Constant) and view.is_weight(tensor)):
                return False
            continue
        if node.domain not in STANDARD or not view.in_main_graph(node) or node.op in RANDOM or len(seen) > MOST_NODES:
            return False
        if node.op not in ("Shape", "Size"):
            queue.extend(above for above in node.inputs if above.name not in seen)
            seen.update(above.name for above in node.inputs)
    return True
