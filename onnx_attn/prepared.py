"""A loaded model becomes the one whose sites are planned."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from onnx_attn.batch.make import Varied, with_dynamic_batch
from onnx_attn.counting.model import flow_of, short_statistics
from onnx_attn.decide import decide
from onnx_attn.decision import ATTENTION_OPSET, ROTARY, TOKENS_FIRST, Choice, Decision
from onnx_attn.drawing.outline import outline
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.opset import LEAST_OPSET, raise_opset
from onnx_attn.graph.view import GraphView
from onnx_attn.nested import with_calls_inlined, with_functions_inlined
from onnx_attn.operators.microsoft.model import Outcome, without_microsoft
from onnx_attn.operators.microsoft.table import spelling
from onnx_attn.operators.plain import with_plain_operators
from onnx_attn.options import Options
from onnx_attn.plan import chosen, has_sites, is_attention
from onnx_attn.plan_file import check_fits, fingerprint
from onnx_attn.progress import clock
from onnx_attn.prove.decoder_calls import decoder_calls
from onnx_attn.prove.spelled import prove_spelled
from onnx_attn.recognize.candidates import recognize
from onnx_attn.recognize.window import read_window
from onnx_attn.rotary.rewrite import Embedded, embed
from onnx_attn.row_order.order import Ordered, tokens_first
from onnx_attn.runtime import refuse_crash
from onnx_attn.site import AttentionSite, Candidate, Verdict
from onnx_attn.targets.editions import Target
from onnx_attn.targets.rotary import RotaryFacts, gains_by_rotary


class Prepared:
    """A model as it will be planned: ONNX Runtime's own operators are said in plain nodes, its batch varies if that was asked
    for, functions around attention are inlined, operators spelled, the opset raised, blocks in another order of rows, rotary
    embeddings as the target takes them. Each step reads what the one before it made of `loaded`, `view` and `candidates`.

    loaded: the model, changed. found: the fingerprint of what was loaded. opsets: the model's own, and what it was raised to.
    stuck: why it could not be raised. spelled: operators were spelled out. ordered: what became of the windows' blocks.
    embedded: what became of rotary embeddings.
    microsoft: what became of ONNX Runtime's own operators. calls: inputs on which it runs as it was, where it does not on any.
    stats: of the model as it was; None for a body, and where nothing is a candidate.
    """

    def __init__(self, loaded: Loaded, options: Options):
        self.seconds: dict[str, float] = {}
        with clock(self.seconds, "load"):
            self.loaded, self._options = loaded, options
            self.nodes, self.found = len(loaded.proto.graph.node), fingerprint(loaded.proto)
            self.view = GraphView(loaded.proto)
            self.candidates: list[Candidate] = []
            self.opsets = [self.view.opset]
            self.target = options.target
        self.calls: list[dict[str, np.ndarray]] = []
        self.stuck: str | None = None
        self.varied: Varied | None = None
        self.ordered, self.embedded, self.microsoft = Ordered(), Embedded(), Outcome()
        self.spelled = False
        self.stats: dict[str, Any] | None = None
        self._in_place = False
        self._only: set[str] | None = None
        """Of what is to be taken apart: the names of sites, if not all."""

    @property
    def changed(self) -> bool:
        """Whether what was done is to be delivered whatever becomes of the sites."""
        made = (self._in_place, self.varied, self.ordered.sites, self.embedded.changed, self.microsoft.spelled)
        return any(map(bool, made))

    @property
    def left(self) -> dict[str, dict[str, str]]:
        """Of sites, by the values that they make, which changes around them were not made, and why."""
        found: dict[str, dict[str, str]] = {}
        for change, reasons in ((TOKENS_FIRST, self.ordered.left), (ROTARY, self.embedded.left)):
            for key, reason in reasons.items():
                found.setdefault(key, {})[change] = reason
        return found

    def put_calls_in_place(self) -> None:
        """Of what is to be taken apart: calls of our functions."""
        expansion = self._options.expansion
        if expansion is None:
            return
        self._only = expansion.names
        if with_calls_inlined(self.loaded, self._only):
            self.view, self._in_place = GraphView(self.loaded.proto), True

    def measure(self) -> None:
        if self.stats is None:
            self.stats = stats_of(self.loaded, self.view, self._options, self.candidates)

    def measure_as_it_was(self) -> None:
        """Before anything becomes of the model that changes its statistics."""
        options = self._options
        spells = has_runtime_operators(self.view) and not keeps_runtime_operators(options.target, options.choices)
        if options.outer is None and (spells or options.dynamic_batch or options.expansion is not None):
            self.stats = stats_of(self.loaded, self.view, options, recognize(self.view))

    def run_as_it_was(self) -> None:
        """What the original needs in order to be run. Raises CannotRun for one that ONNX Runtime dies of."""
        if self._options.verify:
            refuse_crash(self.loaded.proto, self.loaded.name)
            self.calls = decoder_calls(self.view) if self._options.outer is None else []

    def spell_runtime_operators(self) -> None:
        """ONNX Runtime's own operators in plain nodes, where the target is another runtime."""
        options = self._options
        if keeps_runtime_operators(options.target, options.choices) or not has_runtime_operators(self.view):
            return
        if self.view.opset < LEAST_OPSET and raise_opset(self.loaded.proto, LEAST_OPSET) is None:
            self.view = GraphView(self.loaded.proto)
        proof, taken = prove_spelled(self.view.opset) if options.verify else None, options.outer or frozenset()
        _, self.view, outcome = without_microsoft(self.loaded, self.view, proof, own=True, taken=taken, only=self._only)
        self.microsoft = self.microsoft.beside(outcome)

    def vary_batch(self) -> None:
        if self._options.dynamic_batch:
            self.view, self.varied = with_dynamic_batch(self.loaded, self.view)

    def recognize(self) -> None:
        """Candidates, with functions inlined around them."""
        outside = self.view
        self.loaded, self.view, self.candidates = with_functions_inlined(self.loaded, self.view, own=True)
        if self.view is not outside and has_runtime_operators(self.view):
            self.spell_runtime_operators()
            self.candidates = recognize(self.view)

    def spell_operators(self) -> None:
        """`Attention` operators as plain ones. Raises UsageError where the plan is another model's."""
        before, plan = self.view, self._options.plan
        self.loaded, self.view, self.candidates = with_plain_operators(
            self.loaded, self.view, self.candidates, own=True, only=self._only
        )
        self.spelled |= self.view is not before
        self._note_opset()
        if plan is not None:
            names = [candidate.name for candidate in self.candidates if is_attention(candidate)]
            check_fits(plan, self.loaded.name, self.found, names)

    def raise_opset(self) -> None:
        """To what the forms need, before anything is added: the converter would drop our functions."""
        choices = self._options.choices
        wanted = ATTENTION_OPSET if any(choice.form == "attention" for choice in choices) else LEAST_OPSET
        if self._options.outer is None and self.view.opset < wanted and has_sites(self.candidates, choices):
            self.stuck = raise_opset(self.loaded.proto, wanted)
            if self.stuck is None:
                self.view = GraphView(self.loaded.proto, before=self.view)
                self.candidates = recognize(self.view)
                self._note_opset()
        self.candidates = self.microsoft.told(self.candidates)
        self.target = self._options.target.taking(self.view.opset)

    def rewrite_around(self) -> None:
        """Blocks of windows, and rotary embeddings: what is rewritten around sites before these are."""
        _read_windows(self.view, self.candidates)
        self.ordered = _ordered(self.loaded, self.view, self.candidates, self.target, self._options)
        if self.ordered.sites:
            self._read_again()
        # What is to be taken apart is written as the operator first, where the opset has it: so all spellings become one.
        for target in (self.target, None) if self._options.expansion is not None else (self.target,):
            embedded = _embedded(self.loaded, self.view, self.candidates, target, self._options)
            self.embedded = replace(embedded, changed=self.embedded.changed or embedded.changed)
            if embedded.changed:
                self._read_again()

    def _read_again(self) -> None:
        """The model that was rewritten; windows stay those that were read before."""
        windows, self.view = self.view.windows, GraphView(self.loaded.proto, before=self.view)
        self.view.windows.update(windows)
        self.candidates = self.microsoft.told(recognize(self.view))

    def _note_opset(self) -> None:
        if self.view.opset != self.opsets[-1]:
            self.opsets.append(self.view.opset)

    def take(self, phase: str, *steps: Callable[[], None]) -> None:
        """The steps of one phase, on its clock."""
        with clock(self.seconds, phase):
            for step in steps:
                step()


