"""From a plan to the best one that the compiler knows.

Sites that are alike share an answer. Each is first compared by itself, between the same tensors in every way, which takes a
fraction of a second a way; what was found there is then confirmed on the whole model, and where that has more kernels, or
moves more bytes with as many, one kind of site after the other is changed and kept only if that helps. So the result is
never worse than the plan that it began with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from onnx_attn.decide import decide
from onnx_attn.decided import write_decided
from onnx_attn.decision import Choice, Decision
from onnx_attn.engine.compile import choose_toolkit
from onnx_attn.engine.profiles import Profile, fitted
from onnx_attn.graph.alike import digest
from onnx_attn.graph.edit import Names, SiteEdit
from onnx_attn.graph.view import GraphView
from onnx_attn.plan import Plan
from onnx_attn.progress import stage, step, steps
from onnx_attn.prove.cut import Cutter, boundary
from onnx_attn.search.ask import Compiler, Cost, Question
from onnx_attn.search.pieces import Pieces, pieces_of
from onnx_attn.search.ways import ROUNDS, plainer
from onnx_attn.site import Candidate
from onnx_attn.targets.editions import Target


@dataclass(frozen=True)
class Asked:
    """With what the compiler is asked. sm: compute capability times ten. shapes: of every input that varies, those that the
    engine will be built with. timeout: seconds for one build."""

    sm: int = 89
    shapes: Profile = field(default_factory=dict)
    toolkit: str | None = None
    timeout: float = 600.0


@dataclass(frozen=True)
class Found:
    """The plan that was found. kinds: of sites. builds: how many models were compiled. export, default, best: what the model,
    the first plan and this one cost as a whole (None: does not build)."""

    plan: Plan
    compiler: str
    asked: Asked
    kinds: int
    builds: int
    export: Cost | None
    default: Cost | None
    best: Cost | None

    @property
    def document(self) -> dict[str, Any]:
        """For reports and plans."""
        costs = {"export": self.export, "default": self.default, "chosen": self.best}
        shapes = {name: [list(shape) for shape in every] for name, every in self.asked.shapes.items()}
        return {
            "compiler": self.compiler,
            "sm": self.asked.sm,
            "shapes": shapes,
            "kinds": self.kinds,
            "builds": self.builds,
            **{name: cost.document if cost else None for name, cost in costs.items()},
        }


def search(cutter: Cutter, target: Target, plan: Plan, choice: Choice, asked: Asked, name: str) -> Found:
    """The best plan within `choice`; `name`: the model's, for messages.

    Raises UsageError for shapes that do not fit the model, OnnxAttnError where no compiler is installed.
    """
    compiler = Compiler(asked.sm, choose_toolkit(asked.toolkit), asked.timeout)
    shapes = fitted(cutter.view.proto, asked.shapes, name)
    reserved = frozenset(decision.key for decision in plan.decisions if not decision.stays)
    run = _Search(cutter.view, target, choice, compiler, pieces_of(cutter, shapes), reserved)
    with stage("search"):
        found, kinds, costs = run.best_plan(plan)
    return Found(found, compiler.name, replace(asked, shapes=shapes), kinds, compiler.builds, *costs)


@dataclass
class _Search:
    """The search over one model.

    choice: what the user asked for every site, within which is searched. reserved: the values that the rewriting makes anew.
    """

    view: GraphView
    target: Target
    choice: Choice
    compiler: Compiler
    pieces: Pieces
    reserved: frozenset[str]

    def best_plan(self, plan: Plan) -> tuple[Plan, int, Costs]:
        """A plan with no more kernels than `plan` has, and no more bytes with as many; how many kinds of sites there are, and
        what model, plan and best plan cost."""
        kinds = self._kinds(plan.decisions)
        told = steps(kinds, lambda kind: kind[1][0].site.name)
        found = [(alike, self._best_of(alike[0], limits)) for limits, alike in told]
        step(0, 0, "the whole model")
        better = [(alike, choice) for alike, choice in found if choice is not None]
        export, default = self._costs([self.pieces.whole([]), self._whole(plan)])
        changed = plan
        for alike, choice in better:
            changed = self._changed(changed, alike, choice)
        cost = self._costs([self._whole(changed)])[0] if better else default
        if better and not _is_better(cost, default):
            changed, cost = self._one_by_one(plan, default, better)
        if cost is None and export is not None:
            changed, cost = self._plainer(plan)
        return changed, len(kinds), (export, default, cost)

    def _kinds(self, decisions: Sequence[Decision]) -> list[tuple[Limits, list[Decision]]]:
        """The sites that are alike together, with the limits of the first; those that cannot be compared are left as they are."""
        kinds: dict[str, tuple[Limits, list[Decision]]] = {}
        names = Names(self.view.proto)
        for decision in decisions:
            limits = self._limits(decision, names)
            question = self.pieces.question(*limits, None) if limits is not None else None
            if limits is not None and question is not None:
                written = (decision.stays, decision.packed, decision.algebra.names, decision.adaptation)
                kinds.setdefault(f"{digest(question.model)} {written}", (limits, []))[1].append(decision)
        return list(kinds.values())

    def _best_of(self, first: Decision, limits: Limits) -> Choice | None:
        """The best way to write a site, None if that is the way that was planned."""
        best, decision = self.choice, first
        cost = self._costs([self._piece(first, limits)])[0]
        for vary in ROUNDS:
            choices = [choice for choice in vary(best, decision, self.target) if choice != best]
            decided = [decide(self.view, first.site, self.target, choice) for choice in choices]
            tried = [(c, d) for c, d in zip(choices, decided, strict=True) if isinstance(d, Decision)]
            costs = self._costs([self._piece(each, limits) for _, each in tried])
            for (choice, other), found in zip(tried, costs, strict=True):
                if _is_better(found, cost):
                    best, decision, cost = choice, other, found
        return None if decision is first else best

    def _one_by_one(
        self, plan: Plan, cost: Cost | None, better: Sequence[tuple[list[Decision], Choice]]
    ) -> tuple[Plan, Cost | None]:
        for alike, choice in better:
            changed = self._changed(plan, alike, choice)
            found = self._costs([self._whole(changed)])[0]
            if _is_better(found, cost):
                plan, cost = changed, found
        return plan, cost

    def _plainer(self, plan: Plan) -> tuple[Plan, Cost | None]:
        """A plan that builds, where the one for a model that does does not."""
        for choice in plainer(self.choice):
            changed = self._changed(plan, plan.decisions, choice)
            found = self._costs([self._whole(changed)])[0]
            if found is not None:
                return changed, found
        return plan, None

    def _changed(self, plan: Plan, alike: Sequence[Decision], choice: Choice) -> Plan:
        """The plan with these sites written as chosen."""
        keys = {decision.key for decision in alike}
        found: list[Candidate | Decision] = []
        for entry in plan.entries:
            if isinstance(entry, Decision) and entry.key in keys:
                decided = decide(self.view, entry.site, self.target, choice)
                entry = decided if isinstance(decided, Decision) else entry
            found.append(entry)
        return Plan(tuple(found))

    def _limits(self, decision: Decision, names: Names) -> Limits | None:
        """The tensors between which ways to write a site are compared: those of the way that reaches farthest."""
        if decision.stays:
            spelled = decide(self.view, decision.site, self.target, replace(self.choice, form="function"))
            if not isinstance(spelled, Decision):
                return None
            decision = spelled
        edit = self._edit(decision, names)
        start = boundary(self.view, decision.site, edit).difference(edit.outputs)
        # Who else reads the probabilities has kernels of his own, which the way of the site decides about.
        others = [tensor.name for tensor in decision.site.node.outputs[:1]] if decision.site.shared else []
        return [*edit.outputs, *others], start

    def _piece(self, decision: Decision, limits: Limits) -> Question | None:
        edit = None if decision.stays else self._edit(decision, Names(self.view.proto))
        return self.pieces.question(*limits, edit)

    def _whole(self, plan: Plan) -> Question | None:
        names = Names(self.view.proto)
        return self.pieces.whole([self._edit(each, names) for each in plan.decisions if not each.stays])

    def _edit(self, decision: Decision, names: Names) -> SiteEdit:
        return write_decided(self.view, names, decision, self.reserved)[2]

    def _costs(self, questions: Sequence[Question | None]) -> list[Cost | None]:
        answers = iter(self.compiler.ask([question for question in questions if question is not None]))
        return [next(answers) if question is not None else None for question in questions]


Costs = tuple[Cost | None, Cost | None, Cost | None]
Limits = tuple[list[str], set[str]]
"""The values that a piece ends with, and begins with."""


def _is_better(found: Cost | None, than: Cost | None) -> bool:
    return found is not None and (than is None or found < than)
