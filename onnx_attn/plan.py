"""Sites × target → what will be done to each candidate. Nothing is written here."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from onnx_attn.algebra.choose import IDENTITIES, NOTHING, Algebra, choose_algebra
from onnx_attn.forms.packing import Packing, plan_packing
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, Candidate, Verdict, Written
from onnx_attn.targets.editions import Target
from onnx_attn.targets.lookup import check_form, choose_form, lands_best
from onnx_attn.targets.reading import facts_of, form_of_node
from onnx_attn.targets.rows import Row


@dataclass(frozen=True)
class Decision:
    """A site and how it will be written. `unpacked` says why the projection is left as it is, where it is.

    The form "attention" is never written: such a site stays the `Attention` node that it is.
    """

    site: AttentionSite
    form: str
    packing: Packing | None
    unpacked: str | None
    algebra: Algebra = NOTHING

    @property
    def key(self) -> str:
        """What tells this site from every other: the value that it makes. Node names may be missing or equal."""
        return self.site.output.name


@dataclass(frozen=True)
class Plan:
    """Every candidate in graph order: a Decision where it will be written, else the candidate itself."""

    entries: tuple[Candidate | Decision, ...]

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(entry for entry in self.entries if isinstance(entry, Decision))


def make_plan(
    view: GraphView,
    candidates: Sequence[Candidate],
    target: Target,
    form: str = "auto",
    pack: bool = True,
    algebra: Collection[str] = IDENTITIES,
) -> Plan:
    """Choose form and packing for every site that the target takes; refuse the others with the table's reason.

    An `Attention` node that lands as it stands, in no more kernels than spelled out, stays where nothing can be packed.
    """
    check_form(target, form)
    entries: list[Candidate | Decision] = []
    for candidate in candidates:
        if isinstance(candidate, Verdict):
            entries.append(candidate)
            continue
        facts = facts_of(view, candidate)
        chosen = choose_form(target, form, facts)
        if isinstance(candidate, Written):
            stays = chosen == "function"
            entries.append(candidate if stays else Verdict(candidate.name, "already-fused", candidate.name))
            continue
        if isinstance(chosen, Row):
            assert chosen.code is not None  # so of every row that forbids a form that is written
            entries.append(Verdict(candidate.name, chosen.code, candidate.name, chosen.told(facts)))
            continue
        packing = plan_packing(view, candidate) if pack else "packing is turned off"
        if isinstance(packing, Packing):
            found = choose_algebra(view, candidate, packing, algebra)
            entries.append(Decision(candidate, chosen, packing, None, found))
        elif form == "auto" and form_of_node(candidate.node) == "attention" and lands_best(target, "attention", facts):
            entries.append(Decision(candidate, "attention", None, packing))
        else:
            entries.append(Decision(candidate, chosen, None, packing))
    return Plan(tuple(entries))
