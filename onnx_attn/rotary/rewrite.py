"""The model with its rotary embeddings as the target takes them, each proved by itself."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import onnx

from onnx_attn.graph.compose import compose
from onnx_attn.graph.edit import Names, SiteEdit, Splice
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.view import STANDARD, GraphView
from onnx_attn.prove.cut import Cutter
from onnx_attn.prove.piece import prove_piece
from onnx_attn.rotary.piece import find_piece, made_at
from onnx_attn.rotary.spelled import facts_of, is_operator, write_spelled
from onnx_attn.rotary.tables import CannotSay, TableWriter
from onnx_attn.rotary.write import write_operator
from onnx_attn.site import AttentionSite, Candidate
from onnx_attn.targets.editions import Target
from onnx_attn.targets.rotary import RotaryFacts, takes_rotary

INT = onnx.AttributeProto.INT


@dataclass(frozen=True)
class Embedded:
    """What became of it: the sites, by the values that they make, whose Q or K comes from the operator now; why those of
    others do not that could; and whether anything changed."""

    sites: frozenset[str] = frozenset()
    left: dict[str, str] = field(default_factory=dict)
    changed: bool = False


def embed(
    loaded: Loaded,
    view: GraphView,
    candidates: Sequence[Candidate],
    wanted: Collection[str],
    target: Target | None,
    verify: bool,
) -> Embedded:
    """Write the operator where the target has it, for the sites in `wanted` (by the values that they make), and spell it where
    not; the model of `loaded` is changed. target: none has the operator where it is None. verify: each is run before and
    after."""

    def taken(facts: RotaryFacts) -> bool:
        return target is not None and takes_rotary(target, facts)

    takes = taken(RotaryFacts(opset=view.opset))
    if not (wanted and takes) and not any(map(is_operator, view.graph.nodes)):
        return Embedded()
    _without_idle_attributes(loaded.proto, view)
    names, cutter = Names(loaded.proto), Cutter(view)
    edits, left, sites = dict[str, SiteEdit](), dict[str, str](), set[str]()
    for node in view.graph.nodes:
        if is_operator(node) and not taken(facts_of(view, node)):
            try:
                edit = write_spelled(view, names, node)
            except CannotSay:
                continue
            if not verify or prove_piece(view, cutter, edit) is None:
                edits[node.outputs[0].name] = edit
    found = [each for each in candidates if isinstance(each, AttentionSite) and each.output.name in wanted]
    for site, edit in _operators(view, names, found, left) if takes else ():
        key, made = site.output.name, edit.outputs[0]
        failure = prove_piece(view, cutter, edit) if verify and made not in edits else None
        if failure is None:
            edits[made] = edit
            sites.add(key)
        else:
            left[key] = failure
    compose(loaded.proto, list(_shared_once(edits.values())))
    return Embedded(frozenset(sites), left, bool(edits))


def _without_idle_attributes(proto: onnx.ModelProto, view: GraphView) -> None:
    """Operators are told apart by what they say: attributes that say nothing (of a 4-D operand the number of its heads) go."""
    for node in proto.graph.node:
        if node.op_type != "RotaryEmbedding" or node.domain not in STANDARD:
            continue
        heads = {"num_heads"} if view.rank(view.tensors[node.input[0]]) == 4 else set()
        kept = [each for each in node.attribute if each.name not in heads and (each.type != INT or each.i)]
        if len(kept) < len(node.attribute):
            del node.attribute[:]
            node.attribute.extend(kept)


def _operators(
    view: GraphView, names: Names, sites: Sequence[AttentionSite], left: dict[str, str]
) -> Iterator[tuple[AttentionSite, SiteEdit]]:
    """The edits for Q and K of each site, those of a K that several share once. In graph order: tables are made in front of the
    first that reads them."""
    tables, written = TableWriter(view, names), dict[str, SiteEdit]()
    read = [(site, find_piece(view, operand.tensor)) for site in sites for operand in (site.query, site.key)]
    pieces = [(site, piece) for site, piece in read if piece is not None]
    for site, piece in sorted(pieces, key=lambda each: made_at(view, each[1])):
        try:
            if piece.made.name not in written:
                written[piece.made.name] = write_operator(view, names, site.name, piece, tables)
            yield site, written[piece.made.name]
        except CannotSay as reason:
            left[site.output.name] = str(reason)


def _shared_once(edits: Collection[SiteEdit]) -> Iterator[SiteEdit]:
    """What makes tables for several stands with the first that reads them."""
    seen = list[Splice]()
    for edit in edits:
        own = tuple(splice for splice in edit.splices if not any(splice is each for each in seen))
        seen += own
        yield replace(edit, splices=own)
