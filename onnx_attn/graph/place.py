"""A node as it is read in every world: once, since to read it from its proto takes as long as to look up what it makes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import onnx

from onnx_attn.domain import MICROSOFT
from onnx_attn.graph.contradictions import CHECKED

LIKE_THE_FIRST = frozenset({"RotaryEmbedding"})
"""ONNX Runtime's own operators, unknown to onnx, whose result has the type and shape of their first input."""

_GRAPHS = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)


class Place(NamedTuple):
    """A node: the domain that its operator is of, the function that it calls, and all that decides what it makes beside its
    inputs (`key`; None where it has bodies, and where no one infers it).

    checked: whether what it makes may contradict it. like_the_first: it makes what is like its first input.
    """

    node: onnx.NodeProto
    domain: str
    function: onnx.FunctionProto | None
    inputs: list[str]
    outputs: list[str]
    key: tuple[Any, ...] | None
    checked: bool = False
    like_the_first: bool = False


def place_of(
    node: onnx.NodeProto,
    functions: Mapping[tuple[str, str], onnx.FunctionProto],
    texts: dict[tuple[str, str], bytes],
    opsets: Mapping[str, int],
) -> Place:
    """texts: functions in one piece each; it grows."""
    name, domain = node.op_type, standard(node.domain)
    inputs, outputs, attributes = list(node.input), list(node.output), node.attribute
    function = functions.get((node.domain, name)) if functions else None
    if name in LIKE_THE_FIRST and domain == MICROSOFT:
        return Place(node, domain, None, inputs, outputs, None, like_the_first=True)
    if function is None and any(a.type in _GRAPHS for a in attributes):
        return Place(node, domain, None, inputs, outputs, None)
    if function is not None and (node.domain, name) not in texts:
        texts[node.domain, name] = function.SerializeToString()
    key = (
        name,
        domain,
        tuple([a.SerializeToString() for a in attributes]) if attributes else (),
        # Which inputs there are: of one that is missing nothing is known either.
        tuple(map(bool, inputs)) if "" in inputs else len(inputs),
        tuple(map(bool, outputs)) if "" in outputs else len(outputs),
        opsets.get(domain) if function is None else texts[node.domain, name],
    )
    return Place(node, domain, function, inputs, outputs, key, domain == "" and name in CHECKED)


def standard(domain: str) -> str:
    """The standard's domain has two spellings."""
    return "" if domain == "ai.onnx" else domain
