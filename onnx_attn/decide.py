"""One site × target → how it will be written. Nothing is written here."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial

from onnx_attn.algebra.choose import CONSTANT_CHANNEL, VALUE, choose_algebra, is_biased, is_quantised
from onnx_attn.decision import ATTENTION_OPSET, Choice, Decision
from onnx_attn.forms.adaptation import adapted_site
from onnx_attn.forms.attention import attention_refused
from onnx_attn.forms.beside import read_beside
from onnx_attn.forms.contrib import contrib_refused
from onnx_attn.forms.narrow_weights import narrow_refused
from onnx_attn.forms.packing import Packing, for_tensorrt, plan_packing
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, Candidate, Verdict, Written
from onnx_attn.targets.editions import Target
from onnx_attn.targets.facts import Facts
from onnx_attn.targets.legal import adapted_facts, make_legal, missing_step
from onnx_attn.targets.lookup import WRITTEN, choose_form, code_of, landing, lands_best
from onnx_attn.targets.onnxruntime_speed import fastest
from onnx_attn.targets.reading import form_of_node, written_facts
from onnx_attn.targets.rows import Row
from onnx_attn.views.arrange import real
from onnx_attn.views.linear import rows_vary


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
    found = _decide(view, site, target, wanted, facts)
    if wanted.form == "auto" and isinstance(found, Decision) and _guards_dearly(view, target, found, facts):
        operator = _decide(view, site, target, replace(wanted, form="attention"), facts)
        return operator if isinstance(operator, Decision) else found
    return found


def _guards_dearly(view: GraphView, target: Target, found: Decision, facts: Facts) -> bool:
    """Whether an `Attention` node keeps its form, packed: spelled out, rows that a mask blocks throughout take a kernel more, and
    nothing else is gained as long as V has a bias in its projection (sizes that do not vary; MultiheadAttention with a mask: 6
    kernels, 7 spelled out; torch's decoder layer 16, 17; T5, which has no biases, 30, 24)."""
    operator = form_of_node(found.site.node) == "attention" and found.site.guard == "row"
    if target.name != "tensorrt" or not operator or found.packing is None or VALUE not in found.packing.members:
        return False
    group, member = found.packing.members[VALUE]
    moved = found.algebra.takes_bias(VALUE) or found.algebra.constant(group) is not None
    if moved or not is_biased(view, member) or rows_vary(view, member.layer):
        return False
    return facts.mask_queries == "all" and lands_best(target, "attention", _as_written(facts))


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
        facts = _as_written(facts)
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
    additive = _is_counted(view, site, target, facts) and not change.elem_type
    decided = partial(Decision, site=site, form=chosen, adaptation=change, placement=placement, broadcast=broadcast)
    packing = _packing(view, site, target, wanted)
    if isinstance(packing, Packing):
        # The projection serves the other reader of the probabilities too: its weights stay what they are.
        identities = _useful(wanted.algebra, target) if not site.shared else ()
        algebra = choose_algebra(view, site, packing, identities)
        additive = additive and chosen == "attention"
        return decided(packing=packing, unpacked=None, algebra=algebra, additive=additive)
    beside = read_beside(view, site) if _may_stand_beside(target, site, wanted) else None
    unpacked = packing if beside is None else None
    operator = form_of_node(site.node) == "attention" and not change.names
    kept = replace(facts, mask="additive", mask_type="query") if additive and facts.mask_queries == "all" else facts
    if operator and (chosen == "attention" or (wanted.form == "auto" and lands_best(target, "attention", kept))):
        stays = beside is None and not additive
        return Decision(site=site, form="attention", unpacked=unpacked, stays=stays, beside=beside, additive=additive)
    return decided(unpacked=unpacked, beside=beside)


def _is_counted(view: GraphView, site: AttentionSite, target: Target, facts: Facts) -> bool:
    """Whether the compiler counts a boolean mask of the operator row by row: one that comes from outside as it is. Written as the
    numbers that it adds it is not (the operator by itself: 10 kernels, 3)."""
    boolean = target.name == "tensorrt" and facts.mask == "boolean"
    return boolean and any(view.is_from_outside(real(view, mask)) for mask in site.mask_tensors)


def _as_written(facts: Facts) -> Facts:
    """With the mask as the form `attention` has it."""
    return replace(facts, mask_rank=4, mask_queries="all")


def _packing(view: GraphView, site: AttentionSite, target: Target, wanted: Choice) -> Packing | str:
    """The packing of a site's projection as it is wanted and as the target gains by it, or in words why there is none."""
    packing = plan_packing(view, site) if wanted.pack else "packing is turned off"
    if isinstance(packing, Packing):
        packing = next((why for group in packing.groups if (why := narrow_refused(view, group))), packing)
    if isinstance(packing, Packing) and site.shared and is_quantised(view, site, packing):
        packing = "what is quantised serves one reader alone"
    if isinstance(packing, Packing) and wanted.split:
        return packing.apart()
    if isinstance(packing, Packing) and target.name == "tensorrt":
        return for_tensorrt(view, site, packing)
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
