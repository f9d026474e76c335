"""The standard `Attention` operator said in primitives: as the form `function` would say the same site.

Heads that lie side by side, or are shared, are taken apart and repeated without a copy: the operator itself moves nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import onnx
import onnx_graphsurgeon as gs
from onnx import TensorProto, helper

from onnx_attn.domain import ATTENTION, DOMAIN
from onnx_attn.forms.body import FILLED, Signature, signature
from onnx_attn.forms.function import attention_function
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import Known
from onnx_attn.site import AttentionSite, ScoreTerm

REPEAT = "onnx_attn.Repeat"
"""An operation of this package's own: another view of the same numbers."""
Readings = Callable[[str], "Reading | None"]
"""How a node was read, by its label."""


@dataclass(frozen=True)
class Reading:
    """What an attention operator does between its two products."""

    form: Signature
    terms: tuple[ScoreTerm, ...]


def reading(view: GraphView, site: AttentionSite) -> Reading:
    return Reading(signature(view, site, 4), site.terms)


@dataclass(frozen=True)
class Call:
    """A call of a function that stands for the operator, the operations in front of it and behind, and types and shapes of what
    these make."""

    node: onnx.NodeProto
    function: onnx.FunctionProto
    views: Sequence[onnx.NodeProto]
    after: Sequence[onnx.NodeProto]
    known: dict[str, Known]


def spelled_attention(
    node: onnx.NodeProto, inputs: Sequence[Known | None], read: Reading | None, opset: int
) -> Call | None:
    """None where the shapes are not known."""
    places = [*inputs, *[None] * (7 - len(inputs))]
    query, key, value, mask, past = (entry if entry is not None and entry.shape else None for entry in places[:5])
    if query is None or key is None or value is None:
        return None
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    heads, shared = attributes.get("q_num_heads", 0), attributes.get("kv_num_heads", 0)
    shapes = [_heads(entry, count) for entry, count in ((query, heads), (key, shared), (value, shared))]
    if any(shape is None for shape in shapes):
        return None
    (batch, heads, rows, width), (_, _, keys, _), (_, _, _, value_width) = shapes  # type: ignore[misc]
    keys += past.shape[2] if past is not None and past.shape else 0
    read = read or _plain(attributes, mask)
    function = _function(read.form, tuple((each.kind, each.mask is not None) for each in read.terms), opset)
    names = [f"{node.output[0]}/{part}" for part in ("query", "key", "value")]
    made = f"{node.output[0]}/heads"
    operands = list(node.input[:3])
    masks = [node.input[3]] if any(term.mask is not None for term in read.terms) and mask is not None else []
    call = helper.make_node(ATTENTION, [*names, *masks], [made], node.name, domain=DOMAIN)
    call.attribute.extend(helper.make_attribute(number, 1.0) for number in _numbers(read.terms))
    views = [
        helper.make_node("Repeat", [before], [after], domain=DOMAIN)
        for before, after in zip(operands, names, strict=True)
    ]
    after = [helper.make_node("Repeat", [made], [node.output[0]], domain=DOMAIN)]
    after += [
        helper.make_node("Concat", [each for each in given if each], [present], axis=2)
        for present, given in zip(node.output[1:3], zip(node.input[4:6], node.input[1:3], strict=False), strict=False)
        if present
    ]
    sizes = [(batch, heads, rows, width), (batch, heads, keys, width), (batch, heads, keys, value_width)]
    known = {
        name: Known(entry.elem_type, size) for name, entry, size in zip(names, (query, key, value), sizes, strict=True)
    }
    known[made] = Known(query.elem_type, (batch, heads, rows, value_width))
    return Call(call, function, views, after, known)


@cache
def _function(form: Signature, kinds: tuple[tuple[Any, bool], ...], opset: int) -> onnx.FunctionProto:
    terms = tuple(ScoreTerm(kind, gs.Variable("mask") if masked else None) for kind, masked in kinds)
    return attention_function(ATTENTION, form, terms, _numbers(terms), opset)


def _numbers(terms: Sequence[ScoreTerm]) -> list[str]:
    return ["scale", *(f"fill_{number}" for number, term in enumerate(terms) if term.kind in FILLED), "lowest"]


def _heads(entry: Known, heads: int) -> tuple[int, int, int, int] | None:
    """(B, N, S, H) of an operand that has this shape or is `(B, S, N·H)`."""
    shape = entry.shape or ()
    if len(shape) == 4:
        return shape
    return (shape[0], heads, shape[1], shape[2] // heads) if len(shape) == 3 and heads else None


def _plain(attributes: dict[str, object], mask: Known | None) -> Reading:
    """By the attributes alone, for one that was read as no site."""
    terms = [ScoreTerm("softcap")] if attributes.get("softcap") else []
    terms += [ScoreTerm("causal")] if attributes.get("is_causal") == 1 else []
    if mask is not None:
        terms.append(ScoreTerm("where" if mask.elem_type == TensorProto.BOOL else "add", gs.Variable("mask")))
    form = Signature(4, tuple((term.kind, term.keep_when, term.dtype) for term in terms), (), None)
    return Reading(form, tuple(terms))
