"""apply → prove: every site that was decided is written, as a record in the journal of edits, and proved by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import replace

from onnx_attn.algebra.choose import NOTHING
from onnx_attn.decided import write_decided
from onnx_attn.decision import Decision
from onnx_attn.forms.adaptation import island_name
from onnx_attn.fusion import Fusion
from onnx_attn.graph.edit import Names, SiteEdit
from onnx_attn.progress import step, steps
from onnx_attn.prove.cut import Cutter, boundary, same_nodes
from onnx_attn.prove.observed import Values, observe
from onnx_attn.prove.signature import signature
from onnx_attn.prove.site import place_of, prove_site

Kind = tuple[object, ...]
"""The signature of a site."""


def write_sites(fusion: Fusion, names: Names, cutter: Cutter) -> set[str]:
    """Record the edit of every site that does not stand as it should already; returns the values that are made anew."""
    written = [decision for decision in fusion.plan.decisions if not decision.stays]
    reserved = {decision.key for decision in written}
    fusion.kept.update(decision.key for decision in fusion.plan.decisions if decision.stays)
    for decision in steps(written, _name):
        edit = _write(fusion, names, decision, reserved)
        spelled = decision.form in ("primitives", "attention") and not decision.site.shared
        if spelled and _stands_already(cutter, decision, edit):
            fusion.kept.add(decision.key)
        else:
            fusion.edits[decision.key] = edit
    return reserved


def _name(decision: Decision) -> str:
    return decision.site.name


def _stands_already(cutter: Cutter, decision: Decision, edit: SiteEdit) -> bool:
    start = boundary(cutter.view, decision.site, edit).difference(edit.outputs)
    before, after = (cutter.cut(edit.outputs, start, each, varying=False) for each in (None, edit))
    return same_nodes(before, after)


def _write(fusion: Fusion, names: Names, decision: Decision, reserved: Set[str]) -> SiteEdit:
    written, left, edit = write_decided(fusion.view, names, decision, reserved)
    if written is not decision:
        fusion.change(written, left)
    return edit


def prove_sites(
    fusion: Fusion,
    cutter: Cutter,
    names: Names,
    reserved: Set[str],
    inputs: Sequence[Values],
    budget: float | None = None,
) -> None:
    """Prove every site, islands also on what the model computes from `inputs`; one that fails is written without algebra, then
    without its island, before it is rolled back.

    budget: seconds. One site of each signature is proved in any case; when the time is over, others take the certificate of the
    one that is like them and say so, unless that failed.
    """
    islands = [(d.site, e) for d in fusion.plan.decisions if (e := fusion.edits.get(d.key)) is not None and e.island]
    seen = observe(cutter, islands, inputs, fusion.name) if islands and inputs else []
    written = [decision for decision in fusion.plan.decisions if decision.key in fusion.edits]
    if budget is None:
        for decision in steps(written, _name):
            _prove(fusion, cutter, names, reserved, decision, seen)
        return
    start, proved = time.perf_counter(), dict[Kind, Decision]()
    for number, (decision, kind) in enumerate(_new_kinds_first(fusion, cutter, written), 1):
        step(number, len(written), _name(decision))
        like = proved.setdefault(kind, decision)
        in_time = time.perf_counter() - start <= budget
        if like is decision or in_time or like.key not in fusion.edits or like.key in fusion.left:
            _prove(fusion, cutter, names, reserved, decision, seen)
        else:
            _stand_in(fusion, like, decision)


def _stand_in(fusion: Fusion, like: Decision, decision: Decision) -> None:
    """Give a site the certificate of one that is like it, between its own values."""
    certificate = fusion.certificates[like.key]
    quantised = certificate.between is not None and not certificate.between.extremes
    between = place_of(fusion.view, decision.site, fusion.edits[decision.key], quantised)
    fusion.certificates[decision.key] = replace(certificate, cases=0, tried=(), between=between, like=like.site.name)


def _new_kinds_first(fusion: Fusion, cutter: Cutter, written: Sequence[Decision]) -> Iterator[tuple[Decision, Kind]]:
    """Decisions with their signatures, the first of each signature in front of all others."""
    kinds = [signature(fusion.view, cutter, each.site, fusion.edits[each.key]) for each in written]
    first = {kind: place for place, kind in reversed([*enumerate(kinds)])}
    places = sorted(range(len(written)), key=lambda place: first[kinds[place]] != place)
    return ((written[place], kinds[place]) for place in places)


def _prove(
    fusion: Fusion,
    cutter: Cutter,
    names: Names,
    reserved: Set[str],
    decision: Decision,
    seen: Sequence[Values],
) -> None:
    edit = fusion.edits[decision.key]
    certificate = prove_site(fusion.view, cutter, decision.site, edit, seen if edit.island else ())
    for plainer, dropped in _plainer(decision, edit):
        if certificate.ok or not certificate.provable:
            break
        fusion.change(plainer, dict.fromkeys(dropped, certificate.failure or ""))
        names.unclaim(edit.nodes)
        fusion.edits[decision.key] = edit = _write(fusion, names, plainer, reserved)
        certificate = prove_site(fusion.view, cutter, decision.site, edit)
    fusion.certificates[decision.key] = certificate
    if not certificate.ok:
        del fusion.edits[decision.key]


def _plainer(decision: Decision, edit: SiteEdit) -> Iterator[tuple[Decision, Sequence[str]]]:
    """The site without what may have failed its proof, one thing after the other, and what is left out."""
    if edit.algebra:
        yield replace(decision, algebra=NOTHING), edit.algebra
    if edit.island:
        wide = replace(decision, adaptation=replace(decision.adaptation, precision="keep"))
        yield wide, [island_name(decision.adaptation.precision)]
        if edit.algebra:
            yield replace(wide, algebra=NOTHING), edit.algebra
