"""The ways in which a site can be written, in rounds: each round varies what the last one left open."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from onnx_attn.decision import Choice, Decision
from onnx_attn.errors import UsageError
from onnx_attn.forms.placement import BIASES, SPLITS
from onnx_attn.targets.editions import Target
from onnx_attn.targets.lookup import check_form

FORMS = ("primitives", "attention", "contrib")
"""Beside the one that the table chooses."""

Round = Callable[[Choice, Decision, Target], Iterable[Choice]]


def _forms(best: Choice, _: Decision, target: Target) -> Iterator[Choice]:
    """The form, where none was asked for; whether projections are packed, and where they are taken apart."""
    forms = [best.form, *(form for form in FORMS if _takes(target, form))] if best.form == "auto" else [best.form]
    for form in forms:
        if best.pack:
            for split in SPLITS:
                yield replace(best, form=form, placement=replace(best.placement, split=split))
        yield replace(best, form=form, pack=False)


def _algebra(best: Choice, decision: Decision, _: Target) -> Iterator[Choice]:
    """Without any identity, and without each that is applied."""
    applied = decision.algebra.names
    if applied:
        yield replace(best, algebra=())
    for name in applied:
        yield replace(best, algebra=tuple(other for other in applied if other != name))


def _places(best: Choice, decision: Decision, _: Target) -> Iterator[Choice]:
    """Where biases, the scale and zeros are put; where projections are taken apart once more, since that rests on biases."""
    for bias in BIASES:
        for split in SPLITS if decision.packing is not None else SPLITS[:1]:
            yield replace(best, placement=replace(best.placement, bias=bias, split=split))
    # In half precision scores that were scaled on Q before may overflow.
    if decision.site.scores_scale == decision.site.scale:
        yield replace(best, placement=replace(best.placement, scale="query"))
        yield replace(best, placement=replace(best.placement, scale="scores"))
    yield replace(best, heads="kept")
    yield replace(best, heads="aligned")


def plainer(choice: Choice) -> Iterator[Choice]:
    """What is tried for all sites where the compiler builds each by itself and not the model: heads of other sizes, which one
    build of it fails at (TensorRT for RTX 1.7.1, heads of 12 in an island), no algebra, no packing, and no island."""
    yield replace(choice, heads="aligned")
    yield replace(choice, algebra=())
    yield replace(choice, algebra=(), pack=False)
    yield replace(choice, algebra=(), pack=False, precision="keep")


ROUNDS: tuple[Round, ...] = (_forms, _algebra, _algebra, _places)
"""An identity that is left out may make another one useless."""


def _takes(target: Target, form: str) -> bool:
    try:
        check_form(target, form)
    except UsageError:
        return False
    return True
