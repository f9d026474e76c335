"""The standard `Attention` operator (opsets 23 on) as a site: what it computes, in the vocabulary of softmax sites.

Source: onnx operator specification, Attention-23/24: Y = softmax(scale·Q·Kᵀ + mask)·V; True in a boolean mask means
attend; is_causal: key ≤ query; a row that is masked fully answers 0. ONNX Runtime 1.31.1 takes a row for fully masked when
no element of its float mask is above the type's lowest number; the specification does not say.
"""

from __future__ import annotations

import math

import ml_dtypes
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnx_attn.graph.view import GraphView, label
from onnx_attn.graph.world import Shape
from onnx_attn.recognize.operands import head_copies, read_operand
from onnx_attn.recognize.projection import read_projection
from onnx_attn.recognize.result import CONTRADICTION, Stop
from onnx_attn.site import AttentionSite, Guard, Operand, ScoreTerm, Verdict
from onnx_attn.views.folding import constant_value
from onnx_attn.views.trace import FLOATS, lowest


def recognize_attention_operator(view: GraphView, node: gs.Node) -> AttentionSite | Verdict:
    """Read a plain 4-D `Attention` node; features beyond that are refused by name."""
    feature = _unread_feature(view, node)
    if feature is not None:
        return Stop("attention-feature", node, feature).verdict(label(node))
    if any(view.rank(tensor) != 4 for tensor in node.inputs[:3]):
        return Stop("shape-unknown", node).verdict(label(node))
    query, key, value = (read_operand(view, tensor) for tensor in node.inputs[:3])
    head_dim, value_dim = view.static(query.tensor, -1), view.static(value.tensor, -1)
    if not head_dim or value_dim is None:
        return Stop("shape-unknown", node).verdict(label(node))
    if not _fit_together(*(view.shapes(operand.tensor) for operand in (query, key, value))):
        return Stop("shape-unknown", node, CONTRADICTION).verdict(label(node))
    types = {view.elem_type(tensor) for tensor in node.inputs[:3]}
    if len(types) != 1 or not types <= set(FLOATS):
        return Stop("type-not-supported", node).verdict(label(node))
    mask = node.inputs[3] if len(node.inputs) > 3 and node.inputs[3].name else None
    if mask is not None and view.elem_type(mask) not in (*types, onnx.TensorProto.BOOL):
        return Stop("type-not-supported", node, "the mask is neither boolean nor of Q's type").verdict(label(node))
    # The operator's scale is a float32 attribute; its default is 1/√H.
    scale = float(node.attrs.get("scale", 1.0 / math.sqrt(head_dim)))
    return AttentionSite(
        name=label(node),
        node=node,
        product=node,
        query=query,
        key=key,
        value=value,
        scale=query.whole.factor * key.whole.factor * scale,
        scores_scale=scale,
        terms=_terms(view, node, mask),
        probabilities_dtypes=_back(view, node),
        guard=_guard(view, mask),
        output=node.outputs[0],
        heads=view.static(query.tensor, 1),
        kv_heads=kv_heads(view, key),
        head_dim=head_dim,
        value_dim=value_dim,
        projection=read_projection(view, query, key, value),
    )


def is_causal(node: gs.Node) -> bool:
    """By the attribute, of which the specification and ONNX Runtime take 1 alone."""
    return bool(node.attrs.get("is_causal", 0) == 1)


def kv_heads(view: GraphView, key: Operand) -> int | None:
    count = view.static(key.tensor, 1)
    return None if count is None else count // head_copies(view, key)


def _fit_together(*operands: tuple[Shape, ...] | None) -> bool:
    """False where Q, K and V `(B, N, S, H)` are of other batches, heads or lengths than each other: no runtime takes that."""
    query, key, value = operands
    assert query is not None and key is not None and value is not None  # Their ranks are known.
    return all(
        q[0] == k[0] == v[0] and q[3] == k[3] and k[1:3] == v[1:3] for q, k, v in zip(query, key, value, strict=True)
    )


