"""Activations that ONNX Runtime's optimizers fuse, in plain nodes.

Source: https://github.com/microsoft/onnxruntime/blob/main/docs/ContribOperators.md, each under its name.
"""

from __future__ import annotations

import math

from onnx_attn.operators.microsoft.call import Call, NotSpelled


def gelu(call: Call) -> None:
    """x·½·(1 + erf(x/√2))."""
    _gelu(call, call.needed(0, "an input"))


def bias_gelu(call: Call) -> None:
    """Gelu of input + bias."""
    _gelu(call, call.op("Add", call.needed(0, "an input"), call.needed(1, "a bias"), hint="biased"))


def _gelu(call: Call, x: str) -> None:
    if call.opset >= 20:
        call.last("Gelu", x)
        return
    elem_type = call.float_type
    inner = call.op("Erf", call.op("Div", x, call.number(math.sqrt(2.0), elem_type)))
    half = call.op("Mul", x, call.op("Add", inner, call.number(1.0, elem_type)))
    call.last("Mul", half, call.number(0.5, elem_type))


def fast_gelu(call: Call) -> None:
    """x·½·(1 + tanh(√(2/π)·(x + 0.044715·x³))), of input + bias where there is one."""
    x = call.needed(0, "an input")
    if call.input(1):
        x = call.op("Add", x, call.input(1), hint="biased")
    if call.opset >= 20:
        call.last("Gelu", x, approximate="tanh")
        return
    elem_type = call.float_type
    cubed = call.op("Mul", call.op("Mul", x, x), x, hint="cubed")
    inner = call.op("Add", x, call.op("Mul", cubed, call.number(0.044715, elem_type)))
    tanh = call.op("Tanh", call.op("Mul", inner, call.number(math.sqrt(2.0 / math.pi), elem_type)))
    half = call.op("Mul", x, call.op("Add", tanh, call.number(1.0, elem_type)))
    call.last("Mul", half, call.number(0.5, elem_type))


def quick_gelu(call: Call) -> None:
    """x·sigmoid(alpha·x)."""
    x, alpha = call.needed(0, "an input"), float(call.attribute("alpha", 1.702))
    inner = x if alpha == 1.0 else call.op("Mul", x, call.number(alpha, call.float_type))
    call.last("Mul", x, call.op("Sigmoid", inner))


def fused_mat_mul(call: Call) -> None:
    """alpha·A·B, either turned on its last two axes before."""
    if call.attribute("transBatchA", 0) or call.attribute("transBatchB", 0):
        raise NotSpelled("batches that are turned into the product")
    factors = []
    for place, side in enumerate("AB"):
        name, rank = call.needed(place, f"factor {side}"), call.rank(place)
        if call.attribute(f"trans{side}", 0) and rank > 1:
            name = call.turn(name, *range(rank - 2), rank - 1, rank - 2)
        factors.append(name)
    alpha = float(call.attribute("alpha", 1.0))
    if alpha == 1.0:
        call.last("MatMul", *factors)
    else:
        call.last("Mul", call.op("MatMul", *factors), call.number(alpha, call.float_type))
