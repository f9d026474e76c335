"""What one run of `fuse` did: filled phase by phase, read by the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from onnx_attn.algebra.choose import IDENTITIES
from onnx_attn.batch.make import Varied
from onnx_attn.decision import Decision
from onnx_attn.drawing.site import Drawn
from onnx_attn.graph.edit import SiteEdit
from onnx_attn.graph.view import GraphView
from onnx_attn.operators.microsoft.model import Outcome
from onnx_attn.plan import Plan
from onnx_attn.progress import clock
from onnx_attn.prove.certificate import Certificate
from onnx_attn.search.search import Found
from onnx_attn.site import Written
from onnx_attn.targets.editions import Target


@dataclass
class Fusion:
    """What `fuse` did: the plan, the edits and certificates by the plan's keys, the time.

    opsets: the model's own, and the one that it was raised to.
    kept: keys of sites that stand in the wanted form already.
    left: by key, what a site was written without after all, identities and changes, and why.
    search: what the compiler was asked and said, where it was.
    varied: the batch that was baked in and is a dimension now.
    microsoft: what became of ONNX Runtime's own operators.
    drawings: by the plan's entries, where they were asked for.
    """

    name: str
    target: Target
    view: GraphView
    plan: Plan
    nodes_before: int
    nodes_after: int = 0
    opsets: tuple[int, ...] = ()
    edits: dict[str, SiteEdit] = field(default_factory=dict)
    kept: set[str] = field(default_factory=set)
    left: dict[str, dict[str, str]] = field(default_factory=dict)
    certificates: dict[str, Certificate] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    search: Found | None = None
    varied: Varied | None = None
    microsoft: Outcome = field(default_factory=Outcome)
    drawings: Sequence[Drawn | None] = ()

    @property
    def fused(self) -> int:
        """Sites that are written in a form of ours, those that were before included."""
        entries = self.plan.entries
        return sum(
            isinstance(e, Written) or (isinstance(e, Decision) and (e.key in self.edits or e.key in self.kept))
            for e in entries
        )

    def change(self, plainer: Decision, left: Mapping[str, str]) -> None:
        """Put a plainer decision in the plan, which leaves these identities or changes out, each for its reason."""
        self.left.setdefault(plainer.key, {}).update(left)
        entries = self.plan.entries
        self.plan = Plan(tuple(plainer if isinstance(e, Decision) and e.key == plainer.key else e for e in entries))

    def algebra_left(self, decision: Decision) -> dict[str, str]:
        """Why identities that have something to do at a site were not applied, by their names."""
        left = self.left.get(decision.key, {})
        return {**decision.algebra.left, **{name: reason for name, reason in left.items() if name in IDENTITIES}}

    def changes_left(self, decision: Decision) -> dict[str, str]:
        """Why changes that were asked for were not made after all, by their names."""
        return {n: reason for n, reason in self.left.get(decision.key, {}).items() if n not in IDENTITIES}

    def clock(self, phase: str) -> AbstractContextManager[None]:
        return clock(self.seconds, phase)
