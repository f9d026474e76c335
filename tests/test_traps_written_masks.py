"""Near misses of what our own primitives spell behind and before a softmax: a triangle, a row guard, a division by the sum."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds, same_bytes
from graphs import HEAD_DIM, HEADS, Net
from onnx import TensorProto

import onnx_attn

LENGTH = 5
LOWEST = float(np.finfo(np.float32).min)
TARGET = {"auto": "tensorrt", "primitives": "tensorrt", "attention": "onnx"}
FORMS = tuple(TARGET)


def operands(net: Net, value_dim: int = LENGTH) -> tuple[str, str, str]:
    """As many channels of V as keys, so that what is reduced along a wrong axis fits all the same."""
    q, k = (net.input(name, 2, HEADS, LENGTH, HEAD_DIM) for name in "qk")
    return q, k, net.input("v", 2, HEADS, LENGTH, value_dim)


def triangle(net: Net, kind: str) -> str:
    q, k, v = operands(net)
    scores = net.scaled(net.op("MatMul", q, net.swap(k)))
    sizes = net.op("Concat", *(net.op("Shape", each, start=-2, end=-1) for each in (q, k)), axis=0)
    ones = net.op("Expand", net.const(0.0 if kind == "of zeros" else 1.0), sizes)
    more = [net.const(1, np.int64)] if kind == "shifted" else []
    lower = net.op("Trilu", ones, *more, upper=int(kind == "upper"))
    if kind == "of whole numbers":
        lower = net.op("Sub", net.const(1.0), lower)
    mask = net.op("Cast", lower, to=TensorProto.BOOL)
    fill = net.const({"by ten thousand": -1e4, "by the highest": math.inf}.get(kind, -math.inf))
    sides = (fill, scores) if kind == "turned round" else (scores, fill)
    return net.op("MatMul", net.op("Softmax", net.op("Where", mask, *sides), axis=-1, name="softmax"), v)


TRIANGLES = {
    "plain": True,
    "upper": False,
    "shifted": False,
    "of zeros": False,
    "of whole numbers": False,
    "by ten thousand": False,
    "by the highest": False,
    "turned round": False,
}


@pytest.mark.parametrize("kind", TRIANGLES)
@pytest.mark.parametrize("form", FORMS)
def test_only_a_lower_triangle_of_ones_by_minus_infinity_is_causal(kind: str, form: str) -> None:
    net = Net(opset=23)
    net.output(triangle(net, kind))
    model = net.model()
    inputs = feeds(model)
    inputs["q"] *= 1e5  # Scores as large as what masks them.
    fused = onnx_attn.fuse(model, verify=False, form=form, target=TARGET[form])
    assert_same(model, fused.model, inputs, rtol=1e-4)
    if form == "attention":
        causal = any(each.name == "is_causal" and each.i for node in fused.model.graph.node for each in node.attribute)
        assert causal == TRIANGLES[kind]


def guarded(net: Net, kind: str) -> str:
    q, k, v = operands(net)
    mask, other = (net.input(name, 2, 1, LENGTH, LENGTH) for name in ("mask", "other"))
    scores = net.op("Add", net.scaled(net.op("MatMul", q, net.swap(k))), mask)
    if kind == "of the first of two":
        scores = net.op("Add", scores, other)
    attention = net.op("MatMul", net.op("Softmax", scores, axis=-1, name="softmax"), v)
    axis, keep = -2 if kind == "along queries" else -1, int(kind != "without the axis")
    reduce = {"of the mean": "ReduceMean", "of the least": "ReduceMin"}.get(kind, "ReduceMax")
    of = {"of another mask": other, "of what is blocked": net.op("Neg", mask)}.get(kind, mask)
    peak = net.op(reduce, of, net.ints(axis), keepdims=keep)
    bound = net.const({"by ten thousand": -1e4, "by minus infinity": -math.inf, "by zero": 0.0}.get(kind, LOWEST))
    if kind in ("of less", "of more"):
        rows = net.op("Less" if kind == "of less" else "GreaterOrEqual", peak, bound)
    else:
        rows = net.op("LessOrEqual", peak, bound)
    zero = net.const(1.0 if kind == "with ones" else np.zeros((3, 1, 1, 1, 1)) if kind == "widened" else 0.0)
    if kind == "read before":
        net.output(net.op("Neg", attention))
    if kind == "an output before":
        net.output(attention)
    return net.op("Where", rows, *((attention, zero) if kind == "turned round" else (zero, attention)))


GUARDS = (
    "plain",
    "by minus infinity",
    "by ten thousand",
    "by zero",
    "of less",
    "of more",
    "of the mean",
    "of the least",
    "of another mask",
    "of what is blocked",
    "of the first of two",
    "along queries",
    "without the axis",
    "with ones",
    "widened",
    "turned round",
    "read before",
    "an output before",
)


def hard_rows(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Rows that are blocked by the lowest number, by −inf and by −10⁴ throughout, and a column by each."""
    inputs = feeds(model)
    for name, place in (("mask", 0), ("other", 1)):
        if name in inputs:
            mask = inputs[name]
            mask[0, 0, place], mask[0, 0, place + 1], mask[0, 0, place + 2] = LOWEST, -math.inf, -1e4
            mask[1, 0, :, place], mask[1, 0, place + 1, 1:] = LOWEST, -math.inf
    return inputs


