"""What is changed about a site so that a target has a kernel for it, and how that is written.

Zeros behind each head of Q and K add nothing to a score; behind V's they add columns of zeros to the result, which are cut off
again. A half-precision island casts Q, K and V, and the result back. Masks keep their type: scores are cast back before them,
since a mask of the lowest float32 would be −inf in float16, and a row that it blocks throughout NaN and not the mean of V.

Source: measured with TensorRT for RTX 1.7.1: no kernel for heads of 8 or fewer, for V of another head size than K, for float32;
with scores in float32 between products in half precision a site lands. There a boolean mask takes 8 kernels more, which it does
not where the scores are in half precision too.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from onnx import TensorProto

from onnx_attn.forms.narrow_weights import is_narrow
from onnx_attn.forms.owning import is_own
from onnx_attn.forms.packing import ROLES, Packing
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, Guard, ScoreTerm
from onnx_attn.views.quantizer import Quantizer

ISLANDS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}
"""The precisions that can be asked for, and their types."""
PADDED = "padded-heads"
Heads = Literal["needed", "kept", "aligned"]
"""Whether heads are padded: where a target needs it, never, or whenever their size is no multiple of what it reads at once."""
QUANTISED = "quantized-probabilities"
FIXED_SCALES = {"int8": (TensorProto.INT8, 1 / 127), "fp8": (TensorProto.FLOAT8E4M3FN, 1 / 448)}
"""Probabilities lie between 0 and 1: the type's largest number stands for 1."""


@dataclass(frozen=True)
class Adaptation:
    """precision: of the island, "keep" for none. head_dim: the size to which heads of Q, K and V are padded, None for none.
    probabilities: the kind of numbers that they are rounded to, of FIXED_SCALES; "" where nothing is added."""

    precision: str = "keep"
    head_dim: int | None = None
    probabilities: str = ""

    @property
    def elem_type(self) -> int:
        """The island's type; 0 for none."""
        return ISLANDS.get(self.precision, 0)

    @property
    def names(self) -> tuple[str, ...]:
        """As plans and reports call it."""
        island = (island_name(self.precision),) if self.elem_type else ()
        return island + ((PADDED,) if self.head_dim else ()) + ((QUANTISED,) if self.probabilities else ())


AS_IT_STANDS = Adaptation()


def island_name(precision: str) -> str:
    return f"{precision}-island"


def adapted_site(view: GraphView, site: AttentionSite, adaptation: Adaptation, form: str) -> AttentionSite:
    """The site as its island computes it: with the softmax in the type that it had, between casts, where its masks need that.

    The operator `Attention` has no place for casts: there the softmax runs in the island's type, and a mask of another type is
    refused.
    """
    if adaptation.probabilities:
        elem_type, scale = FIXED_SCALES[adaptation.probabilities]
        return replace(site, quantized=Quantizer(elem_type, (scale, 0.0)))
    island = adaptation.elem_type
    if not island or form == "attention":
        return site
    if not _needs_width(site, island):
        return replace(site, probabilities_dtypes=())
    back = ScoreTerm("cast", dtype=view.elem_type(site.query.tensor))
    dtypes = site.probabilities_dtypes
    dtypes = dtypes if dtypes and dtypes[-1] == island else (*dtypes, island)
    guard: Guard = "blocked" if site.guard == "nan" and _alone(site) else site.guard
    return replace(site, terms=(back, *site.terms), probabilities_dtypes=dtypes, guard=guard)


def _needs_width(site: AttentionSite, island: int) -> bool:
    """Whether anything happens to the scores that half precision would not hold: all but a choice of −inf, which is the same in
    every type."""
    plain = all(term.kind == "causal" or (term.kind == "where" and term.fill == -np.inf) for term in site.terms)
    return not plain or not {*site.probabilities_dtypes} <= {island}


