"""A quantised site in the model's own type: judged by its smooth form, and told by how far its steps fall apart.

Where a number lies between two steps of a quantiser, two correct computations take one each. That is told from a defect in two
ways: with a wave in place of each step (`prove.smooth`) both agree as closely as any two spellings do; and as they are, steps
included, they differ by no more than quantising itself moves the result.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnx_attn.prove.cases import Case
from onnx_attn.prove.compare import Difference, difference, worst
from onnx_attn.prove.cut import Cut
from onnx_attn.prove.smooth import smoothed
from onnx_attn.runtime import Session

Results = dict[str, np.ndarray]


def values(session: Session, cut: Cut, case: Case) -> Results:
    found = session.run({name: case.inputs[name] for name in (*cut.inputs, *cut.known)})
    return dict(zip(session.outputs, found, strict=True))


def compare(before: Results, after: Results) -> Difference:
    return worst([difference(value, after[name]) for name, value in before.items()])


@dataclass(frozen=True)
class Flips:
    """A quantised site before and after, smooth (`sessions`), and before without its steps (`plain`)."""

    cuts: tuple[Cut, Cut]
    sessions: tuple[Session, Session]
    plain: Session

    def smooth(self, case: Case) -> tuple[Results, Results]:
        before, after = (values(*pair, case) for pair in zip(self.sessions, self.cuts, strict=True))
        return before, after

    def moved(self, case: Case, before: Results) -> float:
        """By how much quantising moves the result of a case, relatively: what no step of rounding may exceed."""
        plain = values(self.plain, self.cuts[0], case)
        return compare({name: before[name] for name in plain}, plain).max_rel


def flips_of(cuts: tuple[Cut, Cut], name: str) -> Flips:
    before, after = (Session(smoothed(cut.model), name) for cut in cuts)
    return Flips(cuts, (before, after), Session(smoothed(cuts[0].model, wave=False), name))
