"""Read the facts of a candidate off the graph: what a table can be asked about it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnx_attn.domain import MICROSOFT
from onnx_attn.graph.view import GraphView, label
from onnx_attn.recognize.scopes import nested_nodes
from onnx_attn.site import AttentionSite, Candidate, ScoreTerm, Verdict
from onnx_attn.targets.facts import Facts
from onnx_attn.targets.reading_quantised import quantised_facts

TYPES: dict[int, str] = {
    TensorProto.FLOAT16: "float16",
    TensorProto.BFLOAT16: "bfloat16",
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
}
MOST_STEPS = 32
"""How far above a refused softmax its product is looked for."""

_NODES: WeakKeyDictionary[GraphView, dict[tuple[str, str], gs.Node]] = WeakKeyDictionary()

Known = dict[str, Any]


def facts_of(view: GraphView, candidate: Candidate) -> Facts:
    """The facts of a candidate as it stands in the graph. Of one that was not read as a site, little more than its code."""
    known: Known = {"opset": view.opset, "nested": "none", "code": "none"}
    node = candidate_node(view, candidate)
    if isinstance(candidate, Verdict):
        known |= {"code": candidate.code, "nested": _nested(candidate.scope)}
    elif isinstance(candidate, AttentionSite):
        known |= _site(view, candidate) | quantised_facts(view, candidate)
        known |= {"code": "probabilities-used"} if candidate.shared else {}
    elif candidate.form == "function":
        known |= _product(view, *candidate.node.inputs[:3]) | _masks(view, candidate.masks, candidate.node.inputs[0])
        known |= {"causal": candidate.causal, "scale": _sign(candidate.scale)} | quantised_facts(view, candidate)
        parts = candidate.node.op.split("_")
        known |= {"softcap": "Softcap" in parts, "cleared": not {"Keep", "Clear"}.isdisjoint(parts)}
    if node is not None and form_of_node(node) == "attention":
        known |= _operator(view, node, known["nested"] == "none")
    elif node is not None and form_of_node(node) == "contrib":
        known |= _contrib(view, node)
    elif node is not None and isinstance(candidate, Verdict) and not candidate.scope:
        known |= _above(view, node)
    return Facts(**known)


def written_facts(view: GraphView, candidate: Candidate) -> Facts:
    """The facts of a candidate as any form of ours writes it: in order, and with a head of keys for each of queries."""
    facts = replace(facts_of(view, candidate), turned=False)
    if isinstance(candidate, AttentionSite):
        facts = replace(facts, code="none")  # Its probabilities are its own.
    return replace(facts, kv_heads=facts.heads) if facts.grouping == "even" else facts


def standing_form(view: GraphView, candidate: Candidate) -> str:
    """The form in which a candidate stands in the graph."""
    node = candidate_node(view, candidate)
    return "primitives" if node is None else form_of_node(node)


def form_of_node(node: gs.Node) -> str:
    """The form that a candidate's own node, its softmax or operator, tells."""
    if node.domain == MICROSOFT:
        return "contrib"
    if node.domain not in ("", "ai.onnx", None):
        return "function"
    return "attention" if node.op == "Attention" else "primitives"


def candidate_node(view: GraphView, candidate: Candidate) -> gs.Node | None:
    """The softmax or the operator itself; a verdict knows it by name and scope only."""
    if not isinstance(candidate, Verdict):
        return candidate.node
    if view not in _NODES:
        nodes = {(label(nested.node), nested.scope): nested.node for nested in nested_nodes(view)}
        _NODES[view] = nodes | {(label(node), ""): node for node in view.graph.nodes}
    return _NODES[view].get((candidate.name, candidate.scope))


def _nested(scope: str) -> str:
    """The kind of body that a scope `then (then_branch) | choice (If)` leads out of."""
    kinds = set(re.findall(r"\((\w+)\)(?= \||$)", scope))
    return next((kind for kind in ("If", "Loop", "Scan") if kind in kinds), "function" if scope else "none")


def _sign(scale: float | None) -> str | None:
    return None if scale is None else "negative" if scale < 0 else "positive"


