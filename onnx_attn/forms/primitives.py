"""Form `primitives`: the normalised body written straight into the main graph, for targets without local functions."""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnx_attn.forms.body import AXES_OPSET, FIXED, Spelling, numbers, signature, write_body
from onnx_attn.forms.mask import write_mask
from onnx_attn.forms.quantizers import dtype_of, quantizer_names
from onnx_attn.forms.triangle import stored_triangle
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite


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
) -> str:
    """Append the body to `writer`, on operands of type `operand_type`; the Softmax keeps the site's name. Returns the name of
    the constant that holds the scale, "" where it is 1."""
    values = FIXED | numbers(view, site, scale)

    def number(role: str, dtype: int) -> str:
        return writer.constant(np.asarray(values[role], helper.tensor_dtype_to_np_dtype(dtype or operand_type)), role)

    factor = number("scale", 0) if scale != 1.0 else ""

    def scalar(role: str, like: str, dtype: int) -> str:
        return factor if role == "scale" else number(role, dtype)

    masks = [write_mask(writer, view, mask) for mask in site.mask_tensors]
    triangle = stored_triangle(writer, view, site)

    def last_axis() -> str:
        return writer.shape(-1) if view.opset >= AXES_OPSET else ""

    spelling = Spelling(writer, scalar, last_axis, triangle, writer.site_name(), output)
    quantizers = [quantizer_names(writer, step, dtype_of(view, site.value)) for step in site.quantizers]
    write_body(spelling, site.terms, signature(view, site, rank, scaled_scores), operands, masks, quantizers)
    return factor
