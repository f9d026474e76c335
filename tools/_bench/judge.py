"""The same judge for every tool: how many attention operators a model holds, and whether it computes what another one does."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx

import onnx_attn
from onnx_attn.domain import DOMAIN, MICROSOFT, is_attention_function
from onnx_attn.prove.whole import default_rtol

LENIENCE = 10
"""How many times the bound of `onnx-attn verify` a result may differ by: approximated activations are not called wrong."""

_STANDARD = frozenset({"Attention"})
_MICROSOFT = frozenset(
    {
        "Attention",
        "DecoderMaskedMultiHeadAttention",
        "DecoderMaskedSelfAttention",
        "GroupQueryAttention",
        "LongformerAttention",
        "MultiHeadAttention",
        "PackedAttention",
        "PackedMultiHeadAttention",
        "PagedAttention",
        "QAttention",
        "QOrderedAttention",
        "SparseAttention",
    }
)
"""Operators of which each node is a whole attention."""


def load(path: Path) -> onnx.ModelProto:
    """The graph; weights that lie apart stay there."""
    return onnx.load(path, load_external_data=False)


def nodes(model: onnx.ModelProto) -> int:
    """Of the main graph and the bodies within it; a call of a function is one."""
    return sum(1 for _ in _every(model.graph.node))


def attention_nodes(model: onnx.ModelProto) -> int:
    """Nodes that are an attention each: operators, or calls of functions of ours; what other functions hold, at each call."""
    functions = {(function.domain, function.name): function for function in model.functions}

    def count(graph: Iterable[onnx.NodeProto]) -> int:
        total = 0
        for node in _every(graph):
            if _is_attention(node):
                total += 1
            elif (node.domain, node.op_type) in functions:
                total += count(functions[node.domain, node.op_type].node)
        return total

    return count(model.graph.node)


def _is_attention(node: onnx.NodeProto) -> bool:
    match node.domain:
        case "" | "ai.onnx":
            return node.op_type in _STANDARD
        case domain if domain == MICROSOFT:
            return node.op_type in _MICROSOFT
        case domain if domain == DOMAIN:
            return is_attention_function(node.op_type)
    return False


def _every(graph: Iterable[onnx.NodeProto]) -> Iterable[onnx.NodeProto]:
    for node in graph:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _every(body.node)


def verdict(original: Path, result: Path) -> dict[str, Any]:
    """Both run in ONNX Runtime without its optimizer, on the same inputs, at two sizes where dimensions vary.

    `right` is None where the original itself does not run: nothing can be said of a result then.
    """
    bound = LENIENCE * default_rtol([load(original)])
    try:
        told = onnx_attn.verify(str(original), str(result), rtol=bound)
    except onnx_attn.OnnxAttnError as error:
        if str(error).startswith(str(original)):
            return {"right": None, "why": "the original does not run"}
        return {"right": False, "why": str(error).removeprefix(f"{result}: ")[:200]}
    return {"right": told["ok"], "max_rel": told["max_rel"], "why": None if told["ok"] else "outputs differ"}
