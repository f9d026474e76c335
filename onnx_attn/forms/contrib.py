"""Form `contrib`: ONNX Runtime's own operators of the domain com.microsoft, one node a site.

`Attention` takes the projection's source and the packed weights and makes Q, K and V itself; `MultiHeadAttention` takes them
as `(B, S, N·H)`. Both add a float bias to the scores and never look at masked rows (probed with ONNX Runtime 1.31.1: a row
that is masked throughout answers what softmax answers).
Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from onnx_attn.algebra.choose import Algebra
from onnx_attn.domain import MICROSOFT
from onnx_attn.forms.attention import Refused, expanded_mask, heads_of_values_differ
from onnx_attn.forms.heads import HEAD
from onnx_attn.forms.in_proj import InProj
from onnx_attn.forms.packing import Group, Packing
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite


def contrib_refused(view: GraphView, site: AttentionSite, island: int = 0) -> Refused | None:
    """Why a site cannot be said with these operators, in an island of this type if it is not 0; None if it can."""
    if island:
        return "type-not-supported", "an island of half precision is written in the other forms only"
    query_type = view.elem_type(site.query.tensor)
    if view.elem_type(site.value.tensor) != query_type:
        return "type-not-supported", "V has another type than Q and K"
    casts = [term.dtype for term in site.terms if term.kind == "cast"] + list(site.probabilities_dtypes)
    if any(dtype != query_type for dtype in casts):
        return "type-not-supported", "the softmax runs in another type than the operands'"
    if site.guard is not None:
        return "masked-row-differs", "rows that are masked throughout are cleared, which the operator does not do"
    if site.cleared is not None:
        return "form-not-taken", "probabilities are cleared behind the softmax"
    if site.quantizers:
        return "form-not-taken", "the scores or the probabilities are quantised"
    if any(term.kind not in ("add", "cast") for term in site.terms) or len(site.masks) > 1:
        return "mask-shape", "the operator adds one float mask to the scores"
    for mask in site.mask_tensors:
        if view.elem_type(mask) != query_type:
            return "type-not-supported", "the mask has another type than Q"
    if any(view.rank(mask) not in (0, 1, 2, 3, 4) for mask in site.mask_tensors):
        return "mask-shape", "the mask has more than four axes"
    if view.rank(site.query.tensor) != 4:
        return "form-not-taken", "Q, K and V have other than four axes"
    if site.head_dim is None or site.value_dim is None:
        return "form-not-taken", "the size of a head varies"
    if heads_of_values_differ(view, site):
        return "form-not-taken", "V has other heads than K"
    if site.scale == 0.0:
        return "form-not-taken", "the scores are multiplied by 0, for which the operator takes its own 1/√H"
    if site.heads is None or site.kv_heads != site.heads:
        return "form-not-taken", "heads of K and V are shared by several of Q"
    return None


def packs_into_attention(view: GraphView, packing: Packing) -> Group | None:
    """The group that `Attention` can project itself: Q, K and V of one source `(B, S, E)`, as heads one after the other."""
    if len(packing.groups) != 1:
        return None
    (group,) = packing.groups
    same_sizes = len({member.heads.size for member in group.members[:2]}) == 1
    plain = all(member.heads.order == (0, HEAD, 1) and member.heads.copies == 1 for member in group.members)
    return group if group.roles == (0, 1, 2) and plain and same_sizes else None


def write_packed_attention(
    writer: Writer, view: GraphView, site: AttentionSite, group: Group, algebra: Algebra, scale: float, output: str
) -> None:
    """`Attention(source, W, b)`: the in-projection is inside."""
    in_proj = InProj(view, site, group, algebra)
    sizes = [member.heads.columns.size for member in group.members]
    weight, bias = in_proj.weight(writer), in_proj.bias(writer)
    # The bias is documented as optional, and ONNX Runtime 1.31.1 dies of a segmentation fault without it.
    bias = bias or writer.constant(np.zeros(sum(sizes), in_proj.dtype), "no_bias")
    inputs = [group.source.name, weight, bias, "", "", _mask(writer, view, site, group)]
    attributes = {"num_heads": site.heads, "scale": float(scale), "qkv_hidden_sizes": sizes}
    _write(writer, site, "Attention", inputs, attributes, output)


def write_multi_head_attention(
    writer: Writer, view: GraphView, site: AttentionSite, operands: tuple[str, str, str], scale: float, output: str
) -> None:
    """`MultiHeadAttention(Q, K, V)` on operands `(B, N, S, H)`, which it wants as `(B, S, N·H)`."""
    sizes = (site.head_dim or 0, site.head_dim or 0, site.value_dim or 0)
    wide = []
    for name, size in zip(operands, sizes, strict=True):
        turned = writer.add("Transpose", [name], "sequence_first", perm=[0, 2, 1, 3])
        wide.append(writer.add("Reshape", [turned, writer.shape(0, 0, (site.heads or 1) * size)], "merged"))
    mask = _mask(writer, view, site, None, operands)
    _write(
        writer,
        site,
        "MultiHeadAttention",
        [*wide, "", "", mask],
        {"num_heads": site.heads, "scale": float(scale)},
        output,
    )


def _mask(
    writer: Writer,
    view: GraphView,
    site: AttentionSite,
    group: Group | None,
    operands: tuple[str, str, str] | None = None,
) -> str:
    """The float mask as `(1 or B, 1 or N, S, L)`; "" if there is none."""
    if not site.masks:
        return ""
    term = site.masks[0]
    assert term.mask is not None
    if operands is not None:
        lengths = [writer.add("Shape", [name], "length", start=2, end=3) for name in operands[:2]]
    else:
        assert group is not None
        lengths = [writer.add("Shape", [group.source.name], "length", start=1, end=2)] * 2
    mask = expanded_mask(writer, view, site, term, lengths)
    missing = 4 - max(view.rank(term.mask) or 0, 2)
    return writer.add("Unsqueeze", [mask, writer.shape(*range(missing))], "mask_axes") if missing else mask


def _write(
    writer: Writer, site: AttentionSite, op: str, inputs: list[str], attributes: Mapping[str, object], output: str
) -> None:
    while inputs and not inputs[-1]:
        inputs.pop()
    made = writer.add(op, inputs, "attention", name=writer.site_name(), domain=MICROSOFT, attributes=attributes)
    split = writer.add("Reshape", [made, writer.shape(0, 0, site.heads or 1, site.value_dim or 0)], "attention_heads")
    writer.add("Transpose", [split], "attention", output=output, perm=[0, 2, 1, 3])
