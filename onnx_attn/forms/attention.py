"""Form `attention`: the standard `Attention` operator (opset 23 on), one node a site.

Source: onnx operator specification, Attention-23: Y = softmax(scale·Q·Kᵀ + mask)·V on `(B, N, S, H)`, K and V perhaps with fewer
heads. A row that is masked throughout answers 0, where softmax answers NaN or the mean of V: a site is written so only where
it answers 0 too, or where no row can be masked throughout. The scale is always written. A mask with one row for all queries
is expanded: ONNX Runtime 1.31.1 rejects it on the CPU.
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_attn.forms.moves import written
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, ScoreTerm
from onnx_attn.views.arrange import real, rearranged
from onnx_attn.views.folding import constant_value
from onnx_attn.views.trace import lowest

Refused = tuple[str, str]
"""A code of the table of codes, and in words what it is about."""


def attention_refused(view: GraphView, site: AttentionSite, island: int = 0) -> Refused | None:
    """Why a site cannot be said with the operator, in an island of this type if it is not 0; None if it can."""
    query_type = view.elem_type(site.query.tensor)
    if not island and view.elem_type(site.value.tensor) != query_type:
        return "type-not-supported", "V has another type than Q and K"
    if any(term.kind == "cast" and term.dtype != query_type for term in site.terms):
        return "type-not-supported", "the softmax runs in another type than the operands'"
    if any(dtype != query_type for dtype in site.probabilities_dtypes):
        return "type-not-supported", "the probabilities are cast to another type"
    if (view.rank(site.query.tensor) or 0) > 4:
        return "shape-unknown", "Q, K and V have more than four axes"
    if site.cleared is not None:
        return "form-not-taken", "probabilities are cleared behind the softmax"
    if site.quantizers:
        return "form-not-taken", "the scores or the probabilities are quantised"
    if heads_of_values_differ(view, site):
        return "form-not-taken", "V has other heads than K"
    others = {term.kind for term in site.terms} & {"scale", "softcap", "floor", "factor"}
    if others:
        return "form-not-taken", f"the scores have a {others.pop()} of their own"
    masks = site.masks
    if len(masks) > 1:
        return "mask-shape", "the operator takes one mask"
    if masks and masks[0].kind == "subtract":
        return "mask-shape", "the mask is subtracted"
    return _mask_refused(view, site, masks[0], island or query_type) if masks else None


def heads_of_values_differ(view: GraphView, site: AttentionSite) -> bool:
    """Whether V has another number of heads than K, as where one head of probabilities weighs several of values."""
    key, value = view.shapes(site.key.tensor), view.shapes(site.value.tensor)
    return any(k[-3:-2] != v[-3:-2] for k, v in zip(key or (), value or (), strict=False))


def _mask_refused(view: GraphView, site: AttentionSite, term: ScoreTerm, query_type: int) -> Refused | None:
    mask, least = term.mask, lowest(query_type)
    assert mask is not None
    rank = view.rank(mask)
    if rank is None or rank > 4:
        return "mask-shape", "the mask has more than four axes"
    if term.kind == "add" and view.elem_type(mask) != query_type:
        return "type-not-supported", "the mask has another type than Q"
    if term.kind == "where" and (least is None or term.fill > least):
        return "masked-row-differs", f"masked scores become {term.fill:g}, which is not the lowest number"
    if rests_on_constant(view, site) or site.guard == "row":
        return None
    if site.guard == "nan" and term.kind == "where" and term.fill == -np.inf:
        return None
    return "masked-row-differs", "a mask that is computed when the model runs may block all keys of a query"


def rests_on_constant(view: GraphView, site: AttentionSite) -> bool:
    """Whether the mask's numbers are known, and leave every query a key."""
    if not site.masks or site.causal:
        return False
    term = site.masks[0]
    assert term.mask is not None
    value = constant_value(view, real(view, term.mask))
    if value is None or not value.ndim:
        return False
    value = rearranged(view, value, term.mask)
    least = lowest(view.elem_type(term.mask))
    attended = (value == term.keep_when) if term.kind == "where" else value > (least if least is not None else np.inf)
    return bool(attended.any(axis=-1).all())


def write_attention(
    writer: Writer,
    view: GraphView,
    site: AttentionSite,
    operands: tuple[str, str, str],
    scale: float,
    rank: int,
    output: str,
    added: int = 0,
) -> None:
    """Append the operator and what it needs: four axes, and a mask with a row for each query; a boolean one as numbers of the
    type `added`, if that is not 0."""
    before = writer.shape(*range(4 - rank))
    names = [writer.add("Unsqueeze", [name, before], "batch") if rank < 4 else name for name in operands]
    if site.masks:
        names.append(_write_mask(writer, view, site, site.masks[0], operands, added))
    result = output if rank == 4 else writer.names.value(f"{site.name}/attention_batch")
    attributes = {"scale": float(scale)} | ({"is_causal": 1} if site.causal else {})
    writer.add("Attention", names, "attention", output=result, name=writer.site_name(), attributes=attributes)
    if rank < 4:
        writer.add("Squeeze", [result, before], "attention", output=output)


def _write_mask(
    writer: Writer, view: GraphView, site: AttentionSite, term: ScoreTerm, operands: tuple[str, str, str], added: int
) -> str:
    """The mask with four axes, and with a row for each query."""
    assert term.mask is not None
    lengths = [writer.add("Shape", [name], "length", start=-2, end=-1) for name in operands[:2]]
    mask = expanded_mask(writer, view, site, term, lengths)
    if term.kind == "where" and added:
        mask = _as_numbers(writer, mask, term.keep_when, added)
    elif term.kind == "where" and not term.keep_when:
        mask = writer.add("Not", [mask], "attended")
    missing = 4 - max(view.rank(term.mask) or 0, 2)
    return writer.add("Unsqueeze", [mask, writer.shape(*range(missing))], "mask_axes") if missing else mask


def _as_numbers(writer: Writer, mask: str, keep_when: bool, dtype: int) -> str:
    """What a boolean mask adds to the scores. Chosen in float32, and cast: between numbers of the scores' own type TensorRT for
    RTX 1.7.1 sees through the choice, and counts the mask row by row in eight kernels of its own."""
    numbers = [
        writer.constant(np.asarray(value, np.float32), role) for value, role in ((0.0, "zero"), (-np.inf, "blocked"))
    ]
    chosen = writer.add("Where", [mask, *(numbers if keep_when else numbers[::-1])], "mask_numbers")
    return writer.add("Cast", [chosen], "mask_added", to=dtype)


def expanded_mask(writer: Writer, view: GraphView, site: AttentionSite, term: ScoreTerm, lengths: list[str]) -> str:
    """The mask with two axes at least, and a row for each query; `lengths`: names of the numbers of queries and keys."""
    assert term.mask is not None
    if _has_rows(view, term.mask, site):
        return written(writer, view, term.mask, "mask")
    mask = written(writer, view, term.mask, "mask")
    return writer.add("Expand", [mask, writer.add("Concat", lengths, "lengths", axis=0)], "mask_rows")


def _has_rows(view: GraphView, mask: gs.Tensor, site: AttentionSite) -> bool:
    """Whether the mask has two axes or more, and a row for each query."""
    shapes, queries = view.shapes(mask), view.shapes(site.query.tensor)
    if shapes is None or queries is None:
        return False
    return all(len(shape) >= 2 and shape[-2] == query[-2] for shape, query in zip(shapes, queries, strict=True))


def is_operator(node: onnx.NodeProto) -> bool:
    return node.op_type == "Attention" and node.domain in ("", "ai.onnx")
