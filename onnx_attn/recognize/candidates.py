"""Every softmax and every attention-like operator of a model gets a verdict: a site, or the reason why it is none."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnx_attn.codes import CODES
from onnx_attn.domain import DOMAIN, MICROSOFT, is_attention_function
from onnx_attn.graph.view import STANDARD, GraphView, label
from onnx_attn.recognize.normaliser import is_spelled
from onnx_attn.recognize.operator import recognize_attention_operator
from onnx_attn.recognize.probabilities import Product, read_probabilities
from onnx_attn.recognize.result import Stop
from onnx_attn.recognize.runtime_operator import NOT_ATTENTION, OPERATORS, recognize_runtime_operator
from onnx_attn.recognize.scopes import Nested, nested_nodes
from onnx_attn.recognize.softmax import recognize_softmax
from onnx_attn.recognize.written import recognize_written
from onnx_attn.site import Candidate, Verdict

SOFTMAXES = ("Softmax", "LogSoftmax")
PREVIEW = "ai.onnx.preview"
ENDS = ("Softmax", "Div", "Mul", "Exp")
"""The operators that a softmax ends with, in one node or in many."""


def recognize(view: GraphView) -> list[Candidate]:
    """All candidates in graph order, those of bodies at the node that holds or calls them, once a call."""
    found: list[tuple[int, Candidate]] = []
    for position, node in enumerate(view.graph.nodes):
        candidate = _candidate(view, node)
        if candidate is not None:
            found.append((position, candidate))
    for nested in nested_nodes(view):
        verdict = _in_body(view, nested)
        if verdict is not None:
            found.append((view.position(nested.owner), verdict))
    return [candidate for _, candidate in sorted(found, key=lambda pair: pair[0])]


def _in_body(view: GraphView, nested: Nested) -> Verdict | None:
    """A candidate in a body or a function, which is not rewritten; what it is shows in what becomes of its result alone,
    since shapes and values are known in the main graph only."""
    node = nested.node
    stop = Stop("nested-graph", nested.owner, nested.place)
    if (node.domain in STANDARD and node.op == "Attention") or _is_ready_made(node):
        return stop.verdict(label(node), nested.scope)
    if node.domain not in STANDARD or node.op not in (*SOFTMAXES, "Div", "Mul"):
        return None
    spelled = node.op in ("Div", "Mul")
    if spelled and not is_spelled(view, node):
        return None
    below = read_probabilities(view, node.outputs[0], node)
    if isinstance(below, Stop) and not CODES[below.code].attention:
        return None if spelled else below.verdict(label(node), nested.scope)
    anchor = label(below.node) if spelled and isinstance(below, Product) else ""
    return stop.verdict(label(node), nested.scope, anchor)


def _is_ready_made(node: gs.Node) -> bool:
    """A call of a function of ours, or an attention operator of ONNX Runtime."""
    ours = node.domain == DOMAIN and is_attention_function(node.op)
    return ours or (node.domain == MICROSOFT and node.op in OPERATORS)


def _candidate(view: GraphView, node: gs.Node) -> Candidate | None:
    if node.domain in STANDARD:
        if node.op in ENDS:
            return recognize_softmax(view, node)
        if node.op == "LogSoftmax":
            readers = {reader.op for reader in view.readers(node.outputs[0])}
            return None if readers == {"Exp"} else Stop("class-softmax", node, "LogSoftmax").verdict(label(node))
        if node.op == "Attention":
            return recognize_attention_operator(view, node)
        if node.op == "LinearAttention":
            return Stop("operator-not-supported", node, node.op).verdict(label(node))
    elif node.domain == PREVIEW and node.op == "FlexAttention":
        return Stop("operator-not-supported", node, node.op).verdict(label(node))
    elif node.domain == DOMAIN and is_attention_function(node.op):
        return recognize_written(view, node)
    elif node.domain == MICROSOFT and node.op in OPERATORS:
        return recognize_runtime_operator(view, node)
    elif node.domain == MICROSOFT and node.op in NOT_ATTENTION:
        return Stop("operator-not-supported", node, f"{node.domain}.{node.op}").verdict(label(node))
    return None
