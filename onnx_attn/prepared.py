"""A loaded model becomes the one whose sites are planned."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_attn.batch.make import Varied, with_dynamic_batch
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.opset import raise_opset
from onnx_attn.graph.view import GraphView
from onnx_attn.nested import with_functions_inlined
from onnx_attn.operators.microsoft.model import Outcome, without_microsoft
from onnx_attn.operators.microsoft.table import spelling
from onnx_attn.operators.plain import with_plain_operators
from onnx_attn.options import Options
from onnx_attn.plan import ATTENTION_OPSET, LEAST_OPSET, Choice, Decision, chosen, decide, has_sites, is_attention
from onnx_attn.plan_file import check_fits, fingerprint
from onnx_attn.prove.decoder_calls import decoder_calls
from onnx_attn.prove.spelled import prove_spelled
from onnx_attn.recognize.candidates import recognize
from onnx_attn.recognize.window import read_window
from onnx_attn.row_order.order import Ordered, tokens_first
from onnx_attn.runtime import refuse_crash
from onnx_attn.site import AttentionSite, Candidate, Verdict
from onnx_attn.stats.model import flow_of, short_statistics
from onnx_attn.targets.editions import Target


@dataclass
class Prepared:
    """A model as it will be planned: its batch varies if that was asked for, functions around attention are inlined, operators
    spelled, the opset raised, blocks in another order of rows.

    loaded: the model, changed. found: the fingerprint of what was loaded. opsets: the model's own, and what it was raised to.
    stuck: why it could not be raised. spelled: operators were spelled out. ordered: what became of the windows' blocks.
    microsoft: what became of ONNX Runtime's own operators. calls: inputs on which it runs as it was, where it does not on any.
    stats: of the model as it was; None for a body.
    """

    loaded: Loaded
    view: GraphView
    candidates: list[Candidate]
    target: Target
    found: str
    nodes: int
    opsets: list[int]
    stuck: str | None
    spelled: bool
    varied: Varied | None
    ordered: Ordered
    microsoft: Outcome
    calls: list[dict[str, np.ndarray]]
    seconds: dict[str, float]
    stats: dict[str, Any] | None

    @property
    def changed(self) -> bool:
        """Whether what was done is to be delivered whatever becomes of the sites."""
        return self.varied is not None or bool(self.ordered.sites) or bool(self.microsoft.spelled)


def prepared(loaded: Loaded, options: Options) -> Prepared:
    """Everything that changes the model before its sites are planned. Raises UsageError where the plan is another model's."""
    start = time.perf_counter()
    nodes, found = len(loaded.proto.graph.node), fingerprint(loaded.proto)
    view = GraphView(loaded.proto)
    opsets, stuck = [view.opset], None
    begun = time.perf_counter()
    if options.verify:
        refuse_crash(loaded.proto, loaded.name)
    calls = decoder_calls(view) if options.verify and options.outer is None else []
    spells = not keeps_runtime_operators(options.target, options.choices) and has_runtime_operators(view)
    early = options.outer is None and (spells or options.dynamic_batch)
    stats = stats_of(loaded, view, options, recognize(view)) if early else None
    if spells and view.opset < LEAST_OPSET and raise_opset(loaded.proto, LEAST_OPSET) is None:
        view = GraphView(loaded.proto)
    view, microsoft = without_runtime_operators(loaded, view, options)
    spelt = time.perf_counter()
    view, varied = with_dynamic_batch(loaded, view) if options.dynamic_batch else (view, None)
    imported = time.perf_counter()
    outside = view
    loaded, view, candidates = with_functions_inlined(loaded, view, own=True)
    if view is not outside:
        inlined, (view, inner) = view, without_runtime_operators(loaded, view, options)
        microsoft = microsoft.beside(inner)
        candidates = recognize(view) if view is not inlined else candidates
    recognized = time.perf_counter()
    stats = stats or stats_of(loaded, view, options, candidates)
    measured = time.perf_counter()
    before = view
    loaded, view, candidates = with_plain_operators(loaded, view, candidates, own=True)
    spelled = view is not before
    spelled_out = time.perf_counter()
    opsets += [view.opset] if view.opset != opsets[0] else []
    if options.plan is not None:
        check_fits(options.plan, loaded.name, found, [c.name for c in candidates if is_attention(c)])
    wanted = ATTENTION_OPSET if any(choice.form == "attention" for choice in options.choices) else LEAST_OPSET
    if options.outer is None and view.opset < wanted and has_sites(candidates, options.choices):
        # Before anything is added: the converter would drop our functions.
        stuck = raise_opset(loaded.proto, wanted)
        if stuck is None:
            view = GraphView(loaded.proto)
            candidates = recognize(view)
            opsets.append(view.opset)
    candidates = microsoft.told(candidates)
    target = options.target.taking(view.opset)
    _read_windows(view, candidates)
    ordered = _ordered(loaded, view, candidates, target, options)
    if ordered.sites:
        windows, view = view.windows, GraphView(loaded.proto)
        view.windows.update(windows)
        candidates = microsoft.told(recognize(view))
    loading = begun - start + imported - spelt
    seconds = {
        "load": loading,
        "prove": spelt - begun,
        "recognize": recognized - imported + spelled_out - measured,
        "plan": time.perf_counter() - spelled_out,
        "stats": measured - recognized,
    }
    return Prepared(
        loaded,
        view,
        candidates,
        target,
        found,
        nodes,
        opsets,
        stuck,
        spelled,
        varied,
        ordered,
        microsoft,
        calls,
        seconds,
        stats,
    )


