"""Sites that are alike: the same operators on values of the same types and shapes, before and after, whatever their weights."""

from __future__ import annotations

import hashlib
import math

import onnx

from onnx_attn.graph.edit import SiteEdit
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.weights import to_array
from onnx_attn.prove.cut import Cut, Cutter, boundary
from onnx_attn.site import AttentionSite

FEW = 16
"""Elements of a constant up to which its numbers count, as those of a shape or a scale do; of a weight its type and shape do."""


def signature(view: GraphView, cutter: Cutter, site: AttentionSite, edit: SiteEdit) -> str:
    """Equal for sites whose proof would run the same nodes at the same sizes."""
    start, outputs = boundary(view, site, edit).difference(edit.folded), list(edit.outputs)
    digest = hashlib.sha256(repr((edit.algebra, edit.island, edit.scale)).encode())
    for cut in (cutter.cut(outputs, start), cutter.cut(outputs, start, edit)):
        digest.update(repr(_contents(view, cut)).encode())
    return digest.hexdigest()


def _contents(view: GraphView, cut: Cut) -> list[tuple[object, ...]]:
    """A cut without its names: its values are numbered in the order in which they are met."""
    numbers: dict[str, int] = {}
    weights = {tensor.name: tensor for tensor in cut.model.graph.initializer}

    def number(name: str) -> object:
        if not name or name in numbers:
            return numbers.get(name)
        numbers[name] = len(numbers)
        if name in weights:
            return _weight(weights[name])
        if name in cut.known:
            return [str(world.value(name)) for world in view.worlds]
        return [(world.elem_type(name), world.shape(name)) for world in view.worlds]

    found: list[tuple[object, ...]] = []
    for node in cut.model.graph.node:
        attributes = sorted(each.SerializeToString(deterministic=True) for each in node.attribute)
        given = [number(name) for name in node.input]
        numbers.update({name: len(numbers) + place for place, name in enumerate(node.output)})
        found.append((node.domain, node.op_type, attributes, given))
    return found


def _weight(tensor: onnx.TensorProto) -> object:
    few = math.prod(tensor.dims) <= FEW
    return tensor.data_type, list(tensor.dims), to_array(tensor).tolist() if few else None
