"""Sites × target → what will be done to each candidate. Nothing is written here."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from onnx_attn.algebra.choose import CONSTANT_CHANNEL, IDENTITIES, NOTHING, Algebra, choose_algebra, is_quantised
from onnx_attn.forms.adaptation import AS_IT_STANDS, Adaptation, Heads, adapted_site
from onnx_attn.forms.attention import attention_refused
from onnx_attn.forms.beside import Beside, read_beside
from onnx_attn.forms.contrib import contrib_refused
from onnx_attn.forms.narrow_weights import narrow_refused
from onnx_attn.forms.packing import Packing, for_tensorrt, plan_packing
from onnx_attn.forms.placement import AUTO, Placement
from onnx_attn.forms.way import Way
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, Candidate, Verdict, Written
from onnx_attn.targets.editions import Target
from onnx_attn.targets.facts import Facts
from onnx_attn.targets.legal import adapted_facts, make_legal, missing_step
from onnx_attn.targets.lookup import WRITTEN, check_form, choose_form, code_of, landing, lands_best
from onnx_attn.targets.onnxruntime_speed import fastest
from onnx_attn.targets.reading import form_of_node, written_facts
from onnx_attn.targets.rows import Row

ATTENTION_OPSET = 23
"""The first that has the Attention operator."""


RECOMPUTED = "recomputed-probabilities"
"""What plans and reports call the change by which a site has probabilities of its own, beside those that somebody else reads."""


TOKENS_FIRST = "tokens-first"
"""What they call it that the block around a site is computed with tokens first, its windows last (row_order/order.py)."""


ROTARY = "rotary-embedding"
"""What they call it that the rotary embeddings of its Q and K are the standard operator (rotary/rewrite.py)."""


@dataclass(frozen=True)
class Decision:
    """A site and how it will be written. `unpacked` says why the projection is left as it is, where it is.

    stays: it is the `Attention` node that it was, in the form "attention".
    adaptation: what is changed about it for the target. placement: where its parts are written.
    ordered: the block around it is computed tokens first. embedded: its rotary embeddings are written as the operator.
    beside: layers that are packed as they are, where something works on what they make before it is Q or K.
    broadcast: K or V of one head for all of Q's is not repeated.
    """

    site: AttentionSite
    form: str
    packing: Packing | None
    unpacked: str | None
    algebra: Algebra = NOTHING
    stays: bool = False
    adaptation: Adaptation = AS_IT_STANDS
    placement: Placement = AUTO
    ordered: bool = False
    embedded: bool = False
    beside: Beside | None = None
    broadcast: bool = False

    @property
    def way(self) -> Way:
        return Way(self.form, self.packing, self.algebra, self.adaptation, self.placement, self.beside, self.broadcast)

    @property
    def packed(self) -> bool:
        return self.way.packed

    @property
    def key(self) -> str:
        """What tells this site from every other: the value that it makes. Node names may be missing or equal."""
        return self.site.output.name

    @property
    def changes(self) -> tuple[str, ...]:
        """What is changed about the site, as plans and reports call it."""
        more = [(RECOMPUTED, self.site.shared), (TOKENS_FIRST, self.ordered), (ROTARY, self.embedded)]
        return self.adaptation.names + tuple(name for name, done in more if done)


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


@dataclass(frozen=True)
class Choice:
    """What is asked for a site: its form, whether to pack, which identities are allowed, or to leave it alone; the precision
    of the island around a site of float32 ("keep" for none), whether its heads may be padded, whether probabilities are to be
    rounded where Q, K and V are, where its parts go, whether probabilities that somebody else reads may be computed once
    more, whether the block around it may be computed tokens first, and its rotary embeddings be operators
    (None: where the target gains by that), and whether Q, K and V are projected each by itself."""

    form: str = "auto"
    pack: bool = True
    algebra: Collection[str] = IDENTITIES
    apply: bool = True
    precision: str = "keep"
    heads: Heads = "needed"
    quantize_probabilities: bool = False
    placement: Placement = AUTO
    recompute: bool = False
    tokens_first: bool = True
    rotary: bool | None = None
    split: bool = False


def make_plan(
    view: GraphView,
    candidates: Sequence[Candidate],
    target: Target,
    choice: Choice = Choice(),
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


def has_sites(candidates: Sequence[Candidate], choices: Sequence[Choice] = (Choice(),)) -> bool:
    """Whether any candidate is a site that can be written anew."""
    wanted = Choice(recompute=any(choice.recompute for choice in choices))
    return any(isinstance(writable(candidate, wanted), AttentionSite) for candidate in candidates)


def decide(view: GraphView, site: AttentionSite | Written, target: Target, wanted: Choice) -> Candidate | Decision:
    """How one site is written; a verdict where it is left alone."""
    if isinstance(site, Written) and site.form == "contrib":
        taken = target.name == "onnxruntime" and wanted.form in ("auto", "contrib")
        return (
            site if taken else Verdict(site.name, "operator-of-a-runtime", site.name, f"com.microsoft.{site.node.op}")
        )
    facts = written_facts(view, site)
    if target.name == "onnxruntime" and wanted.form == "auto" and isinstance(site, AttentionSite):
        for asked in _by_speed(facts, wanted):
            decision = _decide(view, site, target, asked, facts)
            # Where nothing can be packed, what was measured unpacked is what it comes to.
            if isinstance(decision, Decision) and asked.pack == (decision.packing is not None):
                return decision
    return _decide(view, site, target, wanted, facts)


def _by_speed(facts: Facts, wanted: Choice) -> Iterator[Choice]:
    """What is wanted in the ways that were measured to be the fastest, as far as the opset and what is wanted allow them."""
    if wanted.precision == "keep":
        for way in fastest(facts):
            if way.pack <= wanted.pack and (way.form != "attention" or (facts.opset or 0) >= ATTENTION_OPSET):
                yield replace(wanted, form=way.form, pack=way.pack)


def _decide(
    view: GraphView, site: AttentionSite | Written, target: Target, wanted: Choice, facts: Facts
) -> Candidate | Decision:
    if wanted.form == "attention" and facts.mask not in (None, "none"):
        facts = replace(facts, mask_rank=4, mask_queries="all")  # As it is written.
    step = missing_step(facts) if wanted.quantize_probabilities and isinstance(site, AttentionSite) else ""
    facts = replace(facts, probabilities_quantized=step) if step else facts
    likely = WRITTEN[0] if wanted.form == "auto" else wanted.form
    change = make_legal(target, likely, facts, wanted.precision, wanted.heads, step)
    chosen = choose_form(target, wanted.form, adapted_facts(facts, change))
    if isinstance(site, Written):
        stays = chosen == "function" and not change.elem_type
        return site if stays else Verdict(site.name, "already-fused", site.name)
    if isinstance(chosen, Row):
        return Verdict(site.name, code_of(chosen), site.name, chosen.told(facts))
    if chosen != likely:
        change = make_legal(target, chosen, facts, wanted.precision, wanted.heads, step)
    says = {"attention": attention_refused, "contrib": contrib_refused}.get(chosen)
    if says is not None and (refused := says(view, adapted_site(view, site, change, chosen), change.elem_type)):
        return Verdict(site.name, refused[0], site.name, refused[1])
    placement = wanted.placement
    if target.name == "tensorrt" and not change.elem_type:
        placement = placement.apart(site.shared, site.scores_scale)
    broadcast = _lands_nowhere(target, chosen, adapted_facts(facts, change))
    decided = partial(Decision, site, adaptation=change, placement=placement, broadcast=broadcast)
    packing = _packing(view, site, target, wanted, change)
    if isinstance(packing, Packing):
        # The projection serves the other reader of the probabilities too: its weights stay what they are.
        identities = _useful(wanted.algebra, target) if not site.shared else ()
        return decided(chosen, packing, None, choose_algebra(view, site, packing, identities))
    beside = read_beside(view, site) if _may_stand_beside(target, site, wanted) else None
    unpacked = packing if beside is None else None
    operator = form_of_node(site.node) == "attention" and not change.names
    if operator and (chosen == "attention" or (wanted.form == "auto" and lands_best(target, "attention", facts))):
        return Decision(site, "attention", None, unpacked, stays=beside is None, beside=beside)
    return decided(chosen, None, unpacked, beside=beside)


def _packing(view: GraphView, site: AttentionSite, target: Target, wanted: Choice, change: Adaptation) -> Packing | str:
    """The packing of a site's projection as it is wanted and as the target gains by it, or in words why there is none."""
    packing = plan_packing(view, site) if wanted.pack else "packing is turned off"
    if isinstance(packing, Packing):
        packing = next((why for group in packing.groups if (why := narrow_refused(view, group))), packing)
    if isinstance(packing, Packing) and site.shared and is_quantised(view, site, packing):
        packing = "what is quantised serves one reader alone"
    if isinstance(packing, Packing) and wanted.split:
        return packing.apart()
    if isinstance(packing, Packing) and target.name == "tensorrt":
        return for_tensorrt(view, packing, change.head_dim)
    return packing


def _lands_nowhere(target: Target, form: str, facts: Facts) -> bool:
    """Whether no attention kernel will run: it alone wants every head of K and V by itself (Falcon by torchscript, probabilities
    in float32 in front of V: 21 kernels with K and V broadcast, 23 and 8 % more bytes with their heads repeated)."""
    found = landing(target, form, facts) if target.name == "tensorrt" else None
    return found is not None and not found.expected


def _may_stand_beside(target: Target, site: AttentionSite, wanted: Choice) -> bool:
    """Where the compiler is known to gain by it (forms/beside.py)."""
    return target.name == "tensorrt" and wanted.pack and not wanted.split and not site.shared


def _useful(algebra: Collection[str], target: Target) -> Collection[str]:
    """The identities that a target gains by: that a LayerNorm carries biases saves a kernel of TensorRT's, and nothing else."""
    return algebra if target.name == "tensorrt" else [name for name in algebra if name != CONSTANT_CHANNEL]
