"""Floating-point operations of one operation, from its shapes. A multiplication and an addition are two.

Products are what torch's FlopCounterMode counts of a model (mm, addmm, bmm, baddbmm, convolutions, attention); the rest is
counted beside them as "elementwise". Sizes may be numbers or polynomials in the names of dimensions: formulas multiply and add.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import reduce
from operator import mul
from typing import Any

from onnx import helper

from onnx_attn.counting.flow import Op
from onnx_attn.counting.roles import MOVEMENT

Sizes = Sequence[Any]
"""A shape: of each axis a number, or a polynomial."""

FORMULAS = {
    "MatMul (…, M, K)·(…, K, N)": "2·…·M·K·N; Gemm, MatMulInteger and QLinearMatMul alike",
    "Einsum of two operands": "2·(product of the sizes of all letters)",
    "Conv": "2·(elements of the result)·(input channels / groups)·(elements of the kernel)",
    "ConvTranspose": "2·(elements of the input)·(output channels / groups)·(elements of the kernel)",
    "attention": "2·B·N·S·L·H + 2·B·N·S·L·Hv, as its two products; causal and masked scores are counted too",
    "Softmax, LogSoftmax": "5 an element: maximum, difference, exponential, sum, quotient",
    "LayerNormalization": "7 an element: mean, difference, square, mean, quotient, scale, shift; RMSNormalization 4",
    "reductions": "1 an element of the input",
    "other arithmetic": "1 an element of the result: Add, Mul, Where, Exp, Erf and their like",
    "movement, casts, constants, sizes": "0",
    "from_weights": "products of weights alone, which are known before the model runs: in none of the other figures",
    "If": "the branch that has more; a body of Loop or Scan once",
}
"""As the report states them; B batch, N heads, S queries, L keys, H head size, Hv that of values."""

MATMULS = {"MatMul": 0, "MatMulInteger": 0, "QLinearMatMul": 0}
CONVOLUTIONS = {"Conv": 1, "ConvInteger": 1, "QLinearConv": 3}
"""With the place of their weights."""
PRODUCTS = frozenset({*MATMULS, *CONVOLUTIONS, "Gemm", "Einsum", "ConvTranspose"})
AN_ELEMENT = {
    "Softmax": 5,
    "LogSoftmax": 5,
    "LayerNormalization": 7,
    "InstanceNormalization": 7,
    "GroupNormalization": 7,
    "RMSNormalization": 4,
    "BatchNormalization": 2,
    "Gelu": 5,
}
NOT_COUNTED = frozenset({"LSTM", "GRU", "RNN", "DeformConv", "GridSample", "Attention", "LinearAttention"})
"""Of which the report says that they are not in its numbers."""
NOTHING = MOVEMENT | frozenset(
    "Constant Shape Size ConstantOfShape Range Dropout Pad ScatterND ScatterElements NonZero TopK Trilu EyeLike OneHot "
    "Cast CastLike If Loop Scan".split()
)


def product_flops(op: Op, shape: Callable[[str], Sizes]) -> Any:
    """Of an operation of PRODUCTS. shape: of a value, by name."""
    if op.kind in MATMULS:
        return 2 * total(shape(op.outputs[0])) * shape(op.inputs[0])[-1]
    if op.kind == "Gemm":
        turned = any(each.name == "transA" and each.i for each in op.node.attribute)
        return 2 * total(shape(op.outputs[0])) * shape(op.inputs[0])[0 if turned else 1]
    if op.kind == "ConvTranspose":
        return 2 * total(shape(op.inputs[0])) * total(shape(op.inputs[1])[1:])
    if op.kind == "Einsum":
        return _einsum(op, shape)
    return 2 * total(shape(op.outputs[0])) * total(shape(op.inputs[CONVOLUTIONS[op.kind]])[1:])


def _einsum(op: Op, shape: Callable[[str], Sizes]) -> Any:
    if len(op.inputs) < 2:
        return 0
    equation = next(helper.get_attribute_value(each) for each in op.node.attribute if each.name == "equation")
    operands = equation.decode().replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, Any] = {}
    for letters, name in zip(operands, op.inputs, strict=True):
        axes, (front, dots, back) = list(shape(name)), letters.partition("...")
        hidden = len(axes) - len(front) - len(back) if dots else 0
        named = [*front, *(f"…{hidden - place}" for place in range(hidden)), *back]
        for letter, size in zip(named, axes, strict=True):
            sizes[letter] = size if sizes.get(letter, 1) == 1 else sizes[letter]
    return 2 * (len(op.inputs) - 1) * total(list(sizes.values()))


def elementwise_flops(op: Op, shape: Callable[[str], Sizes]) -> Any:
    """Of an operation that is none of PRODUCTS."""
    if op.kind in NOTHING or not op.outputs or not op.inputs:
        return 0
    if op.kind.startswith("Reduce") or op.kind in ("CumSum", "ArgMax", "ArgMin", "GlobalAveragePool"):
        return total(shape(op.inputs[0]))
    return AN_ELEMENT.get(op.kind, 1) * total(shape(op.outputs[0]))


def total(sizes: Sizes) -> Any:
    """The product of sizes."""
    return reduce(mul, sizes, 1)