def stats_of(
    loaded: Loaded, view: GraphView, options: Options, candidates: Sequence[Candidate]
) -> dict[str, Any] | None:
    """The short statistics of a model that is `view`'s or was made of it; None for a body, and for a model in which nothing is
    a candidate, whose sizes nobody had to infer."""
    if options.outer is not None or not view.is_inferred:
        return None
    return short_statistics(flow_of(loaded.proto, view, candidates), loaded.proto, len(view.worlds) == 1)


def keeps_runtime_operators(target: Target, choices: Sequence[Choice]) -> bool:
    """Whether ONNX Runtime's own operators may stay: for ONNX Runtime, where no form is asked for that they are not."""
    return target.name == "onnxruntime" and all(choice.form in ("auto", "contrib") for choice in choices)


def has_runtime_operators(view: GraphView) -> bool:
    """Whether it holds operators that could be said in plain nodes, of an opset that is high enough."""
    return any(spelling(node, LEAST_OPSET) is not None for node in view.proto.graph.node)


def without_runtime_operators(loaded: Loaded, view: GraphView, options: Options) -> tuple[GraphView, Outcome]:
    if keeps_runtime_operators(options.target, options.choices):
        return view, Outcome()
    proof = prove_spelled(view.opset) if options.verify else None
    _, view, outcome = without_microsoft(loaded, view, proof, own=True, taken=options.outer or frozenset())
    return view, outcome


def _ordered(
    loaded: Loaded, view: GraphView, candidates: Sequence[Candidate], target: Target, options: Options
) -> Ordered:
    """Blocks tokens first, where that is measured to pay: by TensorRT's compiler."""
    if target.name != "tensorrt" or options.outer is not None:
        return Ordered()
    wanted = {
        candidate.output.name: choice
        for candidate, choice in chosen(candidates, options.choice, options.own_choices)
        if isinstance(candidate, AttentionSite) and choice.apply and choice.tokens_first
    }

    def form_of(site: AttentionSite) -> str | None:
        decision = decide(view, site, target, wanted[site.output.name])
        return decision.form if isinstance(decision, Decision) else None

    return tokens_first(loaded, view, candidates, wanted, form_of, options.verify)


def _read_windows(view: GraphView, candidates: Sequence[Candidate]) -> None:
    """The windows of all sites, remembered by the view: of other orders of rows nobody can read them off the graph any more."""
    for candidate in candidates:
        site = candidate.recomputable if isinstance(candidate, Verdict) else candidate
        if site is not None:
            read_window(view, site)
