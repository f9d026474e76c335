"""How to make a site legal: the least change under which the table expects it on an attention kernel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from onnx_attn.forms.adaptation import AS_IT_STANDS, Adaptation, Heads
from onnx_attn.targets.editions import Target
from onnx_attn.targets.facts import Facts
from onnx_attn.targets.lookup import landing

LEAST, ALIGNED = 16, 8
"""Heads are padded to so many elements at least, and to a multiple of the second."""
_TYPES = {"fp16": "float16", "bf16": "bfloat16"}


def make_legal(
    target: Target,
    form: str,
    facts: Facts,
    precision: str = "keep",
    heads: Heads = "needed",
    probabilities: str = "",
) -> Adaptation:
    """What to change about a site that is written in `form`; nothing where it lands as it stands, or nothing helps.

    precision: of the island that may be put around a site that has operands of a wider type; "keep" for none. heads: may be
        padded where that is "needed", are "kept" as they are, or "aligned" in any case. probabilities: what they are to be
        rounded to (`missing_step`).
    Only TensorRT is known by its kernels: for the others an island is put where it is asked for.
    """
    if facts.quantized not in (None, "none") or facts.steps_inside:
        return Adaptation(
            probabilities=probabilities
        )  # Its kernels are its own, and what it computes is not to be rounded once more.
    wide = facts.dtype in ("float32", "float64") or facts.value_dtype == "other"
    if target.name != "tensorrt":
        return Adaptation(precision) if wide else AS_IT_STANDS
    for adaptation in _changes(facts, precision if wide else "keep", heads):
        found = landing(target, form, adapted_facts(facts, adaptation))
        if found is not None and found.expected:
            return adaptation
    return AS_IT_STANDS


def missing_step(facts: Facts) -> str:
    """What the probabilities of a site can be rounded to, as Q, K and V are; "" where they are already, or these are not."""
    return str(facts.quantized) if facts.narrow and facts.probabilities_quantized == "none" else ""


def adapted_facts(facts: Facts, adaptation: Adaptation) -> Facts:
    """The facts of a site after the change."""
    if adaptation.elem_type:
        facts = replace(facts, dtype=_TYPES[adaptation.precision], value_dtype="same")
    if adaptation.probabilities:
        facts = replace(facts, probabilities_quantized=adaptation.probabilities)
    if adaptation.head_dim is not None:
        facts = replace(facts, head_dim=adaptation.head_dim, value_head="same")
    return facts


def _changes(facts: Facts, precision: str, heads: Heads) -> Iterator[Adaptation]:
    """The least change first."""
    sizes: list[int | None] = [] if heads == "aligned" else [None]
    if heads != "kept" and facts.head_dim is not None and facts.value_dim is not None:
        size = max(LEAST, -(-max(facts.head_dim, facts.value_dim) // ALIGNED) * ALIGNED)
        sizes.append(None if size == facts.head_dim == facts.value_dim else size)
    for kind in dict.fromkeys(("keep", precision)):
        yield from (Adaptation(kind, size) for size in sizes)
