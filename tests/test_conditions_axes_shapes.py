"""Graphs that say shapes which cannot be, or that nobody can tell: refused by a code, or read as far as they are known.

A value's shape is taken from its annotation where inference gives none, since a node cannot run or an input of it is not known.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from checks import assert_refused, assert_same, feeds
from graphs import HEAD_DIM, HEADS, Net, heads_in
from onnx import TensorProto, helper

import onnx_attn

ROWS = (2, HEADS, 5, 5)


def annotated(net: Net, *values: tuple[str, tuple[int, ...] | None]) -> onnx.ModelProto:
    """The model, with shapes for some of its values."""
    model = net.model(my_company=1)
    for name, shape in values:
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return model


def with_step(where: str, step: Callable[[Net, str], str], shape: tuple[int, ...]) -> onnx.ModelProto:
    """A site with a step behind the scale or behind the softmax, which is said to give this shape."""
    net, made = Net(18), list[str]()
    q, kt, v = heads_in(net)
    v = net.reshape(v, 2 * HEADS, 5, HEAD_DIM) if len(shape) == 3 else v

    def stepped(value: str) -> str:
        made.append(step(net, value))
        return made[0]

    if where == "scores":
        result = net.sdpa(q, kt, v, lambda value: stepped(net.scaled(value)))
    else:
        result = net.sdpa(q, kt, v, probabilities=stepped)
    net.output(net.op("Identity", result))
    return annotated(net, (made[0], shape))


@pytest.mark.parametrize("where", ["scores", "probabilities"])
@pytest.mark.parametrize("perm", [(1, 0), (0, 1, 2, 3, 4), (0, 0, 1, 2)])
def test_a_transpose_of_other_axes_than_there_are_is_no_movement(perm: tuple[int, ...], where: str) -> None:
    assert_refused(with_step(where, lambda net, value: net.turn(value, *perm), ROWS), f"{where}-changed")


def dropout(net: Net, value: str) -> str:
    """One that does nothing, with a ratio that nothing is known of."""
    ratio = net.op("Smudge", net.const(0.5), domain="my.company")
    found: str = net.op("Dropout", value, ratio, net.const(False, bool))
    return found


@pytest.mark.parametrize("where", ["scores", "probabilities"])
@pytest.mark.parametrize("shape", [(2 * HEADS, 5, 5), (1, *ROWS)])
def test_a_dropout_that_is_said_to_change_the_rank_contradicts_itself(shape: tuple[int, ...], where: str) -> None:
    assert_refused(with_step(where, dropout, shape), "shape-unknown")


def test_scores_that_are_said_to_have_an_axis_more_until_behind_the_softmax_contradict_themselves() -> None:
    net, made = Net(18), list[str]()
    q, kt, v = heads_in(net)

    def scores(value: str) -> str:
        made.append(dropout(net, net.scaled(value)))
        return made[0]

    result = net.sdpa(q, kt, v, scores, lambda found: net.reshape(found, *ROWS))
    net.output(net.op("Identity", result))
    assert_refused(annotated(net, (made[0], (1, *ROWS))), "shape-unknown")


@pytest.mark.parametrize("where", ["scores", "probabilities"])
def test_a_mask_of_more_axes_than_what_it_is_said_to_make(where: str) -> None:
    def masked(net: Net, value: str) -> str:
        mask = net.input("mask", 7, 1, 2, 4, 5, dtype=bool if where == "probabilities" else None)
        fill = net.const(0.0)
        found: str = net.op("Add", value, mask) if where == "scores" else net.op("Where", mask, value, fill)
        return found

    assert_refused(with_step(where, masked, ROWS), "mask-shape")


@pytest.mark.parametrize("said", [(1, *ROWS), None])
def test_a_product_that_is_said_to_have_an_axis_more_or_no_shape(said: tuple[int, ...] | None) -> None:
    """Q and K have heads of other sizes, of which no product can be made."""
    net = Net(18)
    q, k, v = (net.input(role, 2, HEADS, 5, 23 if role == "k" else HEAD_DIM) for role in "qkv")
    scores = net.op("MatMul", q, net.swap(k))
    wide = net.op("Cast", scores, to=TensorProto.DOUBLE)
    narrow = net.op("Cast", wide, to=TensorProto.FLOAT)
    found = net.op("Softmax", narrow, axis=-1, name="softmax")
    net.output(net.op("Identity", net.op("MatMul", found, v)))
    assert_refused(annotated(net, (scores, said), (narrow, ROWS), (found, ROWS)), "shape-unknown")


@pytest.mark.parametrize("role", "qkv")
def test_an_operand_whose_source_has_no_known_shape_is_read_from_itself(role: str) -> None:
    """What a Neg reads has the shape that the model is told when it runs."""
    net, shape = Net(18), (2, HEADS, 5, HEAD_DIM)
    operands = {name: net.input(name, *shape) for name in "qkv"}
    turned = net.op("Neg", net.op("Reshape", operands[role], net.input("told", "rank", dtype=np.int64)))
    operands[role] = turned
    net.output(net.sdpa(operands["q"], net.swap(operands["k"]), operands["v"]))
    model = annotated(net, (turned, shape))
    result = onnx_attn.fuse(model, verify=False)
    assert result.report["fused"] == 1
    assert_same(model, result.model, feeds(model, {"rank": 4}) | {"told": np.asarray(shape)})


def test_sites_of_no_heads_have_none() -> None:
    net = Net()
    q, k, v = (net.input(role, 2, 0, 5, HEAD_DIM) for role in "qkv")
    net.output(net.sdpa(q, net.swap(k), v))
    (candidate,) = onnx_attn.inspect(net.model())["candidates"]
    assert (candidate["heads"], candidate["kv_heads"]) == (0, 0)
