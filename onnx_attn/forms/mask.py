"""Where a site takes its masks: one that is made of weights alone in front of the Expand that repeats it."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_attn.forms.moves import written
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.views.arrange import real
from onnx_attn.views.folding import is_constant


def mask_source(view: GraphView, mask: gs.Tensor) -> gs.Tensor:
    """The tensor of the graph that a mask of a site begins with."""
    return real(view, _unrepeated(view, mask))


def write_mask(writer: Writer, view: GraphView, mask: gs.Tensor) -> str:
    """The name of a mask as nodes take it that broadcast it to the scores."""
    return written(writer, view, _unrepeated(view, mask), "mask")


def _unrepeated(view: GraphView, mask: gs.Tensor) -> gs.Tensor:
    """The mask in front of the Expand that repeats it, where there is one. No mask of a site widens its scores, so what an Expand
    repeats would be repeated anyway.

    Source: measured with TensorRT for RTX 1.7.1: behind an Expand a bias that is known beforehand is stored once more for every
    sequence (MPNet by torchscript).
    """
    node = view.producer(mask)
    if node is None or node.op != "Expand" or node.domain not in STANDARD:
        return mask
    (inner, *_), above = node.inputs, view.producer(node.inputs[0])
    made_of_weights = above is not None and view.in_main_graph(above) and is_constant(view, above)
    return inner if made_of_weights or isinstance(inner, gs.Constant) else mask
