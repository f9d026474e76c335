"""What a proof found: the verdict on one site, and every case that it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx_attn.prove.compare import Difference, worst

Errors = tuple[Difference, Difference]
"""How far results before and after are from float64."""


@dataclass(frozen=True)
class Tried:
    """One case of one site. own: before against after in the model's type; exact: the same in float64; errors: both against
    float64. None where it is not asked."""

    case: str
    own: Difference | None
    exact: Difference | None
    errors: Errors | None


@dataclass(frozen=True)
class Between:
    """Where a site begins and ends, by values that the model has before and after. masks: of those that it begins with, the ones
    that meet the scores, and the sign with which they block (1: −inf blocks, −1: +inf; 0: not the scores). values: the one that V
    alone is made of, "" where that makes Q or K too. overflows: large logits are none of its cases. extremes: numbers at both
    ends of half precision are; not of a quantised site, whose steps cut off what lies beyond their range."""

    start: tuple[str, ...]
    outputs: tuple[str, ...]
    masks: Mapping[str, float] = field(default_factory=dict)
    values: str = ""
    overflows: bool = False
    extremes: bool = False


@dataclass(frozen=True)
class Certificate:
    """Verdict on one site. `own`: the ordinary cases in the model's type; `exact`: all cases in float64.

    errors: how far the site is in the model's type from itself in float64, before and after, where float64 has NaN and infinity
        in the same places.
    bound: the largest max_rel in the model's type, or in that of the site's island; of a quantised site, whose steps may fall
        either way, by how much quantising moves the result, if that is more. large: in an island, how far large logits
        (ten times the ordinary) are from float64; told and not judged.
    failure: in words, None if ok. provable: False where ONNX Runtime could not run the site at all.
    reduced: lengths of the model, with those at which the site was run in their place; None where it was run as it is.
    like: of a site that was not run itself, the one of the same operators, types and shapes that was.
    """

    ok: bool
    own: Difference
    exact: Difference
    cases: int
    errors: Errors | None = None
    failure: str | None = None
    provable: bool = True
    bound: float = 0.0
    large: Difference | None = None
    tried: tuple[Tried, ...] = ()
    between: Between | None = None
    like: str | None = None
    reduced: Mapping[int, int] | None = None


def worst_pair(errors: Sequence[Errors]) -> Errors | None:
    before, after = zip(*errors, strict=True) if errors else ((), ())
    return (worst(before), worst(after)) if errors else None
