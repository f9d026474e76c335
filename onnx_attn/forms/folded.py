"""What a mask, or the bias of a projection, computes from weights alone is written as the numbers that it is.

Source, measured with TensorRT for RTX 1.7.1, fp16: a relative position bias that dynamo leaves as Gather, Reshape and
Transpose of its table keeps 10 of 12 sites of a Swin-T off the attention kernels (321 kernels); as numbers all of them land
(142). A BERT whose padding mask joins constant parts spends a kernel on these (21, as numbers 20). Zeros that TorchScript
scatters into the bias of K take two kernels a block of Swin V2 (172 in all, as numbers 146).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Set

import onnx_graphsurgeon as gs
from onnx import numpy_helper

from onnx_attn.graph.edit import Splice, Writer
from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.recognize.origin import read_origin
from onnx_attn.site import AttentionSite
from onnx_attn.views.arrange import real
from onnx_attn.views.folding import fold, is_constant
from onnx_attn.views.linear import weight_tensor
from onnx_attn.views.stored import is_dequantised

MOST_NODES = 256
"""How many nodes above a mask are looked at: some masks are made from the hidden states, and so from the whole model."""


def compute_folds(view: GraphView, sites: Iterable[AttentionSite]) -> None:
    """Compute the constant parts of all sites beforehand, in one run."""
    fold(view, [part for site in sites for part in constant_parts(view, site)])


def write_folds(view: GraphView, writer: Writer, site: AttentionSite, reserved: Set[str]) -> list[Splice]:
    """For each constant part of a site: the splice that puts its value in place of its last node, by way of an
    Identity, so that parts of equal content share one stored value.

    reserved: what the rewriting of sites makes, which a fold must leave to them.
    """
    splices = []
    for tensor in constant_parts(view, site):
        value, producer = view.folds.get(tensor.name), view.producer(tensor)
        if value is None or producer is None or tensor.name in reserved:
            continue
        if not writer.names.has_room(value):
            continue
        part = Writer(writer.names, tensor.name, initializers=writer.initializers)
        part.add("Identity", [part.constant(numpy_helper.to_array(value), "mask")], "folded", output=tensor.name)
        splices.append(Splice(view.position(producer), tuple(part.nodes), (tensor.name,)))
    return splices


_VIEWS = frozenset({"Identity", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Expand", "Tile"})
"""What only says anew what is there, or repeats it: cheaper left than stored."""


def constant_parts(view: GraphView, site: AttentionSite) -> Iterator[gs.Tensor]:
    """The largest constant parts of what a site's masks are made of, and computed biases of its projections. Other vectors, and
    numbers, are shapes and scales: the runtimes fold these themselves."""
    yield from _biases(view, site)
    queue = [real(view, mask) for mask in site.mask_tensors]
    seen = {mask.name for mask in queue}
    while queue and len(seen) <= MOST_NODES:
        tensor = queue.pop()
        node = view.producer(tensor)
        if node is None or not view.in_main_graph(node):
            continue
        if not is_constant(view, node) or node.op in _VIEWS:
            queue.extend(above for above in node.inputs if above.name not in seen)
            seen.update(above.name for above in node.inputs)
        elif _may_be_replaced(view, node, tensor) and (view.rank(tensor) or 0) >= 2:
            yield tensor


def _biases(view: GraphView, site: AttentionSite) -> Iterator[gs.Tensor]:
    """What is added to the products behind Q, K and V, where it is computed."""
    products = [origin.layer for each in site.operands if (origin := read_origin(view, each.read)) is not None]
    added = {
        other.name: other
        for product in products
        for reader in (view.readers(product.outputs[0]) if product is not None else ())
        if reader.op == "Add" and reader.domain in STANDARD
        for other in reader.inputs
    }
    for tensor in added.values():
        node = view.producer(tensor)
        if node is None or not view.in_main_graph(node) or node.op in _VIEWS or not is_constant(view, node):
            continue
        if _may_be_replaced(view, node, tensor):
            yield tensor


def _may_be_replaced(view: GraphView, node: gs.Node, tensor: gs.Tensor) -> bool:
    """(Weights that are stored narrow, as of the layers whose states a mask is made from, would be stored wide beside them.)"""
    weight = weight_tensor(view, tensor)
    if weight is not None and is_dequantised(view, weight[0]):
        return False
    return node.op != "Constant" and len(node.outputs) == 1 and tensor.name not in view.pinned