def _alone(site: AttentionSite) -> bool:
    """Whether a row of NaN can only come from one mask that is added: then it is the mask that tells, behind the product. (A
    choice on probabilities that are cast is taken by kernels for heads of 32 and 64 alone, and before the cast it stops the
    build, TensorRT for RTX 1.7.1.)"""
    kinds = [term.kind for term in site.terms if term.kind != "cast"]
    return kinds == ["add"] and site.cleared is None


def padded_packing(view: GraphView, site: AttentionSite, packing: Packing, adaptation: Adaptation) -> Packing:
    """The packing with zeros among its columns for each head, where its weights are the site's own: padding costs nothing
    then. Else it stays, and operands are padded."""
    size = adaptation.head_dim
    own = all(is_own(view, site, [(m.role, m.layer) for m in group.members]) for group in packing.groups)
    if size is None or packing.targets or not own or any(is_narrow(view, group) for group in packing.groups):
        return packing
    groups = []
    for group in packing.groups:
        members = [
            replace(m, heads=replace(m.heads, columns=_with_zeros(m.heads.columns, size))) for m in group.members
        ]
        groups.append(replace(group, members=tuple(members)))
    return replace(packing, groups=tuple(groups))


def _with_zeros(columns: np.ndarray, size: int) -> np.ndarray:
    """Channels by head and feature; −1 stands for a channel of zeros."""
    return np.pad(columns, ((0, 0), (0, size - columns.shape[1])), constant_values=-1)


def cast_operands(
    writer: Writer, view: GraphView, site: AttentionSite, adaptation: Adaptation, operands: Sequence[str]
) -> tuple[str, str, str]:
    """Q, K and V in the island's type."""
    island, names = adaptation.elem_type, []
    for name, operand, role in zip(operands, site.operands, ROLES, strict=True):
        stays = not island or view.elem_type(operand.tensor) == island
        names.append(name if stays else writer.add("Cast", [name], f"{role}_{adaptation.precision}", to=island))
    return names[0], names[1], names[2]


def pad_operands(
    writer: Writer,
    site: AttentionSite,
    adaptation: Adaptation,
    operands: Sequence[str],
    rank: int,
    ready: Collection[int],
) -> tuple[str, str, str]:
    """Q, K and V with zeros behind each head; `ready`: the roles that have them already."""
    names, sizes = list(operands), (site.head_dim, site.head_dim, site.value_dim)
    for role, (hint, size) in enumerate(zip(ROLES, sizes, strict=True)):
        missing = (adaptation.head_dim or 0) - (size or 0)
        if missing > 0 and role not in ready:
            pads = writer.shape(*[0] * (2 * rank - 1), missing)
            names[role] = writer.add("Pad", [names[role], pads], f"{hint}_padded")
    return names[0], names[1], names[2]


def changes_result(view: GraphView, site: AttentionSite, adaptation: Adaptation) -> bool:
    """Whether P·V comes out of other size or type than the site's."""
    return _is_wider(site, adaptation) or _is_cast(view, site, adaptation)


def restore_result(
    writer: Writer, view: GraphView, site: AttentionSite, adaptation: Adaptation, name: str, output: str
) -> None:
    """P·V as the site has it: the padding cut off, in its own type."""
    if _is_wider(site, adaptation):
        last = None if _is_cast(view, site, adaptation) else output
        bounds = [writer.shape(0), writer.shape(site.value_dim or 0), writer.shape(-1)]
        name = writer.add("Slice", [name, *bounds], "attention_unpadded", output=last)
    if _is_cast(view, site, adaptation):
        to = view.elem_type(site.value.tensor)
        writer.add("Cast", [name], "attention_cast", output=output, to=to)


def _is_wider(site: AttentionSite, adaptation: Adaptation) -> bool:
    return adaptation.head_dim not in (None, site.value_dim)


def _is_cast(view: GraphView, site: AttentionSite, adaptation: Adaptation) -> bool:
    return adaptation.elem_type not in (0, view.elem_type(site.value.tensor))
