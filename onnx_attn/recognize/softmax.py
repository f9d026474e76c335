"""A softmax and what stands around it: is it the softmax of an attention site?"""

from __future__ import annotations

from dataclasses import replace

import onnx_graphsurgeon as gs

from onnx_attn.codes import CODES
from onnx_attn.graph.view import GraphView, label
from onnx_attn.recognize.assemble import assemble
from onnx_attn.recognize.normaliser import read_exponentials, read_normaliser
from onnx_attn.recognize.probabilities import Product, read_divided, read_probabilities
from onnx_attn.recognize.result import Stop
from onnx_attn.recognize.row_guard import with_row_guard
from onnx_attn.recognize.scores import Scores, product_of_activations, read_scores
from onnx_attn.site import AttentionSite, Verdict
from onnx_attn.views.trace import trace


def recognize_softmax(view: GraphView, node: gs.Node) -> AttentionSite | Verdict | None:
    """Read the softmax, of one node or many, that ends at a node as a site, or say what it is instead, or why it has to be left
    alone; None where no softmax ends."""
    softmax = read_normaliser(view, node)
    if softmax is None:
        return Stop("shape-unknown", node).verdict(label(node)) if node.op == "Softmax" else _divided(view, node)
    above = read_scores(view, softmax.scores, softmax.node)
    below = read_probabilities(view, softmax.probabilities, softmax.node)
    found: AttentionSite | Stop | None = _settle(view, above, below)
    anchor = label(below.node) if not softmax.in_one_node else ""
    if isinstance(found, Stop):
        return found.verdict(label(softmax.node), anchor=anchor)
    assert isinstance(above, Scores) and isinstance(below, Product)
    found = assemble(view, softmax, above, below)
    if below.shared is not None:
        verdict = below.shared.verdict(label(softmax.node), anchor=anchor)
        return verdict if isinstance(found, Stop) else replace(verdict, recomputable=replace(found, shared=True))
    if isinstance(found, Stop):
        return found.verdict(label(softmax.node), anchor=anchor)
    return with_row_guard(view, found)


def _divided(view: GraphView, node: gs.Node) -> AttentionSite | Verdict | None:
    """A product with values that is divided by the sum of its exponentials afterwards."""
    found = read_exponentials(view, node)
    if found is None:
        return None
    softmax, exponential = found
    below, above = read_divided(view, exponential, node), read_scores(view, softmax.scores, node)
    if below is None or isinstance(above, Stop):
        return None
    site = assemble(view, softmax, above, below)
    return site if not isinstance(site, Stop) else site.verdict(label(node), anchor=label(below.node))


def _settle(view: GraphView, above: Scores | Stop, below: Product | Stop) -> Stop | None:
    """Attention needs both products. Without Q·Kᵀ it is none; without P·V neither; then what blocks, scores first."""
    no_query_key = isinstance(above, Stop) and above.code == "no-query-key-product"
    has_values = isinstance(below, Product) or CODES[below.code].attention or below.code == "talking-heads"
    if no_query_key:
        if not has_values:
            assert isinstance(below, Stop)
            return below
        if isinstance(below, Product) and below.product is not None and _is_context(view, below.product.right):
            return Stop("linear-attention", below.node)
        return above  # type: ignore[return-value]
    if isinstance(above, Stop):
        return above if has_values else below  # type: ignore[return-value]
    return below if isinstance(below, Stop) else None


def _is_context(view: GraphView, tensor: gs.Tensor) -> bool:
    """Kᵀ·V of linear attention: the second operand is itself a product of two activations."""
    node = view.producer(trace(view, tensor).source)
    return node is not None and product_of_activations(view, node) is not None
