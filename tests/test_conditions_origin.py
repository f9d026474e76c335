"""Which layer Q comes from, and which axes are its channels: what is a layer, what leads to it, and what does not."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from checks import assert_same
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net
from onnx import TensorProto, helper

import onnx_attn

BATCH, LENGTH = 3, 6
"""Not as many entries as heads: they are told apart."""
Make = Callable[[Net, str], str]


def plain(net: Net, x: str) -> str:
    return net.split_heads(net.linear(x, CHANNELS))


def site(make: Make, batch: int = BATCH, keys: Make = plain) -> onnx.ModelProto:
    """One site on x `(B, S, WIDTH)` whose Q is made as `(B, N, S, H)`; all heads stand on the batch axis, so that a
    layer alone tells them from its entries."""
    net = Net(opset=18)
    x = net.input("x", batch, LENGTH, WIDTH)
    q, k, v = (net.reshape(each(net, x), -1, LENGTH, HEAD_DIM) for each in (make, keys, plain))
    attended = net.sdpa(q, net.swap(k, 3), v)
    net.output(net.merge_heads(net.reshape(attended, batch, HEADS, LENGTH, HEAD_DIM)), 3)
    return net.model(mine=1)


def read(model: onnx.ModelProto) -> tuple[int | None, str]:
    """Heads, and the projection's kind: "none" where Q comes from no layer. What is fused computes the same."""
    (candidate,) = onnx_attn.inspect(model)["candidates"]
    assert candidate["status"] == "site", candidate
    if all(node.domain != "mine" for node in model.graph.node):
        assert_same(model, onnx_attn.fuse(model).model)
    return candidate["heads"], candidate["projection"]


def annotated(model: onnx.ModelProto, op: str, *shape: int) -> onnx.ModelProto:
    """With the shape of what the first of these nodes makes, and all others of its domain."""
    nodes = [node for node in model.graph.node if node.op_type == op]
    for node in nodes[:1] + [node for node in nodes[1:] if node.domain]:
        model.graph.value_info.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape))
    return model


def of_layer(net: Net, layer: str) -> str:
    return net.split_heads(net.reshape(layer, -1, LENGTH, CHANNELS))


def turned_weights(net: Net, x: str) -> str:
    return of_layer(net, net.op("Einsum", net.weight(CHANNELS, WIDTH), x, equation="oe,bse->bso"))


def convolution(net: Net, x: str) -> str:
    picture = net.op("Unsqueeze", net.turn(x, 0, 2, 1), net.ints(3))
    made = net.op("Conv", picture, net.weight(CHANNELS, WIDTH, 1, 1), group=1)
    return net.turn(net.reshape(made, 0, HEADS, HEAD_DIM, LENGTH), 0, 1, 3, 2)


def weights_by_head(net: Net, x: str) -> str:
    return net.op("MatMul", net.op("Unsqueeze", x, net.ints(1)), net.weight(HEADS, WIDTH, HEAD_DIM))


def weights_behind_ones(net: Net, x: str) -> str:
    return of_layer(net, net.op("MatMul", x, net.weight(1, WIDTH, CHANNELS)))


def of_a_stored_query(net: Net, x: str) -> str:
    query = net.turn(net.weight(WIDTH, LENGTH), 1, 0)
    return of_layer(net, net.linear(net.op("Unsqueeze", query, net.ints(0)), CHANNELS))


@pytest.mark.parametrize("make", [turned_weights, convolution, weights_by_head, weights_behind_ones])
def test_these_are_layers_and_their_channels_are_heads(make: Make) -> None:
    assert read(site(make)) == (HEADS, "triplet")


def test_queries_that_are_stored_may_go_through_a_layer() -> None:
    assert read(site(of_a_stored_query, batch=1)) == (HEADS, "triplet")


def mixed_rows(net: Net, x: str) -> str:
    return of_layer(net, net.op("MatMul", net.weight(LENGTH, LENGTH), net.linear(x, CHANNELS)))


def mixed_rows_by_gemm(net: Net, x: str) -> str:
    rows = net.reshape(net.linear(x, CHANNELS), LENGTH, CHANNELS)
    return of_layer(net, net.op("Gemm", net.weight(LENGTH, LENGTH), rows))


def stored_picture(net: Net, x: str, op: str) -> str:
    """A convolution of numbers that are stored; the kernel is computed."""
    kernel = net.linear(net.op("ReduceMean", x, net.ints(0, 1), keepdims=0), WIDTH * CHANNELS, bias=False)
    shape = (CHANNELS, WIDTH) if op == "Conv" else (WIDTH, CHANNELS)
    made = net.op(op, net.weight(1, WIDTH, LENGTH, 1), net.reshape(kernel, *shape, 1, 1))
    return net.turn(net.reshape(made, 0, HEADS, HEAD_DIM, LENGTH), 0, 1, 3, 2)


def summed_alone(net: Net, x: str) -> str:
    """Times the sum of all that is stored."""
    q = plain(net, x)
    return net.op("Einsum", q, net.weight(2, 3), equation="bnsh,ck->bnsh")