@pytest.mark.parametrize("kind", GUARDS)
@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_cleared_are_those_that_the_graph_clears(kind: str, form: str) -> None:
    net = Net(opset=23)
    net.output(guarded(net, kind), 5 if kind == "widened" else 4)
    model = net.model()
    fused = onnx_attn.fuse(model, verify=False, form=form, target=TARGET[form])
    assert_same(model, fused.model, hard_rows(model))
    # The Attention operator clears rows by itself: it says this guard alone.
    assert fused.report["fused"] == int(kind == "plain" or form != "attention")
    if kind in ("plain", "by minus infinity"):
        again = onnx_attn.fuse(fused.model, verify=False, form=form, target=TARGET[form])
        assert same_bytes(again.model, fused.model)


def divided(net: Net, kind: str) -> str:
    q, k, v = operands(net)
    scores = net.scaled(net.op("MatMul", q, net.swap(k)))
    peak = net.op("ReduceMax", scores, axes=[-2 if kind == "peaks along queries" else -1])
    exponential = net.op("Exp", net.op("Sub", scores, peak))
    other = net.op("Exp", scores) if kind == "exponentials of others" else exponential
    total = net.op("ReduceSum", exponential, net.ints(-2 if kind == "sums along queries" else -1))
    values = net.const(net.rng.standard_normal((LENGTH, LENGTH))) if kind == "stored values" else v
    made = net.op("MatMul", *((values, other) if kind == "operands exchanged" else (other, values)))
    if kind == "a factor between":
        made = net.op("Mul", made, net.const(2.0))
    if kind in ("product read twice", "exponentials read twice"):
        net.output(net.op("Neg", made if kind == "product read twice" else exponential))
    if kind in ("product is an output", "exponentials are an output"):
        net.output(made if kind == "product is an output" else exponential)
    return net.op("Div", total, made) if kind == "turned round" else net.op("Div", made, total, name="softmax")


DIVISIONS: dict[str, bool] = {
    "plain": True,
    "peaks along queries": False,
    "exponentials of others": False,
    "sums along queries": False,
    "stored values": False,
    "operands exchanged": False,
    "a factor between": False,
    "product read twice": False,
    "exponentials read twice": False,
    "product is an output": False,
    "exponentials are an output": False,
    "turned round": False,
}


@pytest.mark.parametrize("kind", DIVISIONS)
def test_values_divided_by_the_sum_of_exponentials_are_attention_in_one_way_only(kind: str) -> None:
    net = Net()
    net.output(divided(net, kind))
    model = net.model()
    fused = onnx_attn.fuse(model, verify=False)
    assert_same(model, fused.model)
    assert fused.report["fused"] == int(DIVISIONS[kind])
