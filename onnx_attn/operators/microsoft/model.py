"""The model without ONNX Runtime's own operators, as far as they can be said in plain nodes and that is proved."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import onnx

from onnx_attn.domain import MICROSOFT
from onnx_attn.graph.edit import Names
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.view import GraphView, called
from onnx_attn.graph.world import Known, World
from onnx_attn.operators.microsoft.call import ContradictionError
from onnx_attn.operators.microsoft.table import ATTENTION, spell, spelling
from onnx_attn.operators.spelled import Spelled, put_in_place
from onnx_attn.site import AttentionSite, Candidate, Verdict

Proof = Callable[[onnx.NodeProto, Spelled, Sequence[World]], tuple[str, str] | None]
"""Why a spelling is not taken, a code and in words; None where it does the same."""


@dataclass(frozen=True)
class Left:
    """A node that stays as it is, a code of the table of codes, and why in words."""

    node: str
    operator: str
    code: str
    reason: str

    @property
    def attention(self) -> bool:
        return self.operator.startswith(MICROSOFT) and self.operator.rpartition(".")[2] in ATTENTION


@dataclass(frozen=True)
class Outcome:
    """How many nodes were spelled out, by operator, and those that stay."""

    spelled: Mapping[str, int] = field(default_factory=dict)
    left: Sequence[Left] = ()

    def beside(self, other: Outcome) -> Outcome:
        """Both together."""
        spelled = Counter(self.spelled) + Counter(other.spelled)
        return Outcome(dict(spelled), [*self.left, *other.left])

    def told(self, verdicts: Sequence[Candidate]) -> list[Candidate]:
        """The candidates, where nodes that stay are refused for what is known about why."""
        why = {each.node: each for each in self.left if each.attention}
        return [
            Verdict(each.name, why[each.name].code, each.name, f"{why[each.name].operator}: {why[each.name].reason}")
            if each.name in why and not isinstance(each, AttentionSite)
            else each
            for each in verdicts
        ]

    def __bool__(self) -> bool:
        return bool(self.spelled or self.left)

    @property
    def document(self) -> dict[str, Any]:
        """For a report."""
        left = [{"node": each.node, "operator": each.operator, "reason": each.reason} for each in self.left]
        return {"operators": dict(self.spelled), "left": left}


def without_microsoft(
    loaded: Loaded,
    view: GraphView,
    proof: Proof | None,
    own: bool,
    taken: Set[str] = frozenset(),
    only: Collection[str] | None = None,
) -> tuple[Loaded, GraphView, Outcome]:
    """Spell out what the table knows, each kind of node proved once; without `proof` unproved.

    own: the model may be changed; else a copy is. taken: names of an enclosing model. only: the attention operators of these
        names, and no others.
    """
    nodes = view.proto.graph.node
    wanted = [place for place, node in enumerate(nodes) if spelling(node, view.opset) is not None]
    if only is not None:
        wanted = [place for place in wanted if nodes[place].op_type in ATTENTION and called(nodes[place]) in only]
    if not wanted:
        return loaded, view, Outcome()
    loaded = loaded if own else loaded.copy()
    instead, left = _spell_all(Names(loaded.proto, taken), view, wanted, proof)
    spelled = Counter(_operator(view.proto.graph.node[place]) for place in instead)
    outcome = Outcome(dict(spelled), left)
    if not instead:
        return loaded, view, outcome
    put_in_place(loaded.proto.graph, list(loaded.proto.graph.node), instead)
    return loaded, GraphView(loaded.proto), outcome


def _spell_all(
    names: Names, view: GraphView, wanted: Sequence[int], proof: Proof | None
) -> tuple[dict[int, Spelled], list[Left]]:
    """By position what stands for a node, and the nodes for which nothing may."""
    instead, left = dict[int, Spelled](), list[Left]()
    proved: dict[object, tuple[str, str] | None] = {}
    for place in wanted:
        node = view.proto.graph.node[place]
        found = _spelled(names, node, view)
        if isinstance(found, str):
            refused: tuple[str, str] | None = ("attention-feature", found)
        else:
            key = _signature(node, view.worlds)
            if proof is not None and key not in proved:
                proved[key] = proof(node, found, view.worlds)
            refused = proved.get(key)
            instead |= {place: found} if refused is None else {}
        if refused is not None:
            left.append(Left(called(node), _operator(node), *refused))
    return instead, left


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def _spelled(names: Names, node: onnx.NodeProto, view: GraphView) -> Spelled | str:
    try:
        found = spell(names, node, [known_in(view.worlds, name) for name in node.input], view.opset)
    except ContradictionError as error:
        return str(error)
    assert found is not None
    return found


def known_in(worlds: Sequence[World], name: str) -> tuple[Known, ...] | None:
    """What every world knows of a value; None where one knows nothing."""
    entries = [world.known.get(name) for world in worlds] if name else []
    known = tuple(entry for entry in entries if entry is not None)
    return known if known and len(known) == len(entries) else None


def _signature(node: onnx.NodeProto, worlds: Sequence[World]) -> object:
    """What two nodes have in common that are spelled and proved alike."""
    inputs = [known_in(worlds, name) for name in node.input]
    return (
        (node.domain, node.op_type),
        tuple(sorted(each.SerializeToString(deterministic=True) for each in node.attribute)),
        tuple(bool(name) for name in node.input),
        tuple(bool(name) for name in node.output),
        tuple(
            None
            if each is None
            else tuple((k.elem_type, k.shape, k.value.tobytes() if k.value is not None else None) for k in each)
            for each in inputs
        ),
    )
