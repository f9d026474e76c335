"""The judgement on one rewritten site, case by case.

In float64 every case must agree to what a float32 scale allows: that tells other mathematics from other rounding. Then
the ordinary cases, in the model's own type: that tells what the user will see.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper

from onnx_attn.domain import MICROSOFT
from onnx_attn.forms.attention import is_operator
from onnx_attn.graph.edit import SiteEdit
from onnx_attn.graph.view import GraphView
from onnx_attn.prove.cases import Case
from onnx_attn.prove.certificate import Between, Certificate, Errors, Tried, worst_pair
from onnx_attn.prove.compare import RTOL, Difference, worst
from onnx_attn.prove.cut import Cut
from onnx_attn.prove.double import widened
from onnx_attn.prove.flips import Results, compare, flips_of, values
from onnx_attn.prove.smooth import is_quantised, smoothed
from onnx_attn.runtime import Session
from onnx_attn.site import AttentionSite

DOUBLE_RTOL = 1e-6
DOUBLE_RTOL_LARGE = 1e-4
"""The scale is stored as float32: off by up to 6e-8, times logits of up to about 1e3 where these are made large."""
SINGLE_RTOL_LARGE = 1e-3
"""The same where each product is rounded to float32 as well."""
LUCK = 2.0
"""How much farther from the truth one rounding may be than another of the same numbers in another order."""

Pair = tuple[Cut, Cut]


@dataclass(frozen=True)
class Cuts:
    """The site before and after: in the model's type, in float64, and for its steps of quantisation. truth: the original in
    float64 with its folded values as they are, where that is not the first of `exact`."""

    own: Pair
    exact: Pair
    truth: Cut | None
    steps: Pair

    @property
    def quantised(self) -> bool:
        return any(is_quantised(cut.model) for cut in self.own)

    @property
    def has_operator(self) -> bool:
        """Whether the site is, or becomes, the Attention operator."""
        return any(is_operator(node) for cut in self.exact for node in cut.model.graph.node)

    @property
    def wanted(self) -> Cut:
        """What any of them wants to be given."""
        return union_of(*self.own, *self.exact, *self.steps, *((self.truth,) if self.truth is not None else ()))

    def changed(self, change: Callable[[Cut], Cut]) -> Cuts:
        """The same, each cut changed."""
        own, exact, steps = ((change(before), change(after)) for before, after in (self.own, self.exact, self.steps))
        return Cuts(own, exact, change(self.truth) if self.truth is not None else None, steps)


class Judge:
    """Runs a site before and after on case after case, and remembers what was found."""

    def __init__(self, view: GraphView, site: AttentionSite, edit: SiteEdit, cuts: Cuts):
        self.view, self.edit, self.cuts, self.wide = view, edit, cuts, widest(cuts.exact)
        self._exact = [Session(widened(smoothed(cut.model, edit.added), self.wide), site.name) for cut in cuts.exact]
        self._own = [Session(cut.model, site.name) for cut in cuts.own]
        self._flips = flips_of(cuts.steps, site.name, edit.added)
        truth = cuts.truth
        self._truth = Session(widened(smoothed(truth.model), self.wide), site.name) if truth is not None else None
        self.bound = self.rtol = RTOL[_name(edit.island) if edit.island else type_name(view, site)]
        self.tried: list[Tried] = []
        self.large: list[Difference] = []
        self.failure: str | None = None

    def judge(self, case: Case) -> None:
        """Inputs are what the model's own type makes of them, in float64 too: both tell of the same numbers."""
        typed = typed_case(self.view, case)
        wide, exact, truth, own, errors = in_type(typed, self.wide), None, None, None, None
        if case.exact:
            pair = run_pair(self._exact, self.cuts.exact, wide)
            exact, truth = compare(*pair), pair[0]
            self._note(f"{case.name} in {_name(self.wide)}", exact, _exact_limit(case, self.wide))
            if self._truth is not None and self.cuts.truth is not None:
                truth = values(self._truth, self.cuts.truth, wide)
        if case.own or self.edit.island:
            own, errors = self._in_own_type(case, typed, truth)
        self.tried.append(Tried(case.name, own, exact, errors))

    def _in_own_type(self, case: Case, typed: Case, truth: Results | None) -> tuple[Difference | None, Errors | None]:
        results = run_pair(self._own, self.cuts.own, typed)
        own = found = compare(*results)
        if self._flips is not None and case.own:
            if self._flips.judges(case):
                limit = self.rtol + self._flips.moved(typed, results)
                self.bound = max(self.bound, limit)
                self._note(f"{case.name}, step by step", found, limit)
            results = self._flips.smooth(typed)
            found = compare(*results)
        errors = errors_of(truth, results) if truth is not None else None
        if not case.own:
            self.large += [errors[1]] if errors is not None else []
            return None, errors
        asked = self.edit.exact or self.edit.island or not found.within(self.rtol)
        off = _judged(found, errors if asked else None, self.edit)
        if off is not None:
            self._note(case.name, off, self.rtol)
        return (own if self._flips is None or self._flips.judges(case) else None), errors

    def _note(self, case: str, found: Difference, limit: float) -> None:
        if self.failure is None and not found.within(limit):
            self.failure = f"case {case}: {found.told(limit)}"

    def certificate(self, between: Between) -> Certificate:
        own = [each.own for each in self.tried if each.own is not None]
        exact = [each.exact for each in self.tried if each.exact is not None]
        told = [each.errors for each in self.tried if each.errors is not None and each.own is not None]
        # float64 has no say where NaN and infinity are elsewhere in the original itself, as in rows whose masks overflow.
        errors = worst_pair([pair for pair in told if self.edit.exact or pair[0].agrees])
        large = worst(self.large) if self.large else None
        verdict = (self.failure is None, worst(own), worst(exact), len(self.tried), errors, self.failure)
        return Certificate(*verdict, True, self.bound, large, tuple(self.tried), between)