def _site(view: GraphView, site: AttentionSite) -> Known:
    query, key = site.query.tensor, site.key.tensor
    known = _product(view, query, key, site.value.tensor, keys=-2)
    known |= {"heads": site.heads, "kv_heads": site.kv_heads, "causal": site.causal, "turned": site.turned}
    known |= {"softcap": any(term.kind == "softcap" for term in site.terms), "cleared": site.cleared is not None}
    known |= {"head_dim": site.head_dim, "value_dim": site.value_dim}
    known |= {"value_head": "same" if site.value_dim == site.head_dim else "other"}
    return (
        known | {"batch": _batch(view, query, site.heads), "scale": _sign(site.scale)} | _masks(view, site.masks, query)
    )


def _product(view: GraphView, query: gs.Tensor, key: gs.Tensor, value: gs.Tensor, keys: int = -2) -> Known:
    """Types and sizes of the operands `(…, N, S, H)`; `keys`: the axis of the key that counts them."""
    types = [view.elem_type(tensor) for tensor in (query, value)]
    sizes = [view.static(tensor, -1) if view.rank(tensor) else None for tensor in (query, value)]
    heads = _axis(view, query, -3)
    return {
        "dtype": TYPES.get(types[0]),
        "value_dtype": "same" if types[0] == types[1] else "other",
        "head_dim": sizes[0],
        "value_dim": sizes[1],
        "value_head": None if None in sizes else "same" if sizes[0] == sizes[1] else "other",
        "query_length": _axis(view, query, -2),
        "key_length": _axis(view, key, keys),
        "heads": heads,
        "kv_heads": _axis(view, key, -3),
        "batch": _batch(view, query, heads),
    }


def _axis(view: GraphView, tensor: gs.Tensor, axis: int) -> int | None:
    """A static size; 1 for a leading axis that the tensor does not have."""
    rank = view.rank(tensor)
    if rank is None:
        return None
    return view.static(tensor, axis) if rank >= -axis else 1


def _batch(view: GraphView, query: gs.Tensor, heads: int | None) -> int | None:
    """How often the heads repeat: all leading axes of Q, heads left out."""
    sizes = [view.static(query, axis) for axis in range((view.rank(query) or 2) - 2)]
    if not heads or any(size is None for size in sizes):
        return None
    return math.prod(size for size in sizes if size is not None) // heads


def _masks(view: GraphView, terms: Sequence[ScoreTerm], query: gs.Tensor) -> Known:
    """The facts of the first mask."""
    masks = [(term.kind, term.mask) for term in terms if term.mask is not None]
    if not masks:
        return dict.fromkeys(("mask", "mask_type", "mask_queries", "mask_keys"), "none") | {"mask_rank": 0}
    kind, mask = masks[0]
    return {"mask": "additive" if kind == "add" else "boolean"} | _mask(view, mask, query, None)


def _mask(view: GraphView, mask: gs.Tensor, query: gs.Tensor, key_length: int | None) -> Known:
    rank, elem_type = view.rank(mask), view.elem_type(mask)
    columns = _axis(view, mask, -1)
    fewer = None not in (columns, key_length) and columns not in (1, key_length)
    return {
        "mask_type": "none"
        if elem_type == TensorProto.BOOL
        else "query"
        if elem_type == view.elem_type(query)
        else "other",
        "mask_rank": rank,
        "mask_queries": "one" if _axis(view, mask, -2) == 1 and _axis(view, query, -2) != 1 else "all",
        "mask_keys": "fewer" if fewer else "all",
    }


def _operator(view: GraphView, node: gs.Node, visible: bool) -> Known:
    """The facts of an `Attention` node, whether or not it was read as a site. Shapes are known in the main graph only, and
    attributes of a function in its call only."""
    given = [tensor.name for tensor in node.inputs] + [""] * 7
    made = [bool(tensor.name) for tensor in node.outputs] + [False] * 4
    attributes = {name: value for name, value in node.attrs.items() if isinstance(value, int | float)}
    softcap = attributes.get("softcap", None if "softcap" in node.attrs else 0.0)
    known: Known = {
        "causal": attributes.get("is_causal", 0) == 1,
        "scale": _sign(attributes.get("scale", None if "scale" in node.attrs else 1.0)),
        "softcap": None if softcap is None else softcap != 0.0,
        "cleared": False,
        "precision": bool(attributes.get("softmax_precision", 0)),
        "window": any(attributes.get(f"{side}_window_size", -1) >= 0 for side in ("left", "right")),
        "past": bool(given[4] or given[5]),
        "nonpad": bool(given[6]),
        "presents": made[1] or made[2],
        "scores_output": made[3],
    }
    if not visible:
        return known
    query, key, value = node.inputs[:3]
    known |= {"rank": view.rank(query), "shared": _shared(view, node), "split": _split(view, node)}
    known |= _wide(view, node) if known["rank"] == 3 else _product(view, query, key, value)
    if not given[3]:
        return known | _masks(view, (), query)
    mask = node.inputs[3]
    known |= {"mask": "boolean" if view.elem_type(mask) == TensorProto.BOOL else "additive"}
    return known | _mask(view, mask, query, known["key_length"])


