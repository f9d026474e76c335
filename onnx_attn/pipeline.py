"""load → recognize → plan → apply → prove: the arrows of the design, one after the other."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from onnx_attn.batch.make import Varied
from onnx_attn.counting.model import compared
from onnx_attn.decision import Decision
from onnx_attn.drawing.site import Drawer, Drawn
from onnx_attn.errors import ExpectationError, InputError, UsageError, printable
from onnx_attn.forms.adaptation import ISLANDS
from onnx_attn.forms.folded import compute_folds
from onnx_attn.fusion import Fusion
from onnx_attn.graph.body import Body, names_within
from onnx_attn.graph.compose import compose
from onnx_attn.graph.edit import Names, SiteEdit
from onnx_attn.graph.inference import Inference
from onnx_attn.graph.inline import inline_operators
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.opset import opset_of, raise_opset
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import World
from onnx_attn.nested import Block, blocks, counted, is_nested, merged, replace_bodies
from onnx_attn.options import Options
from onnx_attn.plan import Plan, is_attention, make_plan
from onnx_attn.plan_file import plan_document
from onnx_attn.prepared import Prepared, prepared, stats_of
from onnx_attn.progress import stage
from onnx_attn.prove.compare import RTOL
from onnx_attn.prove.cut import Cutter
from onnx_attn.prove.inputs import model_inputs
from onnx_attn.prove.reduced import scores_bytes
from onnx_attn.prove.slices import WHOLE, Slices
from onnx_attn.prove.whole import default_rtol
from onnx_attn.reading import read_model
from onnx_attn.recognize.causality import blocks_later_keys
from onnx_attn.recognize.rotary import read_rotary
from onnx_attn.recognize.window import read_window
from onnx_attn.recognize.window_masks import mask_kinds
from onnx_attn.report.document import fusion_report, inspection
from onnx_attn.report.drawn import with_drawings
from onnx_attn.runtime import CannotRun
from onnx_attn.search.search import search
from onnx_attn.site import Candidate, Verdict
from onnx_attn.sites import prove_sites, write_sites
from onnx_attn.targets.editions import Target
from onnx_attn.targets.reading import TYPES

Report = dict[str, Any]
PlanDocument = dict[str, Any]


@dataclass(frozen=True)
class Trial:
    """What the proof of the whole model needs to know: inputs (two sizes where dimensions are dynamic) and the bound.

    plan: what was decided, as a document.
    slices: how the model before and the one after take their batch.
    left: why it is not to be run; None if it is.
    """

    name: str
    changed: bool
    inputs: list[dict[str, np.ndarray]]
    rtol: float
    plan: dict[str, Any]
    slices: tuple[Slices, Slices] = (WHOLE, WHOLE)
    left: str | None = None


def inspect_model(loaded: Loaded, target: Target, draw: bool = False) -> Report:
    """Recognise and plan, nothing more. draw: also what the report to look at shows."""
    with stage("recognize"):
        reading = read_model(loaded, target)
        inside = reading.blocks
    view, outcome = reading.view, reading.outcome
    taking = target.taking(view.opset)
    with stage("plan"):
        plan = make_plan(view, reading.candidates, taking)
        report = inspection(loaded.name, taking, view, plan)
    report["spelled"] = outcome.document if outcome else None
    if draw:
        with stage("draw"):
            with_drawings(report["candidates"], _drawings(view, Cutter(view), plan, {}))
    inner = [(each, inspect_model(Loaded(each.body.model, loaded.name), target, draw)["candidates"]) for each in inside]
    report["candidates"] = merged(report["candidates"], inner)
    counted(report)
    return report


@contextmanager
def _without_collector() -> Iterator[None]:
    """A graph is a million small objects that all stay: the collector would walk them again and again for nothing, which
    makes time grow faster than nodes."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_without_collector()
