"""Write the two ends of exact algebra: the LayerNorm that carries a constant, and the out-projection that takes V's bias."""

from __future__ import annotations

import numpy as np
from onnx import helper

from onnx_attn.algebra.constant_channel import ConstantChannel, whole_bias
from onnx_attn.algebra.value_bias import OutProjection
from onnx_attn.forms.again import copied, write_again, write_shapes_again
from onnx_attn.forms.in_proj import array, dtype_of
from onnx_attn.graph.edit import Splice, Writer
from onnx_attn.graph.rounding import Exact
from onnx_attn.graph.view import GraphView


def write_constant_channel(
    writer: Writer, view: GraphView, constant: ConstantChannel, channel: int, renamed: dict[str, str]
) -> list[Splice]:
    """The LayerNorm with γ = 1, β = 0 but γ_c = 0, β_c = 1, and its rows on their way to the projection."""
    gamma_tensor, *rest = [tensor for tensor in constant.norm.inputs[1:] if tensor.name]
    dtype = array(view, gamma_tensor).dtype
    width = array(view, gamma_tensor).size
    gamma, beta = np.ones(width, dtype), np.zeros(width, rest[0].dtype if rest else dtype)
    gamma[channel], beta[channel] = 0.0, 1.0
    norm, *path = write_again(writer, view, (constant.norm, *constant.path), renamed)
    node = norm.nodes[0]
    del node.input[1:]
    node.input.extend([writer.constant(gamma, "norm_weight"), writer.constant(beta, "norm_bias")])
    return [norm, *path, *write_shapes_again(view, constant.shapes, renamed)]


def write_out_projection(
    writer: Writer, view: GraphView, out: OutProjection, value_bias: Exact, renamed: dict[str, str]
) -> list[Splice]:
    """What follows P·V, on P·V without V's bias, and the out-projection with b_out + b·W_out.

    value_bias: all that V's layer added, by its channels `(C,)`. renamed: has P·V's new name.
    """
    layer = out.layer
    splices = write_again(writer, view, [step.node for step in out.steps], renamed)
    splices += write_shapes_again(view, out.shapes, renamed)

    def exact() -> np.ndarray:
        weight = array(view, layer.weight)
        own = np.zeros(layer.channels)
        if layer.bias is not None:
            own = own + array(view, layer.bias).astype(np.float64).reshape(-1) * layer.beta
        return whole_bias(own, weight.T if layer.transposed else weight, value_bias()[out.channels] * layer.alpha)

    bias = writer.computed_weight(exact, dtype_of(view, layer.weight), "out_proj_bias")
    if layer.product.op == "Gemm":
        node = copied(view, layer.product, renamed)
        node.input[:] = [*node.input[:2], bias]
        kept = [attribute for attribute in node.attribute if attribute.name != "beta"]
        del node.attribute[:]
        node.attribute.extend(kept)
        return [*splices, Splice(view.position(layer.product), (node,), (layer.output.name,))]
    splices += write_again(writer, view, [layer.product], renamed)
    product = renamed[layer.product.outputs[0].name]
    end = view.producer(layer.output)
    assert end is not None
    name = writer.names.claim(end.name) if end is not layer.product else writer.names.node(f"{writer.prefix}/out_proj")
    add = helper.make_node("Add", [product, bias], [layer.output.name], name=name)
    if end is layer.product:
        return [*splices[:-1], Splice(view.position(end), (*splices[-1].nodes, add), (layer.output.name,))]
    return [*splices, Splice(view.position(end), (add,), (layer.output.name,))]
