"""Sites × target → what will be done to each candidate. Nothing is written here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_attn.forms.packing import Packing, plan_packing
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, Candidate, Verdict, Written
from onnx_attn.targets.table import Target, check_form, form_for


@dataclass(frozen=True)
class Decision:
    """A site and how it will be written. `unpacked` says why the projection is left as it is, where it is."""

    site: AttentionSite
    form: str
    packing: Packing | None
    unpacked: str | None

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
    view: GraphView, candidates: Sequence[Candidate], target: Target, form: str = "auto", pack: bool = True
) -> Plan:
    """Choose form and packing for every site that the target takes; refuse the others with the table's reason."""
    check_form(target, form)
    entries: list[Candidate | Decision] = []
    for candidate in candidates:
        if isinstance(candidate, Verdict):
            entries.append(candidate)
            continue
        chosen = form_for(target, form, view.opset)
        if isinstance(candidate, Written):
            stays = chosen == "function"
            entries.append(candidate if stays else Verdict(candidate.name, "already-fused", candidate.name))
            continue
        if isinstance(chosen, Verdict):
            entries.append(Verdict(candidate.name, chosen.code, candidate.name, chosen.detail))
            continue
        packing = plan_packing(view, candidate) if pack else "packing is turned off"
        if isinstance(packing, Packing):
            entries.append(Decision(candidate, chosen, packing, None))
        else:
            entries.append(Decision(candidate, chosen, None, packing))
    return Plan(tuple(entries))