def _wide(view: GraphView, node: gs.Node) -> Known:
    """The sizes of 3-D operands `(B, S, N·H)`."""
    query, key, value = node.inputs[:3]
    heads, kv_heads = node.attrs.get("q_num_heads"), node.attrs.get("kv_num_heads")
    known = _product(view, query, key, value) | {"heads": heads, "kv_heads": kv_heads, "batch": view.static(query, 0)}
    widths = [_axis(view, tensor, -1) for tensor in (query, value)]
    if not heads or not kv_heads or None in widths:
        return known | {"head_dim": None, "value_dim": None, "value_head": None}
    size, value_size = widths[0] // heads, widths[1] // kv_heads
    same = "same" if size == value_size else "other"
    return known | {"head_dim": size, "value_dim": value_size, "value_head": same}


def _shared(view: GraphView, node: gs.Node) -> bool:
    """Q or K is a model input that is read as Q or K a second time: by another Attention node, or by this one."""
    free = [tensor for tensor in node.inputs[:2] if view.producer(tensor) is None and not view.is_weight(tensor)]
    return any(
        sum(reader.op == "Attention" and tensor in reader.inputs[:2] for reader in view.readers(tensor)) > 1
        for tensor in free
    )


def _split(view: GraphView, node: gs.Node) -> bool:
    if view.rank(node.inputs[0]) == 3:
        return True
    turned = [view.producer(tensor) for tensor in node.inputs[:3]]
    shaped = [view.producer(turn.inputs[0]) for turn in turned if turn is not None and turn.op == "Transpose"]
    return len(shaped) == 3 and all(shape is not None and shape.op == "Reshape" for shape in shaped)


def _contrib(view: GraphView, node: gs.Node) -> Known:
    """The facts of an operator of com.microsoft that rows speak of."""
    if not node.inputs:  # No schema says that it needs some.
        return {"operator": node.op}
    given = [tensor.name for tensor in node.inputs] + [""] * 4
    separate = node.op == "MultiHeadAttention" and view.rank(node.inputs[0]) == 3 and bool(given[1] and given[2])
    known: Known = {"operator": node.op, "dtype": TYPES.get(view.elem_type(node.inputs[0])), "packed": not separate}
    if node.op == "MultiHeadAttention":
        known["fused_bias"] = bool(given[3])
    heads = node.attrs.get("num_heads")
    if separate and isinstance(heads, int) and heads > 0:
        width, value_width = _axis(view, node.inputs[0], -1), _axis(view, node.inputs[2], -1)
        known["head_dim"] = None if width is None else width // heads
        known["value_head"] = None if None in (width, value_width) else "same" if width == value_width else "other"
    return known


def _above(view: GraphView, softmax: gs.Node) -> Known:
    """Of a softmax that is no site: is it turned, what product lies above, and does a Tanh limit that."""
    tensor, limited = softmax.inputs[0], False
    last = softmax.attrs.get("axis", -1) in (-1, (view.rank(softmax.inputs[0]) or 0) - 1)
    turned = not last or any(reader.op == "Transpose" for reader in view.readers(softmax.outputs[0]))
    for _ in range(MOST_STEPS):
        node = view.producer(tensor)
        if node is None or not node.inputs:
            break
        if node.op == "MatMul" and not view.is_weight(node.inputs[1]):
            left = node.inputs[0]
            found: Known = {"dtype": TYPES.get(view.elem_type(left)), "softcap": limited, "turned": turned}
            return found | {"head_dim": _axis(view, left, -1), "query_length": _axis(view, left, -2)}
        limited |= node.op == "Tanh"
        tensor = node.inputs[1] if node.op == "Where" else node.inputs[0]
    return {"turned": turned}