def _guard(view: GraphView, mask: gs.Tensor | None) -> Guard:
    """What becomes of rows that are masked throughout; nothing where the mask is constant and has no such row."""
    if mask is None:
        return None
    value, least = constant_value(view, mask), lowest(view.elem_type(mask))  # A boolean mask has no lowest number.
    if value is not None and (value if least is None else value > least).any(axis=-1).all():
        return None
    return "nan" if least is None else "row"


def _terms(view: GraphView, node: gs.Node, mask: gs.Tensor | None) -> tuple[ScoreTerm, ...]:
    cap, precision = node.attrs.get("softcap"), _precision(view, node)
    terms = [ScoreTerm("softcap", fill=float(cap))] if cap else []
    terms += [ScoreTerm("causal")] if is_causal(node) else []
    if mask is not None and view.elem_type(mask) == onnx.TensorProto.BOOL:
        terms.append(ScoreTerm("where", mask, -math.inf, keep_when=True))
    elif mask is not None:
        terms.append(ScoreTerm("add", mask))
    return (*terms, ScoreTerm("cast", dtype=precision)) if precision else tuple(terms)


def _precision(view: GraphView, node: gs.Node) -> int:
    """The type that the softmax is computed in where that is another one than the operands'; else 0."""
    asked = int(node.attrs.get("softmax_precision") or 0)
    return 0 if asked == view.elem_type(node.inputs[0]) else asked


def _holds(wide: int, narrow: int) -> bool:
    """Whether every number of the second type is one of the first."""
    first, second = (ml_dtypes.finfo(helper.tensor_dtype_to_np_dtype(elem_type)) for elem_type in (wide, narrow))
    return bool(first.max >= second.max and first.eps <= second.eps)


def _back(view: GraphView, node: gs.Node) -> tuple[int, ...]:
    return (view.elem_type(node.inputs[0]),) if _precision(view, node) else ()


def _shares_heads(view: GraphView, node: gs.Node) -> bool:
    """As many heads of K and V as of Q, or a number that divides it: each is then shared by neighbours."""
    heads, *kv_heads = (view.static(tensor, 1) for tensor in node.inputs[:3])
    if heads is None:
        return kv_heads == [None, None]
    return kv_heads[0] == kv_heads[1] and bool(kv_heads[0]) and heads % kv_heads[0] == 0  # type: ignore[operator]


def _unread_feature(view: GraphView, node: gs.Node) -> str | None:
    """The first thing about this node that the site's vocabulary cannot say yet."""
    query, key = node.inputs[:2]
    if view.rank(query) == 3:
        return "3-D inputs"
    if all(view.rank(tensor) == 4 for tensor in node.inputs[:3]) and not _shares_heads(view, node):
        return "heads of keys and values that those of the query do not share evenly"
    if any(tensor.name for tensor in node.inputs[4:]):
        return "past_key, past_value or nonpad_kv_seqlen"
    if any(tensor.outputs or view.is_output(tensor) for tensor in node.outputs[1:]):
        return "a second output is read"
    has_mask = len(node.inputs) > 3 and bool(node.inputs[3].name)
    if has_mask and is_causal(node):
        return "is_causal together with a mask"
    for attribute in ("left_window_size", "right_window_size"):
        if node.attrs.get(attribute) not in (None, -1):
            return attribute
    if (node.attrs.get("softcap") or 0.0) < 0.0:
        return "a negative softcap"
    # ONNX Runtime 1.31.1 reads over a type that is narrower than the operands', to which the specification rounds.
    precision, own = _precision(view, node), view.elem_type(query)
    if precision and (precision not in FLOATS or not _holds(precision, own)):
        return "a softmax_precision that is narrower than the operands"
    if view.rank(key) == 4 and has_mask:
        mask, keys = view.shapes(node.inputs[3]), view.shapes(key)
        if (
            mask is None
            or keys is None
            or any(not m or m[-1] not in (1, k[-2]) for m, k in zip(mask, keys, strict=True))
        ):
            return "a mask shorter than the keys"
    return None
