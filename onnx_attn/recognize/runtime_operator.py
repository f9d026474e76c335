"""Attention operators of ONNX Runtime as they stand: what their attributes and the shapes around them say.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, each under its name.
"""

from __future__ import annotations

import math

import onnx_graphsurgeon as gs

from onnx_attn.graph.view import GraphView, label
from onnx_attn.recognize.result import Stop
from onnx_attn.site import ScoreTerm, Verdict, Written

READ = {"Attention": (3, 5), "QAttention": (5, None), "MultiHeadAttention": (4, 5), "GroupQueryAttention": (None, 10)}
"""The operators that are said in plain nodes, with the places of their mask by keys and of their bias on the scores."""
ON_CUDA_ALONE = frozenset({"PackedAttention", "PackedMultiHeadAttention"})
OTHERS = frozenset(
    "DecoderMaskedMultiHeadAttention DecoderMaskedSelfAttention DecoderAttention LongformerAttention SparseAttention "
    "PagedAttention QOrderedAttention QOrderedLongformerAttention".split()
)
OPERATORS = READ.keys() | ON_CUDA_ALONE | OTHERS
NOT_ATTENTION = frozenset({"LinearAttention", "GatedDeltaNet", "AttnLSTM"})


def recognize_runtime_operator(view: GraphView, node: gs.Node) -> Written | Verdict:
    """What it does as it stands, which only its own runtime takes; or why nobody can tell here."""
    operator = f"{node.domain}.{node.op}"
    if node.op in ON_CUDA_ALONE:
        detail = f"{operator} has kernels on CUDA alone, so nothing that it is turned into could be compared with it"
        return Stop("unprovable-here", node, detail).verdict(label(node))
    if node.op not in READ:
        return Stop("operator-of-a-runtime", node, operator).verdict(label(node))
    heads = _number(node, "num_heads")
    kv_heads = _number(node, "kv_num_heads") or heads
    head_dim, value_dim = _head_sizes(view, node, heads, kv_heads)
    scale = _scale(node, head_dim)
    if not heads or not node.inputs or math.isnan(scale):
        return Stop("shape-unknown", node, operator).verdict(label(node))
    causal = node.attrs.get("causal", 1) if node.op == "GroupQueryAttention" else node.attrs.get("unidirectional", 0)
    return Written(
        name=label(node),
        node=node,
        scale=scale,
        causal=causal == 1,
        masks=_masks(node),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=value_dim,
        form="contrib",
    )


def _number(node: gs.Node, attribute: str) -> int | None:
    """A number of heads. No schema says what the operator takes: an attribute may be anything."""
    value = node.attrs.get(attribute)
    return value if isinstance(value, int) and value > 0 else None


def _scale(node: gs.Node, head_dim: int | None) -> float:
    """1/√H unless it is given; NaN where that is not known."""
    value = node.attrs.get("scale")
    if value:
        return float(value) if isinstance(value, float | int) else math.nan
    return 1.0 / math.sqrt(head_dim) if head_dim is not None and head_dim > 0 else math.nan


def _head_sizes(
    view: GraphView, node: gs.Node, heads: int | None, kv_heads: int | None
) -> tuple[int | None, int | None]:
    """Of Q and K, and of V. The result is as wide as the heads of Q with V's size."""
    result = view.static(node.outputs[0], -1)
    value_dim = result // heads if result and heads else None
    if node.op in ("Attention", "QAttention"):
        widths = node.attrs.get("qkv_hidden_sizes")
        first = widths[0] if isinstance(widths, list) and widths else None
        return (first // heads if isinstance(first, int) and heads else value_dim), value_dim
    if node.op == "MultiHeadAttention" and node.inputs and view.rank(node.inputs[0]) == 3:
        width = view.static(node.inputs[0], -1)
        return (width // heads if width and heads else None), value_dim
    return value_dim, value_dim


def _masks(node: gs.Node) -> tuple[ScoreTerm, ...]:
    padding, bias = READ[node.op]
    given = {place: tensor for place, tensor in enumerate(node.inputs) if tensor.name}
    terms = [ScoreTerm("where", given[padding], keep_when=True)] if padding in given else []
    return (*terms, *([ScoreTerm("add", given[bias])] if bias in given else []))
