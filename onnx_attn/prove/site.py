"""The proof of one rewritten site: cut out before and after, and judged on the same inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnx_attn.domain import DOMAIN
from onnx_attn.graph.edit import SiteEdit
from onnx_attn.graph.view import GraphView
from onnx_attn.prove.cases import Case, between_of, cases
from onnx_attn.prove.certificate import Between, Certificate
from onnx_attn.prove.compare import Difference
from onnx_attn.prove.cut import Cutter, boundary
from onnx_attn.prove.judge import Cuts, Judge
from onnx_attn.prove.observed import Values, observed_cases
from onnx_attn.prove.reduced import free_bytes, reduction_of, scores_bytes
from onnx_attn.runtime import CannotRun
from onnx_attn.site import AttentionSite


def prove_site(
    view: GraphView, cutter: Cutter, site: AttentionSite, edit: SiteEdit, observed: Sequence[Values] = ()
) -> Certificate:
    """Compare the site before and after; deterministic (seeded). observed: values as the whole model has them, world by world.

    What was folded is compared as the model's own type computes it. In float64 it is, before and after, the number that
    was written: like every computed number, what its own type rounds it to. Weights that exact algebra makes enter float64
    as they were before they were rounded: there the algebra is proved, and in the model's own type what its rounding does.
    A site whose scores are too large to be run as it is has shorter ones, before and after (`prove/reduced.py`).
    """
    cuts, reduction, why = _cuts(view, cutter, site, edit), reduction_of(view, site), ""
    if reduction is not None:
        try:
            shorter = _judged(reduction.view(view), site, edit, cuts.changed(reduction.cut), [])
            return replace(shorter, reduced=reduction.lengths)
        except (CannotRun, ValueError, MemoryError) as error:
            why = f"its scores take {scores_bytes(view, site) / 1e9:.0f} GB to compare, and at shorter lengths: {error}"
    try:
        if reduction is not None and scores_bytes(view, site) > free_bytes():
            raise CannotRun(why)
        return _judged(view, site, edit, cuts, observed_cases(cutter, cuts.wanted, observed, not cuts.has_operator))
    except (CannotRun, ValueError, MemoryError) as error:
        nothing, between = Difference(float("inf"), float("inf"), False), place_of(view, site, edit, cuts.quantised)
        return Certificate(False, nothing, nothing, 0, failure=str(error), provable=False, between=between)


def _judged(view: GraphView, site: AttentionSite, edit: SiteEdit, cuts: Cuts, observed: Iterable[Case]) -> Certificate:
    """Raises CannotRun, and ValueError where a shape is not known."""
    judge, between = Judge(view, site, edit, cuts), place_of(view, site, edit, cuts.quantised)
    # The operator's float64 kernel answers otherwise where a row is masked throughout, as a real one may be.
    for case in chain(cases(view, between, cuts.wanted, cuts.has_operator), observed):
        judge.judge(case)
    return judge.certificate(between)


def _cuts(view: GraphView, cutter: Cutter, site: AttentionSite, edit: SiteEdit) -> Cuts:
    start, outputs = boundary(view, site, edit), list(edit.outputs)
    folded = {name: value for name in edit.folded if (value := view.folds[name]) is not None}
    own = (cutter.cut(outputs, start.difference(folded)), cutter.cut(outputs, start.difference(folded), edit))
    outputs = [name for name in outputs if name not in folded]
    unrounded, wide = _unrounded(edit)
    exact = (
        cutter.cut(outputs, start, kinds="iuf", fixed=folded),
        cutter.cut(outputs, start, unrounded, kinds="iuf", fixed=folded | wide),
    )
    # Errors are told of what really runs: with the folded masks as they are, and not with any mask.
    truth = cutter.cut(outputs, start.difference(folded), kinds="iuf", fixed=folded) if folded else None
    cuts = Cuts(own, exact, truth, own)
    if not cuts.quantised:
        return cuts
    # The steps of folded values were taken when they were folded.
    steps = (cutter.cut(outputs, start, fixed=folded), cutter.cut(outputs, start, edit, fixed=folded))
    return replace(cuts, steps=steps)


def place_of(view: GraphView, site: AttentionSite, edit: SiteEdit, quantised: bool) -> Between:
    """The values that a site lies between, before and after."""
    outputs = [name for name in edit.outputs if view.folds.get(name) is None]
    return between_of(view, site, boundary(view, site, edit), outputs, extremes=not quantised)


def _unrounded(edit: SiteEdit) -> tuple[SiteEdit, dict[str, onnx.TensorProto]]:
    """What exact algebra makes, as it was before it was rounded: the edit whose call carries the scale so, and constants."""
    exact = {name: numpy_helper.from_array(numbers(), name) for name, numbers in edit.exact.items()}
    if edit.scale is None:
        return edit, exact
    if edit.scale.constant:
        stored = next(each for each in edit.initializers if each.name == edit.scale.constant)
        if _is_rounded(float(numpy_helper.to_array(stored)), edit.scale.exact):
            exact[stored.name] = numpy_helper.from_array(np.asarray(edit.scale.exact), stored.name)
        return edit, exact
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
        if attribute.name == "scale" and _is_rounded(attribute.f, scale):
            attribute.CopyFrom(helper.make_attribute("scale", scale))
    return copy


def _is_rounded(stored: float, exact: float) -> bool:
    """Whether a number is what half precision may make of another, and so may stand for it; of any other the proof is to tell."""
    return math.isclose(stored, exact, rel_tol=2**-8)
