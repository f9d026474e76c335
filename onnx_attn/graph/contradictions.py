"""What a node cannot do at a world's sizes, though onnx's shape inference believes that it can."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import onnx

from onnx_attn.graph.world import Known, World

CHECKED = frozenset({"Reshape", "Attention", "Gather", "GatherND"})
"""The operators of the standard that are looked at."""


def check(
    node: onnx.NodeProto, inputs: Sequence[Known | None], outputs: Sequence[Known | None], world: World, opset: int
) -> None:
    """Add a node of `CHECKED` that contradicts itself to the world's failures. opset: that of the standard's domain."""
    if node.op_type == "Reshape":
        _check_reshape(node, inputs[0], outputs[0], world)
    elif node.op_type == "Attention":
        _check_attention(node, inputs, world, opset)
    else:
        _check_indices(node, inputs, world)


def _check_reshape(node: onnx.NodeProto, before: Known | None, after: Known | None, world: World) -> None:
    """Shape inference believes a Reshape; a size that an exporter froze shows as a count of elements that is off."""
    if before is None or after is None or before.shape is None or after.shape is None:
        return
    if math.prod(before.shape) != math.prod(after.shape):
        world.failures.append(node.name or node.output[0])
    elif before.shape[:1] == after.shape[:1]:
        world.kept_axes += 1


def _check_indices(node: onnx.NodeProto, inputs: Sequence[Known | None], world: World) -> None:
    """Shape inference does not look at what an index points to: a padding mask is read up to the last key, past included."""
    data, indices = inputs[:2]
    if data is None or data.shape is None or indices is None or indices.value is None or not indices.value.size:
        return
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "Gather":
        bounds = np.asarray(data.shape[attributes.get("axis", 0)])
    else:
        first = attributes.get("batch_dims", 0)
        bounds = np.asarray(data.shape[first : first + indices.value.shape[-1]])
    if ((indices.value >= bounds) | (indices.value < -bounds)).any():
        world.failures.append(node.name or node.output[0])


def _check_attention(node: onnx.NodeProto, inputs: Sequence[Known | None], world: World, opset: int) -> None:
    """Shape inference looks at Q, K and V alone: a mask has no more columns than there are keys, the past's included, and
    before opset 24 as many."""
    key, mask, past = ((*inputs, *[None] * 6)[place] for place in (1, 3, 4))
    if key is None or key.shape is None or mask is None or not mask.shape:
        return
    keys = key.shape[-2] + (past.shape[-2] if past is not None and past.shape else 0)
    columns = mask.shape[-1]
    if columns > max(keys, 1) or (opset < 24 and columns not in (1, keys)):
        world.failures.append(node.name or node.output[0])
