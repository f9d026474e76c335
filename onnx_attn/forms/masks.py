"""Masks that are computed from weights alone are written as the numbers that they are.

Source, measured with TensorRT for RTX 1.7.1: a relative position bias that dynamo leaves as Gather, Reshape and Transpose of
its table keeps 10 of 12 sites of a Swin-T off the attention kernels (321 kernels); as a constant all of them land (142).
"""

from __future__ import annotations

import onnx
import onnx_graphsurgeon as gs

from onnx_attn.graph.edit import Splice
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite
from onnx_attn.views.folding import folded


def fold_masks(view: GraphView, site: AttentionSite) -> tuple[list[Splice], list[onnx.TensorProto]]:
    """For each mask of the site that is constant: the splice that takes its last node away, and its value, under the same
    name. Sites that share a mask share the value."""
    splices, values = [], []
    for mask in site.mask_tensors:
        value = _value(view, mask)
        if value is not None:
            producer = view.producer(mask)
            assert producer is not None
            splices.append(Splice(view.position(producer), (), (mask.name,)))
            values.append(value)
    return splices, values


def _value(view: GraphView, mask: gs.Tensor) -> onnx.TensorProto | None:
    producer = view.producer(mask)
    if producer is None or len(producer.outputs) != 1 or producer.op == "Constant" or mask.name in view.pinned:
        return None
    if mask.name not in view.folds:
        view.folds[mask.name] = folded(view, mask)
    found: onnx.TensorProto | None = view.folds[mask.name]
    return found
