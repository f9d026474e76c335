"""A softmax and what stands around it: is it the softmax of an attention site?"""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from onnx_attn.codes import CODES
from onnx_attn.graph.view import GraphView, label
from onnx_attn.recognize.operands import head_count, head_size, kv_head_count, read_operand
from onnx_attn.recognize.probabilities import Product, read_probabilities
from onnx_attn.recognize.projection import read_projection
from onnx_attn.recognize.result import Stop
from onnx_attn.recognize.scores import Scores, read_scores
from onnx_attn.site import AttentionSite, Verdict
from onnx_attn.views.trace import FLOATS, trace


def recognize_softmax(view: GraphView, softmax: gs.Node) -> AttentionSite | Verdict:
    """Read one Softmax node as a site, or say what it is instead, or why it has to be left alone."""
    name = label(softmax)
    above, below = read_scores(view, softmax.inputs[0], softmax), read_probabilities(view, softmax)
    stop = _settle(view, above, below)
    if stop is None and not _on_last_axis(view, softmax):
        stop = Stop("softmax-axis", softmax)
    if stop is not None:
        return stop.verdict(name)
    assert isinstance(above, Scores) and isinstance(below, Product)
    return _site(view, softmax, above, below)


def _settle(view: GraphView, above: Scores | Stop, below: Product | Stop) -> Stop | None:
    """Attention needs both products. Without Q·Kᵀ it is none; without P·V neither; then what blocks, scores first."""
    no_query_key = isinstance(above, Stop) and above.code == "no-query-key-product"
    has_values = isinstance(below, Product) or CODES[below.code].attention or below.code == "talking-heads"
    if no_query_key:
        if not has_values:
            assert isinstance(below, Stop)
            return below
        if isinstance(below, Product) and _is_context(view, below.node.inputs[1]):
            return Stop("linear-attention", below.node)
        return above  # type: ignore[return-value]
    if isinstance(above, Stop):
        return above if has_values else below  # type: ignore[return-value]
    return below if isinstance(below, Stop) else None


def _is_context(view: GraphView, tensor: gs.Tensor) -> bool:
    """Kᵀ·V of linear attention: the second operand is itself a product of two activations."""
    node = view.producer(trace(view, tensor).source)
    return node is not None and node.op == "MatMul" and not any(view.is_weight(t) for t in node.inputs)


def _on_last_axis(view: GraphView, softmax: gs.Node) -> bool:
    """Before opset 13 Softmax flattened from `axis` (default 1) on: the same thing only when that is the last axis."""
    axis = softmax.attrs.get("axis", -1 if view.opset >= 13 else 1)
    rank = view.rank(softmax.inputs[0])
    return axis == -1 or (rank is not None and axis == rank - 1)


def _site(view: GraphView, softmax: gs.Node, scores: Scores, product: Product) -> AttentionSite | Verdict:
    query = read_operand(view, scores.product.inputs[0])
    key = read_operand(view, scores.product.inputs[1], transposed=True)
    value = read_operand(view, product.node.inputs[1])
    tensors = [operand.tensor for operand in (query, key, value)]
    sizes = [head_size(view, operand) for operand in (query, key, value)]
    ranks = {view.rank(tensor) or 0 for tensor in tensors}
    if len(ranks) != 1 or min(ranks) < 2 or None in sizes:
        return Stop("shape-unknown", scores.product).verdict(label(softmax))
    scale = query.trace.factor * key.trace.factor * scores.scale
    if not math.isfinite(scale):
        return Stop("scale-not-constant", scores.product, "it is not a finite number").verdict(label(softmax))
    types = [view.elem_type(tensor) for tensor in tensors]
    # V may have a type of its own: half-precision exports with a float32 mask compute softmax and P·V in float32.
    if types[0] != types[1] or not set(types) <= set(FLOATS):
        return Stop("type-not-supported", scores.product).verdict(label(softmax))
    head_dim, _, value_dim = sizes
    assert head_dim is not None and value_dim is not None
    return AttentionSite(
        name=label(softmax),
        node=softmax,
        product=scores.product,
        query=query,
        key=key,
        value=value,
        scale=scale,
        scores_scale=scores.scale,
        terms=scores.terms,
        probabilities_dtypes=product.dtypes,
        guard=product.guard,
        output=product.node.outputs[0],
        heads=head_count(view, query),
        kv_heads=kv_head_count(view, key),
        head_dim=head_dim,
        value_dim=value_dim,
        projection=read_projection(view, query, key, value),
        notes=product.notes,
    )
