"""Can a site's projection be packed, and how do Q, K and V read its channels?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import onnx_graphsurgeon as gs

from onnx_attn.forms.dims import Dim, base_dims, layout_dims
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import Shape
from onnx_attn.recognize.projection import from_nearer_sources
from onnx_attn.site import AttentionSite, Projection
from onnx_attn.views.layout import Layout
from onnx_attn.views.linear import Linear, rows


class Heads(NamedTuple):
    """How one operand reads its layer's channels: `columns[n, h]`, and the source axes in the operand's order."""

    columns: np.ndarray
    order: tuple[int, ...]


HEAD = -1
"""Stands for the head axis among the source axes of `Heads.order`."""


@dataclass(frozen=True)
class Packing:
    """A packing that can be written: Q, K and V as `(…, N, S, H)` of rank `rank`.

    merged: the sizes (tokens: axes of the projection's source) that the site's output had in the original; None if it
        has them anyway.
    """

    projection: Projection
    heads: tuple[Heads, Heads, Heads]
    rank: int
    merged: tuple[Dim, ...] | None
    canonical: tuple[Dim, ...]


def plan_packing(view: GraphView, site: AttentionSite) -> Packing | str:
    """A packing for the site, or in words why there is none."""
    projection = site.projection
    if projection is None:
        return "Q, K and V are not linear in one source"
    if site.value.trace.factor != 1.0:
        return "V is scaled"
    found = _read(view, site, projection)
    if found is None:
        return "Q, K and V do not split the projection's channels into heads alike"
    projection, heads = found
    shapes = rows(view, projection.layers[0])
    leading = len(shapes[0]) - 1
    query = heads[0]
    rank = leading + 2
    base = base_dims(shapes)
    count = query.columns.shape[0]
    canonical = (*(count if axis == HEAD else base[axis] for axis in query.order), site.value_dim)
    original = (*layout_dims(projection.layouts[0], base)[:-1], site.value_dim)
    merged = None if canonical == original else original
    if merged is not None and not all(_broadcasts(view, mask) for mask in site.mask_tensors):
        return "the mask's axes follow the original's merged heads"
    packing = Packing(projection, heads, rank, merged, canonical)
    if projection.kind == "packed" and _share_channels(packing):
        return "Q, K and V share channels of their projection"
    if not reuses_output(packing) and not _is_own(view, projection, site):
        return "weights-shared: the projection's weights or results are read elsewhere too"
    return packing


def _read(
    view: GraphView, site: AttentionSite, projection: Projection
) -> tuple[Projection, tuple[Heads, Heads, Heads]] | None:
    """The heads of Q, K and V, and the source over which they can be read: the farthest that serves."""
    operands = (site.query, site.key, site.value)
    for candidate in (projection, *from_nearer_sources(view, projection, operands)):
        heads = [
            read_heads(layout, layer, rows(view, layer))
            for layout, layer in zip(candidate.layouts, candidate.layers, strict=True)
        ]
        if None not in heads and len({each.order for each in heads if each}) == 1:
            return candidate, tuple(heads)  # type: ignore[return-value]
    return None


def read_heads(layout: Layout, layer: Linear, shapes: tuple[Shape, ...]) -> Heads | None:
    """Read a layout `(…, S, H)` over `(…, C)` as heads: whole source axes, at most one head digit, one feature digit."""
    channel = len(layout.offsets) - 1
    *leading, sequence, feature = layout.axes
    if any(layout.offsets[:-1]) or len(feature) != 1 or feature[0].axis != channel:
        return None
    if len(sequence) > 1 or any(digit.axis == channel for digit in sequence):
        return None
    order: list[int] = []
    head_step, head_count = 0, 1
    for digit in (digit for axis in leading for digit in axis):
        if digit.axis != channel:
            if digit.size is not None:
                return None
            order.append(digit.axis)
        elif HEAD in order or digit.size is None:
            return None
        else:
            order.append(HEAD)
            head_step, head_count = digit.step, digit.size
    if any(digit.size is not None for digit in sequence):
        return None
    if HEAD not in order:
        order.append(HEAD)
    order.extend(digit.axis for digit in sequence)
    if len(set(order)) != len(order):
        return None
    # Source axes of size 1 leave no digit: they go first, or, as a sequence of length 1, behind the heads.
    missing = [axis for axis in range(channel) if axis not in order]
    if any(shape[axis] != 1 for shape in shapes for axis in missing):
        return None  # One row of many: a slice, not the sequence.
    if not sequence and missing:
        order.append(missing.pop())
    order[:0] = missing
    size = layer.channels if feature[0].size is None else feature[0].size
    columns = layout.offsets[channel] + np.add.outer(
        np.arange(head_count) * head_step, np.arange(size) * feature[0].step
    )
    return Heads(columns, tuple(order))


def _share_channels(packing: Packing) -> bool:
    columns = np.concatenate([heads.columns.reshape(-1) for heads in packing.heads])
    return np.unique(columns).size != columns.size


def reuses_weight(packing: Packing) -> bool:
    """True if one layer makes Q, K and V in just the order that is wanted: its weights stay as they are."""
    layer = packing.projection.layers[0]
    wanted = np.concatenate([heads.columns.reshape(-1) for heads in packing.heads])
    return (
        packing.projection.kind == "packed"
        and np.array_equal(wanted, np.arange(layer.channels))
        and not layer.transposed
        and (layer.alpha, layer.beta) == (1.0, 1.0)
    )


def reuses_output(packing: Packing) -> bool:
    """True if the projection can stay as it is, so that only what reads it is written anew."""
    return reuses_weight(packing) and not packing.projection.layers[0].moves


def _broadcasts(view: GraphView, mask: gs.Tensor) -> bool:
    """True if a mask says the same of scores with other axes before the last two."""
    shapes = view.shapes(mask)
    return shapes is not None and all(size == 1 for shape in shapes for size in shape[:-2])


def _is_own(view: GraphView, projection: Projection, site: AttentionSite) -> bool:
    """True if packing takes the weights away from nobody: every reader of weights and of results belongs to the site."""
    operands = (site.query, site.key, site.value)
    inside = {id(step.node) for operand in operands for step in operand.trace.steps}
    inside |= {id(site.product), id(view.producer(site.output))}
    for layer, operand in zip(projection.layers, operands, strict=True):
        if layer.weight.name in view.pinned or (layer.bias is not None and layer.bias.name in view.pinned):
            return False
        if not _one_way(view, layer.weight, layer.output):
            return False
        tensors = [layer.output, *(output for step in operand.trace.steps for output in step.node.outputs)]
        for tensor in tensors:
            if tensor.name in view.pinned:
                return False
            if not all(id(reader) in inside or _reads_shape(view, reader) for reader in view.readers(tensor)):
                return False
    return True


def _reads_shape(view: GraphView, reader: gs.Node) -> bool:
    """A reader that can be given the shape from elsewhere."""
    return reader.op == "Shape" and view.in_main_graph(reader)


def _one_way(view: GraphView, weight: gs.Tensor, output: gs.Tensor) -> bool:
    """From the weight down to the layer's output every tensor has one reader."""
    tensor = weight
    while tensor is not output:
        if tensor.name in view.pinned:
            return False
        readers = [reader for reader in view.readers(tensor) if not _reads_shape(view, reader)]
        if len(readers) != 1:
            return False
        tensor = readers[0].outputs[0]
    return True