def rewrite(loaded: Loaded, options: Options) -> tuple[Report, Trial, onnx.ModelProto]:
    """Recognise, plan, apply, prove each site and roll back those that fail; the model of `loaded` is changed."""
    left = options.why_left(loaded.proto)
    ready = prepared(loaded, options)
    view, candidates, varied = ready.view, ready.candidates, ready.varied
    cutter = Cutter(view)
    fusion = _planned(ready, loaded.name, cutter, options)
    with fusion.clock("apply"):
        names = Names(ready.loaded.proto, options.outer or (), ready.loaded.made)
        reserved = write_sites(fusion, names, cutter)
    nested = is_nested(fusion.plan.entries)
    tried = left is None and options.outer is None and (fusion.edits or nested or ready.changed)
    inputs = (ready.calls or _trial_inputs(fusion)) if tried else []
    whole = _batch_inputs(fusion, varied) if options.verify and varied is not None else inputs
    if options.verify:
        with fusion.clock("prove"):
            prove_sites(fusion, cutter, names, reserved, inputs, options.prove_budget)
    with fusion.clock("plan"):
        _read_for_report(view, [*candidates, *(decision.site for decision in fusion.plan.decisions)])
    if options.draw:
        with fusion.clock("draw"):
            fusion.drawings = _drawings(view, cutter, fusion.plan, fusion.edits)
    worlds = view.worlds if nested else ()
    with fusion.clock("apply"):
        model = compose(ready.loaded.proto, list(fusion.edits.values()))
    finished = _finish_expansion(loaded.name, model, options)
    inner, inner_changed = _rewrite_bodies(model, worlds, fusion.plan, options) if nested else ([], False)
    fusion.nodes_after = len(model.graph.node)
    changed = bool(fusion.edits) or inner_changed or finished or ready.changed or (ready.spelled and bool(fusion.kept))
    if not changed:  # What was raised or inlined for nothing is not delivered.
        fusion.opsets, fusion.nodes_after = fusion.opsets[:1], ready.nodes
    scores = max((scores_bytes(view, decision.site) for decision in fusion.plan.decisions), default=0)
    left = left or options.why_too_large(scores // 2)  # In float32; `scores_bytes` tells of float64.
    rtol = max(default_rtol([model]), _island_rtol(fusion.plan, options))
    slices = (_slices_of(varied), WHOLE) if varied is not None else (WHOLE, WHOLE)
    trial = Trial(loaded.name, changed, whole, rtol, _document(fusion, ready.found, options), slices, left)
    with fusion.clock("stats"):
        after = stats_of(Loaded(model, loaded.name), view, options, candidates) if changed else ready.stats
    report = fusion_report(fusion)
    with_drawings(report["candidates"], fusion.drawings)
    report["proof_left"] = left
    report["stats"] = compared(ready.stats, after) if ready.stats and after else None
    report["candidates"] = merged(report["candidates"], inner)
    counted(report)
    _check_expectation(loaded.name, report, options)
    return report, trial, model


def _planned(ready: Prepared, name: str, cutter: Cutter, options: Options) -> Fusion:
    """What will be done, with values folded, and after a search if that was asked for."""
    plan = make_plan(ready.view, ready.candidates, ready.target, options.choice, options.own_choices)
    plan = plan.prepared(ready.ordered.sites, ready.embedded.sites)
    if ready.stuck is not None:
        plan = plan.explained("opset-too-low", ready.stuck)
    fusion = Fusion(name, ready.target, ready.view, plan, ready.nodes, opsets=tuple(ready.opsets), varied=ready.varied)
    fusion.microsoft, fusion.left = ready.microsoft, ready.left
    fusion.seconds = {"prove": 0.0, "save": 0.0, **ready.seconds}
    with fusion.clock("plan"):
        compute_folds(ready.view, [decision.site for decision in plan.decisions if not decision.stays])
        if options.search is not None:
            fusion.search = search(cutter, ready.target, plan, options.choice, options.search, name)
            fusion.plan = fusion.search.plan
    return fusion


def _document(fusion: Fusion, found: str, options: Options) -> PlanDocument:
    """What was decided, of a model whose fingerprint was `found`."""
    told = fusion.search.document if fusion.search is not None else None
    return plan_document(fusion.name, found, options.target, fusion.plan, told, fusion.varied is not None)


def _finish_expansion(name: str, model: onnx.ModelProto, options: Options) -> bool:
    """Of what is taken apart: operators that are no site of ours become what onnx's own bodies say, and the opset what was asked.
    Returns whether anything changed."""
    if options.expansion is None or options.outer is not None:
        return False
    changed = options.expansion.sites is None and inline_operators(model, ("Attention", "RotaryEmbedding"))
    opset = options.expansion.opset
    if opset is None or opset == opset_of(model):
        return changed
    reason = raise_opset(model, opset)
    if reason is not None:
        raise InputError(f"{name}: cannot be brought to opset {opset}: {reason}; leave --opset out")
    return True


def _read_for_report(view: GraphView, candidates: Sequence[Candidate]) -> None:
    """What a report says of sites beyond what a plan needs, read while the graph is as it was, and remembered by the view."""
    for candidate in candidates:
        site = candidate.recomputable if isinstance(candidate, Verdict) else candidate
        if site is not None:
            mask_kinds(view, site, read_window(view, site))
            blocks_later_keys(view, site.masks)  # Reads the numbers that those were folded to.
            read_rotary(view, site)


def _drawings(view: GraphView, cutter: Cutter, plan: Plan, edits: Mapping[str, SiteEdit]) -> list[Drawn | None]:
    """What the report to look at shows of each of the plan's entries that is attention."""
    drawer, drawn = Drawer(view, cutter), list[Drawn | None]()
    for entry in plan.entries:
        edit = edits.get(entry.key) if isinstance(entry, Decision) else None
        if isinstance(entry, Decision):
            drawn.append(drawer.written(entry.site, edit) if edit is not None else drawer.standing(entry.site))
        else:
            drawn.append(drawer.standing(entry) if is_attention(entry) else None)
    return drawn


def _island_rtol(plan: Plan, options: Options) -> float:
    """The bound for the narrowest island that was asked for."""
    asked = {options.choice.precision, *(decision.adaptation.precision for decision in plan.decisions)}
    return max((RTOL[TYPES[ISLANDS[precision]]] for precision in asked if precision in ISLANDS), default=0.0)


def _rewrite_bodies(
    model: onnx.ModelProto, worlds: Sequence[World], plan: Plan, options: Options
) -> tuple[list[tuple[Block, list[Report]]], bool]:
    """Rewrite the bodies of the model in which attention lies, each as a model of its own."""

    def rewritten(number: int, body: Body) -> tuple[list[Report], onnx.ModelProto | None]:
        # A body that shares weights with others packs none: they would be stored twice.
        choice = replace(options.choice, pack=options.choice.pack and not body.shared)
        if choice.form == "auto":
            choice = replace(choice, form="primitives")
        inside = replace(
            options,
            choice=choice,
            plan=None,
            search=None,
            expect=None,
            dynamic_batch=False,
            outer=frozenset(names_within(model)),
            expansion=options.expansion.inside(number) if options.expansion is not None else None,
        )
        report, trial, changed = rewrite(Loaded(body.model, body.attribute), inside)
        return report["candidates"], changed if trial.changed else None

    return replace_bodies(model, blocks(model, worlds, plan.entries), rewritten)


def _check_expectation(name: str, report: Report, options: Options) -> None:
    fused, left = report["fused"], [each for each in report["candidates"] if each["status"] == "refused"]
    if options.expect is not None and fused != options.expect:
        why = f"; {left[0]['id']} at '{printable(left[0]['node'])}' is left: {left[0]['code']}" if left else ""
        raise ExpectationError(
            f"{name}: --expect {options.expect}, but {fused} site{'' if fused == 1 else 's'} can be fused; nothing was "
            f"written{why}; `onnx-attn inspect` says why others are left"
        )


def _trial_inputs(fusion: Fusion) -> list[dict[str, np.ndarray]]:
    with _made_up(fusion):
        return [model_inputs(fusion.view.proto, world) for world in fusion.view.worlds]


def _batch_inputs(fusion: Fusion, varied: Varied) -> list[dict[str, np.ndarray]]:
    """Where the batch was B: at B, 2·B and 2·B + 1 entries. The last is no multiple of B, unless that is 1."""
    inference, proto = Inference(fusion.view.proto), fusion.view.proto
    batches = (varied.was, 2 * varied.was, 2 * varied.was + 1)
    sizes = [fusion.view.worlds[number % len(fusion.view.worlds)].sizes for number in range(len(batches))]
    with _made_up(fusion):
        return [
            model_inputs(proto, inference.run({**others, varied.name: batch}))
            for others, batch in zip(sizes, batches, strict=True)
        ]


@contextmanager
def _made_up(fusion: Fusion) -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        raise CannotRun(f"{fusion.name}: {error}; pass --no-verify to rewrite without proof") from error


def _slices_of(varied: Varied) -> Slices:
    return Slices(varied.was, varied.inputs, varied.outputs)
