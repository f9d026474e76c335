"""Sites × target → what will be done to each candidate. Nothing is written here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from onnx_attn.decide import decide
from onnx_attn.decision import ATTENTION_OPSET, BY_DEFAULT, Choice, Decision
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, Candidate, Verdict, Written
from onnx_attn.targets.editions import Target
from onnx_attn.targets.lookup import check_form


@dataclass(frozen=True)
class Plan:
    """Every candidate in graph order: a Decision where it will be written, else the candidate itself."""

    entries: tuple[Candidate | Decision, ...]

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(entry for entry in self.entries if isinstance(entry, Decision))

    @property
    def attention(self) -> tuple[Candidate | Decision, ...]:
        """The candidates that are attention, refused ones included."""
        return tuple(entry for entry in self.entries if is_attention(entry))

    def prepared(self, ordered: Collection[str], embedded: Collection[str]) -> Plan:
        """The same, where the blocks around the sites of the first keys are computed tokens first, and the rotary embeddings of
        the second are operators."""
        return Plan(
            tuple(
                replace(e, ordered=e.key in ordered, embedded=e.key in embedded) if isinstance(e, Decision) else e
                for e in self.entries
            )
        )

    def explained(self, code: str, detail: str) -> Plan:
        """The same with a further reason for what is refused under this code."""
        return Plan(
            tuple(
                replace(entry, detail=f"{entry.detail}; {detail}" if entry.detail else detail)
                if isinstance(entry, Verdict) and entry.code == code
                else entry
                for entry in self.entries
            )
        )


def make_plan(
    view: GraphView,
    candidates: Sequence[Candidate],
    target: Target,
    choice: Choice = BY_DEFAULT,
    choices: Sequence[Choice | None] = (),
) -> Plan:
    """Choose form and packing for every site that the target takes; refuse the others with the table's reason.

    choice: for every site; `choices`: for each by itself, in graph order, where a plan was given (None: it was refused).

    An `Attention` node that lands as it stands, in no more kernels than spelled out, stays where nothing can be packed.
    """
    for asked in {choice.form, *(each.form for each in choices if each is not None and each.apply)}:
        check_form(target.taking(ATTENTION_OPSET) if asked == "attention" else target, asked)
    entries: list[Candidate | Decision] = []
    for candidate, wanted in chosen(candidates, choice, choices):
        site = writable(candidate, wanted)
        if site is None:
            entries.append(candidate)
        elif not wanted.apply:
            entries.append(Verdict(candidate.name, "left-by-plan", candidate.name))
        else:
            entries.append(decide(view, site, target, wanted))
    return Plan(tuple(entries))


def is_attention(entry: Candidate | Decision) -> bool:
    return not isinstance(entry, Verdict) or entry.attention


def chosen(
    candidates: Sequence[Candidate], choice: Choice, choices: Sequence[Choice | None]
) -> Iterator[tuple[Candidate, Choice]]:
    """Each candidate with what is asked for it: the one choice, or, of what is attention, its own where a plan has one."""
    own = iter(choices)
    for candidate in candidates:
        yield candidate, (next(own, None) or choice if is_attention(candidate) else choice)


def writable(candidate: Candidate, wanted: Choice) -> AttentionSite | Written | None:
    """The site that a candidate is, or may be made by what is wanted; None for one that is refused or no attention."""
    if isinstance(candidate, Verdict):
        return candidate.recomputable if wanted.recompute else None
    return candidate


def has_sites(candidates: Sequence[Candidate], choices: Sequence[Choice] = (BY_DEFAULT,)) -> bool:
    """Whether any candidate is a site that can be written anew."""
    wanted = Choice(recompute=any(choice.recompute for choice in choices))
    return any(isinstance(writable(candidate, wanted), AttentionSite) for candidate in candidates)
