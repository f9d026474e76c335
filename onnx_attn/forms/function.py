"""Form `function`: one call of a local function a site, whose body is the normalised primitives.

A viewer shows one attention node; onnx.checker, ONNX Runtime and TensorRT (9 and later) inline it. The body is written at
the model's own opset, so nothing has to be raised. One function a signature: TensorRT's parser knows neither optional
function inputs nor overloads.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import AttributeProto as Attribute
from onnx import helper, numpy_helper

from onnx_attn.domain import ATTENTION, DOMAIN
from onnx_attn.forms.body import AXES_OPSET, FIXED, Signature, Spelling, numbers, signature, write_body
from onnx_attn.forms.mask import write_mask
from onnx_attn.forms.quantizers import dtype_of, quantizer_names
from onnx_attn.forms.triangle import stored_triangle
from onnx_attn.graph.edit import Names, Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.site import AttentionSite, ScoreTerm


def write_function_call(
    writer: Writer,
    site: AttentionSite,
    operands: tuple[str, str, str],
    scale: float,
    rank: int,
    output: str,
    view: GraphView,
    scaled_scores: bool = False,
) -> onnx.FunctionProto:
    """Append the call to `writer` and return the function that it calls."""
    triangle = stored_triangle(writer, view, site)
    if triangle:
        blocked = ScoreTerm("where", gs.Variable(triangle), -math.inf)
        site = replace(site, terms=tuple(blocked if term.kind == "causal" else term for term in site.terms))
    form = signature(view, site, rank, scaled_scores)
    attributes = {role: _attribute(float(number), form) for role, number in numbers(view, site, scale).items()}
    function = _function(writer.names, form, site.terms, list(attributes), view.opset)
    masks = [triangle if mask.name == triangle else write_mask(writer, view, mask) for mask in site.mask_tensors]
    steps = [quantizer_names(writer, step, dtype_of(view, site.value)) for step in site.quantizers]
    writer.add(
        function.name,
        [*operands, *masks, *(name for step in steps for name in step)],
        "attention",
        output=output,
        name=writer.site_name(),
        domain=DOMAIN,
        attributes=attributes,
    )
    return function


def _attribute(number: float, form: Signature) -> float | onnx.TensorProto:
    """As the call carries it: ONNX's floats are of single precision."""
    return numpy_helper.from_array(np.asarray(number)) if form.double else number


def _function(
    names: Names, form: Signature, terms: tuple[ScoreTerm, ...], attributes: list[str], opset: int
) -> onnx.FunctionProto:
    """The function for a signature: made once, under a name that the model has for nothing else."""
    wanted = ATTENTION + form.suffix
    if wanted in names.functions:
        return names.functions[wanted]
    return names.function(attention_function(wanted, form, terms, attributes, opset))


def attention_function(
    name: str, form: Signature, terms: tuple[ScoreTerm, ...], attributes: list[str], opset: int
) -> onnx.FunctionProto:
    """`name(query, key, value, mask…; scale, fill…, lowest) -> attention` at `opset`."""
    writer = Writer(PlainNames(), "")

    def scalar(role: str, like: str, dtype: int) -> str:
        if role in FIXED:
            writer.nodes.append(helper.make_node("Constant", [], [f"{role}_float"], value_float=FIXED[role]))
        else:
            constant = helper.make_node("Constant", [], [f"{role}_float"])
            name, kind = ("value", Attribute.TENSOR) if form.double else ("value_float", Attribute.FLOAT)
            constant.attribute.append(Attribute(name=name, ref_attr_name=role, type=kind))
            writer.nodes.append(constant)
        return writer.add("CastLike", [f"{role}_float", like], role)

    masks = [f"mask_{n}" for n, term in enumerate(terms) if term.mask is not None]
    masks += ["cleared"] if form.cleared is not None else []
    rounded = [f"scores_{n}" for n, term in enumerate(terms) if term.kind == "quantize"]
    rounded += ["probabilities"] if form.quantized else []
    quantizers = [(f"{what}_scale", f"{what}_zero") for what in rounded]

    def last_axis() -> str:
        return writer.add("Constant", [], "last_axis", value_ints=[-1]) if opset >= AXES_OPSET else ""

    spelling = Spelling(writer, scalar, last_axis, softmax_name="Softmax", output="attention")
    write_body(spelling, terms, form, ("query", "key", "value"), list(masks), quantizers)
    return helper.make_function(
        DOMAIN,
        name,
        ["query", "key", "value", *masks, *(name for step in quantizers for name in step)],
        ["attention"],
        writer.nodes,
        [helper.make_opsetid("", opset)],
        attributes=attributes,
        doc_string="softmax(scale * query @ key^T, masks) @ value; query (.., S, H), key (.., S, H), value (.., S, H)",
    )


class PlainNames(Names):
    """Names inside a function body, which has a scope of its own: the hints as they are."""

    def __init__(self) -> None:
        super().__init__(onnx.ModelProto())

    def value(self, hint: str) -> str:
        return super().value(hint.lstrip("/"))

    def node(self, hint: str) -> str:
        return super().node(hint.lstrip("/"))
