"""The proof of one rewritten site: cut out before and after, run on the same inputs, compared twice.

In float64 every case must agree to what a float32 scale allows: that tells other mathematics from other rounding. Then
the ordinary cases, in the model's own type: that tells what the user will see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_attn.domain import DOMAIN, MICROSOFT
from onnx_attn.forms.attention import is_operator
from onnx_attn.graph.edit import SiteEdit
from onnx_attn.graph.view import GraphView
from onnx_attn.prove.cases import Case, cases
from onnx_attn.prove.compare import RTOL, Difference, worst
from onnx_attn.prove.cut import Cut, Cutter, boundary
from onnx_attn.prove.double import widened
from onnx_attn.prove.flips import Results, compare, flips_of, values
from onnx_attn.prove.observed import Values, observed_cases
from onnx_attn.prove.smooth import is_quantised, smoothed
from onnx_attn.runtime import CannotRun, Session
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
class Certificate:
    """Verdict on one site. `own`: the ordinary cases in the model's type; `exact`: all cases in float64.

    errors: of a site whose weights were rounded anew, how far it is in the model's type from itself in float64, before
        and after.
    bound: the largest max_rel in the model's type, or in that of the site's island; of a quantised site, whose steps may fall
        either way, by how much quantising moves the result, if that is more. large: in an island, how far large logits
        (ten times the ordinary) are from float64; told and not judged.
    failure: in words, None if ok. provable: False where ONNX Runtime could not run the site at all.
    """

    ok: bool
    own: Difference
    exact: Difference
    cases: int
    errors: tuple[Difference, Difference] | None = None
    failure: str | None = None
    provable: bool = True
    bound: float = 0.0
    large: Difference | None = None


def prove_site(
    view: GraphView, cutter: Cutter, site: AttentionSite, edit: SiteEdit, observed: Sequence[Values] = ()
) -> Certificate:
    """Compare the site before and after; deterministic (seeded). observed: values as the whole model has them, world by world.

    What was folded is compared as the model's own type computes it. In float64 it is, before and after, the number that
    was written: like every computed number, what its own type rounds it to. Weights that exact algebra makes enter float64
    as they were before they were rounded: there the algebra is proved, and in the model's own type what its rounding does.
    """
    start = boundary(view, site, edit)
    outputs = list(edit.outputs)
    folded = {name: value for name in edit.folded if (value := view.folds[name]) is not None}
    own = (cutter.cut(outputs, start.difference(folded)), cutter.cut(outputs, start.difference(folded), edit))
    outputs = [name for name in outputs if name not in folded]
    unrounded, wide = _unrounded(edit)
    exact = (
        cutter.cut(outputs, start, kinds="iuf", fixed=folded),
        cutter.cut(outputs, start, unrounded, kinds="iuf", fixed=folded | wide),
    )
    # Errors are told of what really runs: with the folded masks as they are, and not with any mask.
    truth = cutter.cut(outputs, start.difference(folded), kinds="iuf", fixed=folded)
    # The steps of folded values were taken when they were folded.
    steps = own
    if any(is_quantised(cut.model) for cut in own):
        steps = (cutter.cut(outputs, start, fixed=folded), cutter.cut(outputs, start, edit, fixed=folded))
    try:
        wanted = union_of(*own, *exact, *steps)
        operator = any(is_operator(node) for cut in exact for node in cut.model.graph.node)
        # The operator's float64 kernel answers otherwise where a row is masked throughout, as a real one may be.
        tried = [*cases(view, site, wanted, operator), *observed_cases(cutter, wanted, observed, not operator)]
        return _prove(view, site, own, exact, truth, steps, edit, tried)
    except (CannotRun, ValueError, MemoryError) as error:
        nothing = Difference(float("inf"), float("inf"), False)
        return Certificate(False, nothing, nothing, 0, failure=str(error), provable=False)


def _unrounded(edit: SiteEdit) -> tuple[SiteEdit, dict[str, onnx.TensorProto]]:
    """What exact algebra makes, as it was before it was rounded: the edit whose call carries the scale so, and constants."""
    exact = {name: numpy_helper.from_array(numbers(), name) for name, numbers in edit.exact.items()}
    if edit.scale is None:
        return edit, exact
    if edit.scale.constant:
        tensor = numpy_helper.from_array(np.asarray(edit.scale.exact), edit.scale.constant)
        return edit, exact | {tensor.name: tensor}
    splices = [
        replace(splice, nodes=tuple(_with_scale(node, edit.scale.exact) for node in splice.nodes))
        for splice in edit.splices
    ]
    return replace(edit, splices=tuple(splices)), exact


def _with_scale(node: onnx.NodeProto, scale: float) -> onnx.NodeProto:
    """A node, or a copy of it that carries another scale, where it is a call of ours."""
    if node.domain != DOMAIN:
        return node
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for attribute in copy.attribute:
        if attribute.name == "scale":
            attribute.CopyFrom(helper.make_attribute("scale", scale))
    return copy


def _prove(
    view: GraphView,
    site: AttentionSite,
    own_cuts: Pair,
    exact_cuts: Pair,
    truth_cut: Cut,
    steps: Pair,
    edit: SiteEdit,
    every: Sequence[Case],
) -> Certificate:
    wide = widest(exact_cuts)
    exact_sessions = [Session(widened(smoothed(cut.model, edit.added), wide), site.name) for cut in exact_cuts]
    truth = Session(widened(smoothed(truth_cut.model), wide), site.name)
    own_sessions = [Session(cut.model, site.name) for cut in own_cuts]
    flips = flips_of(steps, site.name, edit.added)
    exact, own, large = _nothing(), _nothing(), _nothing()
    errors: list[tuple[Difference, Difference]] = []
    failure, tried = None, 0
    bound = rtol = RTOL[_name(edit.island) if edit.island else type_name(view, site)]
    for case in every:
        limit = _exact_limit(case, wide)
        tried += case.exact or case.own
        if case.exact:
            found = compare(*run_pair(exact_sessions, exact_cuts, _in_type(case, wide)))
            exact.append(found)
            failure = failure or _failure(f"{case.name} in {_name(wide)}", found, limit)
        if not (case.own or edit.island):
            continue
        typed = typed_case(view, case)
        results = run_pair(own_sessions, own_cuts, typed)
        found = compare(*results)
        if flips is not None and case.own:
            if flips.judges(case):
                own.append(found)
                bound = max(bound, limit := rtol + flips.moved(typed, results))
                failure = failure or _failure(f"{case.name}, step by step", found, limit)
            results = flips.smooth(typed)
            found = compare(*results)
        told = None
        if case.exact and (edit.exact or edit.island or not found.within(rtol)):
            told = _errors(truth, truth_cut, _in_type(typed, wide), results)
        if not case.own:
            large += [told[1]] if told is not None else []
            continue
        own += [found] if flips is None else []
        if told is not None and (edit.exact or (edit.island and told[0].agrees)):
            errors.append(told)
        off = _judged(found, told, edit)
        failure = failure or (_failure(case.name, off, rtol) if off is not None else None)
    told_of = tried, _worst_pair(errors), failure
    return Certificate(
        failure is None, worst(own), worst(exact), *told_of, True, bound, worst(large) if large else None
    )


def _worst_pair(errors: Sequence[tuple[Difference, Difference]]) -> tuple[Difference, Difference] | None:
    before, after = zip(*errors, strict=True) if errors else ((), ())
    return (worst(before), worst(after)) if errors else None


def _nothing() -> list[Difference]:
    return []


def _judged(found: Difference, told: tuple[Difference, Difference] | None, edit: SiteEdit) -> Difference | None:
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


def _failure(case: str, found: Difference, limit: float) -> str | None:
    if found.within(limit):
        return None
    if not found.agrees:
        return f"case {case}: NaN or infinity in other places"
    return f"case {case}: max_rel {found.max_rel:.1e} > {limit:.0e}"


def run_pair(sessions: list[Session], cuts: Pair, case: Case) -> tuple[Results, Results]:
    before, after = (values(session, cut, case) for session, cut in zip(sessions, cuts, strict=True))
    return before, after


def _errors(session: Session, cut: Cut, case: Case, results: tuple[Results, Results]) -> tuple[Difference, Difference]:
    """How far results before and after are from the truth: the original in the widest type, on the very same inputs."""
    truth = values(session, cut, case)
    before, after = (
        compare(truth, {name: found[name].astype(value.dtype) for name, value in truth.items()}) for found in results
    )
    return before, after


def _in_type(case: Case, wide: int) -> Case:
    dtype = helper.tensor_dtype_to_np_dtype(wide)
    inputs = {name: value.astype(dtype) if value.dtype.kind == "f" else value for name, value in case.inputs.items()}
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
