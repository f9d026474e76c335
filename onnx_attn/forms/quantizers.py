"""Write a quantisation step again, with the very scale and zero point that the graph has for it."""

from __future__ import annotations

import numpy as np
from onnx import helper, numpy_helper

from onnx_attn.forms.body import write_quantizer
from onnx_attn.graph.edit import Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, Operand
from onnx_attn.views.quantizer import Quantizer


def quantizer_names(writer: Writer, step: Quantizer, dtype: np.dtype | None = None) -> tuple[str, str]:
    """The names of a step's scale and zero point; the zero that the graph leaves out is written, for it tells the type. dtype: of
    the scale of a step that the graph does not have."""
    scale, zero = step.scale, step.zero
    narrow = helper.tensor_dtype_to_np_dtype(step.elem_type)
    return (
        scale.name if scale is not None else _added(writer, np.asarray(step.numbers[0], dtype)),
        zero.name if zero is not None else writer.constant(np.asarray(step.numbers[1]).astype(narrow), "zero_point"),
    )


def _added(writer: Writer, scale: np.ndarray) -> str:
    """A scale of the site's own: no other step may share its name, by which the proof leaves the step out."""
    name = writer.names.value(f"{writer.prefix}/{ADDED}")
    writer.initializers[name] = numpy_helper.from_array(scale, name)
    return name


def dtype_of(view: GraphView, operand: Operand) -> np.dtype:
    return np.dtype(helper.tensor_dtype_to_np_dtype(view.elem_type(operand.tensor)))


def added_scales(writer: Writer, site: AttentionSite) -> tuple[str, ...]:
    """The names of the scales that were written for steps that the graph does not have."""
    added = any(step.scale is None for step in site.quantizers)
    return tuple(name for name in writer.initializers if ADDED in name) if added else ()


ADDED = "added_scale"


def write_rounded(writer: Writer, name: str, operand: Operand, role: str, dtype: np.dtype) -> str:
    """An operand from its layer's result, through the quantisation steps and the factors that stand between."""
    for item in operand.rounded:
        if isinstance(item, Quantizer):
            name = write_quantizer(writer, name, quantizer_names(writer, item), role)
        else:
            name = writer.add("Mul", [name, writer.constant(np.asarray(item, dtype), "factor")], f"{role}_scaled")
    return name