def prepared(loaded: Loaded, options: Options) -> Prepared:
    """Everything that changes the model before its sites are planned."""
    ready = Prepared(loaded, options)
    ready.take("stats", ready.measure_as_it_was)
    ready.take("load", ready.put_calls_in_place)
    ready.take("prove", ready.run_as_it_was, ready.spell_runtime_operators)
    ready.take("load", ready.vary_batch)
    ready.take("recognize", ready.recognize)
    ready.take("stats", ready.measure)
    ready.take("recognize", ready.spell_operators)
    ready.take("plan", ready.raise_opset, ready.rewrite_around)
    return ready


def stats_of(
    loaded: Loaded, view: GraphView, options: Options, candidates: Sequence[Candidate]
) -> dict[str, Any] | None:
    """The short statistics of a model that is `view`'s or was made of it; None for a body, and for a model in which nothing is
    a candidate, whose sizes nobody had to infer."""
    if options.outer is not None or not view.is_inferred:
        return None
    flow = flow_of(loaded.proto, view, candidates)
    found = short_statistics(flow, loaded.proto, len(view.worlds) == 1)
    return found | {"outline": outline(flow)} if options.draw else found


def keeps_runtime_operators(target: Target, choices: Sequence[Choice]) -> bool:
    """Whether ONNX Runtime's own operators may stay: for ONNX Runtime, where no form is asked for that they are not."""
    return target.name == "onnxruntime" and all(choice.form in ("auto", "contrib") for choice in choices)


def has_runtime_operators(view: GraphView) -> bool:
    """Whether it holds operators that could be said in plain nodes, at its own opset or the one that it can be raised to."""
    opset = max(view.opset, LEAST_OPSET)
    return any(spelling(node, opset) is not None for node in view.proto.graph.node)


def _embedded(
    loaded: Loaded, view: GraphView, candidates: Sequence[Candidate], target: Target | None, options: Options
) -> Embedded:
    """Rotary embeddings as the target takes them; without one as plain nodes."""
    if options.outer is not None:
        return Embedded()
    gains = target is not None and gains_by_rotary(target, RotaryFacts(opset=view.opset))
    wanted = {
        candidate.output.name
        for candidate, choice in chosen(candidates, options.choice, options.own_choices)
        if isinstance(candidate, AttentionSite) and choice.apply and (gains if choice.rotary is None else choice.rotary)
    }
    return embed(loaded, view, candidates, wanted, target, options.verify)


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
