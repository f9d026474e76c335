"""Certificates checked again: each site cut out of both files between the values that its certificate names, run on the cases
that it was proved on, and compared with the original in float64. Nothing that rewrote the model has a part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from onnx_attn.errors import UsageError
from onnx_attn.graph.view import GraphView
from onnx_attn.progress import steps
from onnx_attn.prove.cases import Case, cases
from onnx_attn.prove.certificate import Between, Errors, worst_pair
from onnx_attn.prove.compare import Difference, worst
from onnx_attn.prove.cut import Cut, Cutter
from onnx_attn.prove.double import widened
from onnx_attn.prove.flips import compare, values
from onnx_attn.prove.judge import errors_of, in_type, run_pair, typed_case, union_of, widest
from onnx_attn.prove.smooth import is_quantised
from onnx_attn.runtime import CannotRun, Session
from onnx_attn.views.trace import FLOATS

Document = dict[str, Any]


@dataclass(frozen=True)
class Rechecked:
    """What became of one certificate. ok: None where it cannot be checked by itself, and `reason` says why."""

    site: str
    softmax: str
    ok: bool | None
    cases: int = 0
    own: Difference | None = None
    errors: Errors | None = None
    bound: float = 0.0
    reason: str | None = None


def recheck(before: GraphView, after: GraphView, report: Document, name: str) -> list[Rechecked]:
    """Every certificate of a report of `fuse`. Raises UsageError where `report` (called `name`) is none."""
    pair = Cutter(before), Cutter(after)
    found = []
    for site, softmax, bound, between in steps(_certificates(report, name), lambda each: f"{each[0]} {each[1]}"):
        empty = Rechecked(site, softmax, None, bound=bound)
        try:
            found.append(_recheck(pair, between, empty))
        except (CannotRun, ValueError) as error:
            found.append(replace(empty, reason=str(error)))
    return found


def _certificates(report: Document, name: str) -> list[tuple[str, str, float, Between]]:
    try:
        entries = [(each, each["certificate"]) for each in report["candidates"] if each.get("certificate")]
        return [
            (str(each["id"]), str(each["softmax"]), float(told["bound"]), _between(told["between"]))
            for each, told in entries
            if told["ok"]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(
            f"{name}: is no report with certificates ({type(error).__name__}: {error}); pass what `onnx-attn fuse --json` wrote"
        ) from error


def _between(told: Document) -> Between:
    masks = {str(key): float(sign) for key, sign in told["masks"].items()}
    start, outputs = (tuple(map(str, told[key])) for key in ("start", "outputs"))
    return Between(start, outputs, masks, str(told["values"]), bool(told["overflows"]), bool(told["extremes"]))


def _recheck(pair: tuple[Cutter, Cutter], between: Between, found: Rechecked) -> Rechecked:
    missing = [name for name in between.start if any(name not in each.view.tensors for each in pair)]
    # Sizes that nobody asks for any more are gone, and no numbers of the site's.
    outputs = [name for name in between.outputs if all(name in each.view.tensors for each in pair)]
    outputs = [name for name in outputs if pair[0].view.worlds[0].elem_type(name) in FLOATS]
    if missing or not outputs:
        gone = missing[0] if missing else "what it makes"
        return replace(
            found, reason=f"'{gone}' is not in both models: it was made on the way, as of an operator that was spelled"
        )
    before, after = (cutter.cut(outputs, set(between.start)) for cutter in pair)
    own = before, after
    if any(is_quantised(cut.model) for cut in own):
        return replace(found, reason="its numbers are quantised: steps may fall either way; the whole model tells")
    return _compared(pair, between, own, found, outputs)


def _compared(
    pair: tuple[Cutter, Cutter], between: Between, own: tuple[Cut, Cut], found: Rechecked, outputs: Sequence[str]
) -> Rechecked:
    view = pair[0].view
    truth = pair[0].cut(outputs, set(between.start), kinds="iuf")
    wide = widest((truth, own[1]))
    exact = Session(widened(truth.model, wide), found.softmax)
    sessions = [Session(cut.model, found.softmax) for cut in own]
    differences, errors, ok = list[Difference](), list[Errors](), True
    for case in cases(view, between, union_of(own[0], truth)):
        if not case.own:
            continue
        typed = typed_case(view, case)
        results = run_pair(sessions, own, replace(typed, inputs={**_known(pair[1].view, own[1], case), **typed.inputs}))
        told = errors_of(values(exact, truth, in_type(typed, wide)), results)
        differences.append(compare(*results))
        if told[0].agrees:
            errors.append(told)
        # As close to the original, or to the truth where the original is as far from it.
        ok &= differences[-1].within(found.bound) or (told[0].agrees and told[1].within(found.bound))
    return replace(found, ok=ok, cases=len(differences), own=worst(differences), errors=worst_pair(errors))


def _known(view: GraphView, cut: Cut, case: Case) -> Mapping[str, Any]:
    """What the second model computes from sizes alone, at those of the case."""
    world = view.worlds[int(case.name.rpartition("@")[2])]
    found = {name: world.value(name) for name in cut.known}
    return {name: value for name, value in found.items() if value is not None}
