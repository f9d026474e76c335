"""A quantised site in the model's own type: judged by its smooth form, and told by how far its steps fall apart.

Where a number lies between two steps of a quantiser, two correct computations take one each. That is told from a defect in two
ways: with a wave in place of each step (`prove.smooth`) both agree as closely as any two spellings do; and as they are, steps
included, they differ by no more than quantising itself moves the result.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from onnx_attn.prove.cases import Case
from onnx_attn.prove.compare import Difference, difference, worst
from onnx_attn.prove.cut import Cut
from onnx_attn.prove.smooth import is_quantised, smoothed, unrounded
from onnx_attn.runtime import Session

Results = dict[str, np.ndarray]


def values(session: Session, cut: Cut, case: Case) -> Results:
    found = session.run({name: case.inputs[name] for name in (*cut.inputs, *cut.known)})
    return dict(zip(session.outputs, found, strict=True))


def compare(before: Results, after: Results) -> Difference:
    return worst([difference(value, after[name]) for name, value in before.items()])


@dataclass(frozen=True)
class Flips:
    """A quantised site before and after: smooth, and without its steps (`plain`). added: a step was added, which the smooth
    forms leave out."""

    cuts: tuple[Cut, Cut]
    sessions: tuple[Session, Session]
    plain: tuple[Session, Session]
    added: bool

    def smooth(self, case: Case) -> tuple[Results, Results]:
        before, after = (values(*pair, case) for pair in zip(self.sessions, self.cuts, strict=True))
        return before, after

    def moved(self, case: Case, results: tuple[Results, Results]) -> float:
        """By how much quantising moves the result of a case, against the largest number before: what no step of rounding may
        exceed. Where one was added, before and after together: |b − a| ≤ |b − b'| + |b' − a'| + |a' − a|, b' and a' without."""
        count = 2 if self.added else 1
        plain = [values(session, cut, case) for session, cut in zip(self.plain, self.cuts, strict=True)]
        found = [0.0]
        for name in plain[0]:
            largest = difference(results[0][name], np.zeros_like(results[0][name])).max_abs
            moved = sum(difference(results[n][name], plain[n][name]).max_abs for n in range(count))
            found.append(moved / largest if largest else 0.0)
        return max(found)

    def judges(self, case: Case) -> bool:
        """Whether a case is compared step by step. An added step makes a number of the NaN of a row that is masked throughout."""
        return not (self.added and case.name.startswith("row"))


def flips_of(cuts: tuple[Cut, Cut], name: str, added: Collection[str]) -> Flips | None:
    """None for a site without quantisation steps."""
    if not any(is_quantised(cut.model) for cut in cuts):
        return None
    before, after = (Session(smoothed(cut.model, added), name) for cut in cuts)
    plain_before, plain_after = (Session(unrounded(cut.model), name) for cut in cuts)
    return Flips(cuts, (before, after), (plain_before, plain_after), bool(added))
