"""Form `primitives`: the normalised body written straight into the main graph, for targets without local functions."""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnx_attn.forms.body import AXES_OPSET, FIXED, Spelling, numbers, signature, write_body
from onnx_attn.forms.moves import written
from onnx_attn.forms.quantizers import dtype_of, quantizer_names
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite

MOST_ELEMENTS = 2**22
"""Of a causal mask that is stored: that of 2048 queries and keys."""


def write_primitives(
    writer: Writer,
    view: GraphView,
    site: AttentionSite,
    operands: tuple[str, str, str],
    scale: float,
    rank: int,
    output: str,
    operand_type: int,
    scaled_scores: bool = False,
) -> float:
    """Append the body to `writer`, on operands of type `operand_type`; the Softmax keeps the site's name. Returns by how much,
    relatively, that type rounds the scale: 0 where it holds it."""
    values = FIXED | numbers(view, site, scale)

    def scalar(role: str, like: str, dtype: int) -> str:
        if role == "scale" and scale == 1.0:
            return ""
        return writer.constant(np.asarray(values[role], helper.tensor_dtype_to_np_dtype(dtype or operand_type)), role)

    masks = [written(writer, view, mask, "mask") for mask in site.mask_tensors]
    triangle = _triangle(writer, view, site) if site.causal else ""

    def last_axis() -> str:
        return writer.shape(-1) if view.opset >= AXES_OPSET else ""

    spelling = Spelling(writer, scalar, last_axis, triangle, writer.site_name(), output)
    quantizers = [quantizer_names(writer, step, dtype_of(view, site.value)) for step in site.quantizers]
    write_body(spelling, site.terms, signature(view, site, rank, scaled_scores), operands, masks, quantizers)
    stored = float(np.asarray(scale, helper.tensor_dtype_to_np_dtype(operand_type)))
    return abs(stored - scale) / abs(scale) if scale else 0.0


def _triangle(writer: Writer, view: GraphView, site: AttentionSite) -> str:
    """The causal mask `(Sq, Sk)` as it is, true where key ≤ query; "" where lengths vary, or are too large."""
    lengths = view.static(site.query.tensor, -2), view.static(site.key.tensor, -2)
    if lengths[0] is None or lengths[1] is None or lengths[0] * lengths[1] > MOST_ELEMENTS:
        return ""
    return writer.constant(np.tri(lengths[0], lengths[1], dtype=bool), "causal_mask")
