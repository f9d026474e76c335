"""The model with its `Attention` operators spelled plainly, as far as they then are read as sites."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx

from onnx_attn.graph.edit import Names, Writer
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.view import STANDARD, GraphView, label
from onnx_attn.operators.spell import Operator, spell
from onnx_attn.operators.spelled import Spelled, put_in_place
from onnx_attn.recognize.candidates import recognize
from onnx_attn.site import AttentionSite, Candidate, Verdict


def with_plain_operators(
    loaded: Loaded, view: GraphView, candidates: list[Candidate], own: bool, only: Collection[str] | None = None
) -> tuple[Loaded, GraphView, list[Candidate]]:
    """The model to read, and its candidates: operators that were refused for their features are spelled out where that makes
    sites of them; the others stay as they are.

    own: the model may be changed; else a copy is. only: those of these names.
    """
    wanted = _with_features(view, [each for each in candidates if only is None or each.name in only])
    if not wanted:
        return loaded, view, candidates
    if not own:
        loaded = loaded.copy()
    nodes, stored = list(loaded.proto.graph.node), len(loaded.proto.graph.initializer)
    while True:
        _spell(loaded.proto, nodes, wanted)
        plain = GraphView(loaded.proto, before=view)
        found = recognize(plain)
        sites = {candidate.name for candidate in found if isinstance(candidate, AttentionSite)}
        named = {name for name, _ in wanted.values()}
        if named <= sites:
            return loaded, plain, found
        wanted = {position: entry for position, entry in wanted.items() if entry[0] in sites}
        del loaded.proto.graph.initializer[stored:]


Wanted = dict[int, tuple[str, Operator]]
"""Nodes to spell by their position: what they are called, and how they are read."""


def _with_features(view: GraphView, candidates: Sequence[Candidate]) -> Wanted:
    refused = {each.name for each in candidates if isinstance(each, Verdict) and each.code == "attention-feature"}
    found: Wanted = {}
    for position, node in enumerate(view.graph.nodes if refused else ()):
        if node.op == "Attention" and node.domain in STANDARD and label(node) in refused:
            operator = Operator(view, node)
            if not operator.is_plain and operator.can_be_spelled:
                found[position] = (label(node), operator)
    return found


def _spell(proto: onnx.ModelProto, nodes: Sequence[onnx.NodeProto], wanted: Wanted) -> None:
    """Put `nodes` into the graph, those that are wanted spelled out."""
    names, instead = Names(proto), dict[int, Spelled]()
    for position, (name, operator) in wanted.items():
        writer = Writer(names, name)
        spell(writer, operator, name)
        instead[position] = Spelled(writer.nodes, writer.initializers)
    put_in_place(proto.graph, nodes, instead)