def _judged(found: Difference, told: Errors | None, edit: SiteEdit) -> Difference | None:
    """By what a case in the model's own type is judged: the difference from the original, or (`told`: how far before and after
    are from float64) from the truth; None where the type tells nothing."""
    if told is None:
        return found
    original, rewritten = told
    if edit.island:
        # float64 has no say where it differs from the original itself, as on rows whose masks overflow in float32.
        return rewritten if original.agrees else found
    if not edit.exact and rewritten.agrees and original.agrees and rewritten.max_rel <= LUCK * original.max_rel:
        # Where the original itself is that far off, as where a mask's lowest number swallows half-precision scores, the type
        # tells nothing, and float64 alone does.
        return None
    # What is rounded anew may be close to the truth of this very case where the original's rounding is not.
    return min(found, rewritten, key=lambda each: (not each.agrees, each.max_rel))


def widest(cuts: Pair) -> int:
    """The type in which the mathematics is compared: float64, or float32 where an operator of ONNX Runtime's own has no wider
    kernel."""
    own = any(node.domain == MICROSOFT for cut in cuts for node in cut.model.graph.node)
    return onnx.TensorProto.FLOAT if own else onnx.TensorProto.DOUBLE


def _exact_limit(case: Case, wide: int) -> float:
    """The bound in float64. Logits that are off by a share δ of themselves move the result by up to 2·δ·max|logit|, and
    random cases have logits up to 8, large ones up to 8·LARGE². In float32 every logit is off by 6e-8 of itself."""
    if case.own:
        return DOUBLE_RTOL if wide == onnx.TensorProto.DOUBLE else RTOL["float32"]
    return DOUBLE_RTOL_LARGE if wide == onnx.TensorProto.DOUBLE else SINGLE_RTOL_LARGE


def run_pair(sessions: list[Session], cuts: Pair, case: Case) -> tuple[Results, Results]:
    before, after = (values(session, cut, case) for session, cut in zip(sessions, cuts, strict=True))
    return before, after


def errors_of(truth: Results, results: tuple[Results, Results]) -> Errors:
    """How far results before and after are from the truth: the original in the widest type, on the very same inputs."""
    before, after = (
        compare(truth, {name: found[name].astype(value.dtype) for name, value in truth.items()}) for found in results
    )
    return before, after


def in_type(case: Case, wide: int) -> Case:
    dtype = helper.tensor_dtype_to_np_dtype(wide)
    inputs = {name: value.astype(dtype) if value.dtype.kind in "fV" else value for name, value in case.inputs.items()}
    return Case(case.name, inputs, case.own, case.exact)


def _name(elem_type: int) -> str:
    return np.dtype(helper.tensor_dtype_to_np_dtype(elem_type)).name


def typed_case(view: GraphView, case: Case) -> Case:
    """The case's floats in the types that the model gives them."""

    def cast(name: str, value: np.ndarray) -> np.ndarray:
        return value.astype(helper.tensor_dtype_to_np_dtype(view.worlds[0].elem_type(name)))

    with np.errstate(over="ignore"):
        return Case(case.name, {name: cast(name, value) for name, value in case.inputs.items()}, case.own, case.exact)


def type_name(view: GraphView, site: AttentionSite) -> str:
    return _name(view.elem_type(site.query.tensor))


def union_of(*cuts: Cut) -> Cut:
    """All that any of the cuts wants to be given."""
    inputs = dict.fromkeys(name for cut in cuts for name in cut.inputs)
    known = dict.fromkeys(name for cut in cuts for name in cut.known)
    return Cut(cuts[0].model, tuple(inputs), tuple(known))
