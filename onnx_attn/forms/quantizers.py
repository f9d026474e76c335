"""Write a quantisation step again, with the very scale and zero point that the graph has for it."""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnx_attn.forms.body import write_quantizer
from onnx_attn.graph.edit import Writer
from onnx_attn.site import Operand
from onnx_attn.views.quantizer import Quantizer


def quantizer_names(writer: Writer, step: Quantizer) -> tuple[str, str]:
    """The names of a step's scale and zero point; the zero that the graph leaves out is written, for it tells the type."""
    if step.zero is not None:
        return step.scale.name, step.zero.name
    zero = np.zeros((), helper.tensor_dtype_to_np_dtype(step.elem_type))
    return step.scale.name, writer.constant(zero, "zero_point")


def write_rounded(writer: Writer, name: str, operand: Operand, role: str, dtype: np.dtype) -> str:
    """An operand from its layer's result, through the quantisation steps and the factors that stand between."""
    for item in operand.rounded:
        if isinstance(item, Quantizer):
            name = write_quantizer(writer, name, quantizer_names(writer, item), role)
        else:
            name = writer.add("Mul", [name, writer.constant(np.asarray(item, dtype), "factor")], f"{role}_scaled")
    return name