def of_three(net: Net, x: str) -> str:
    weights = net.weight(WIDTH, CHANNELS), net.weight(CHANNELS)
    return of_layer(net, net.op("Einsum", x, *weights, equation="bse,eo,o->bso"))


@pytest.mark.parametrize(
    "make",
    [
        mixed_rows,
        mixed_rows_by_gemm,
        pytest.param(lambda net, x: stored_picture(net, x, "Conv"), id="stored, Conv"),
        pytest.param(lambda net, x: stored_picture(net, x, "ConvTranspose"), id="stored, ConvTranspose"),
        summed_alone,
        of_three,
    ],
)
def test_these_are_no_layers(make: Make) -> None:
    assert read(site(make, batch=1))[1] == "none"


@pytest.mark.parametrize("op", ["Gemm", "Conv", "MatMul"])
def test_an_operator_of_another_domain_is_no_layer(op: str) -> None:
    """Whatever its attributes hold."""

    def make(net: Net, x: str) -> str:
        return of_layer(net, net.op(op, x, net.weight(WIDTH, CHANNELS), domain="mine", group="a"))

    assert read(annotated(site(make), op, BATCH, LENGTH, CHANNELS))[1] == "none"


@pytest.mark.parametrize("op", ["Conv", "Gemm", "MatMul"])
@pytest.mark.parametrize("known", ["Reshape", "Concat"])
def test_a_layer_on_what_nobody_knows_the_shape_of_is_not_read(op: str, known: str) -> None:
    def make(net: Net, x: str) -> str:
        unknown = net.op("Anything", x, domain="mine")
        weight = net.weight(CHANNELS, WIDTH, 1, 1) if op == "Conv" else net.weight(WIDTH, CHANNELS)
        layer = net.op(op, unknown, weight)
        if known == "Concat":
            return net.split_heads(net.op("Concat", layer, net.input("more", BATCH, 1, CHANNELS), axis=1))
        return net.split_heads(net.op("Reshape", layer, net.ints(BATCH, LENGTH, CHANNELS)))

    assert read(annotated(site(make), known, BATCH, LENGTH, CHANNELS))[1] == "none"


@pytest.mark.parametrize("groups", [HEAD_DIM, 2])
@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_heads_that_are_pooled_on_the_batch_axis_are_still_heads(op: str, groups: int) -> None:
    """As in MViT, with Q alone pooled: K tells which axis is that of heads."""

    def make(net: Net, x: str) -> str:
        q = net.reshape(plain(net, x), -1, 2, 3, HEAD_DIM)
        kernel = net.weight(HEAD_DIM, HEAD_DIM // groups, 3, 3)
        pooled = net.op(op, net.turn(q, 0, 3, 1, 2), kernel, group=groups, pads=[1] * 4)
        return net.reshape(net.turn(pooled, 0, 2, 3, 1), -1, HEADS, LENGTH, HEAD_DIM)

    assert read(site(make)) == (HEADS, "none")


def gate(net: Net, x: str) -> str:
    """One number for each entry of the batch, from a layer of its own."""
    mean = net.op("ReduceMean", x, net.ints(1), keepdims=1)
    return net.op("Unsqueeze", net.op("Sigmoid", net.linear(mean, 1)), net.ints(1))


def doubled(net: Net, x: str) -> str:
    """A sum whose first summand leads nowhere, along 2⁸ ways."""
    value = net.input(f"other_{len(net.inputs)}", BATCH, HEADS, LENGTH, HEAD_DIM)
    for _ in range(8):
        value = net.op("Max", value, net.op("Relu", value))
    return net.op("Add", value, plain(net, x))


def stacked(net: Net, x: str) -> str:
    """Heads that are cut apart and stacked, and then normed."""
    parts = net.op("Split", net.linear(x, CHANNELS), net.ints(HEAD_DIM, HEAD_DIM), outputs=2, axis=-1)
    heads = net.op("Concat", *(net.op("Unsqueeze", part, net.ints(1)) for part in parts), axis=1)
    return net.op("LayerNormalization", heads, net.weight(HEAD_DIM))


def partly_worked_on(net: Net, x: str) -> str:
    first, rest = net.op("Split", plain(net, x), net.ints(8, 16), outputs=2, axis=-1)
    return net.op("Concat", net.op("Mul", first, net.weight(LENGTH, 8)), rest, axis=-1)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda net, x: net.op("Mul", gate(net, x), plain(net, x)), id="gate first"),
        pytest.param(lambda net, x: net.op("Mul", plain(net, x), gate(net, x)), id="gate last"),
        doubled,
        stacked,
    ],
)
def test_a_layer_is_found_behind_what_works_on_each_head(make: Make) -> None:
    assert read(site(make, keys=make)) == (HEADS, "triplet")


def test_a_layer_is_found_behind_what_works_on_some_of_its_channels() -> None:
    assert read(site(partly_worked_on)) == (HEADS, "triplet")
