"""What may stand between a LayerNorm that carries a constant and the projection: one fact for a condition of
`algebra/constant_channel.py`, without a proof to fall back on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same
from graphs import CHANNELS, HEAD_DIM, WIDTH, Net
from onnx import TensorProto, helper, numpy_helper
from pre_norm import ALL, PreNorm, assert_constant_channel

import onnx_attn
from onnx_attn.algebra.constant_channel import MOST_NODES
from onnx_attn.graph import rounding

CONSTANT = "constant-channel"
ORDER = (4, 2, 0, 1, 3)


def written(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The fused model, unproved, and its one candidate."""
    result = onnx_attn.fuse(model, verify=False)
    (candidate,) = result.report["candidates"]
    assert candidate["status"] == "site", candidate["reason"]
    return result.model, candidate


def assert_carries(model: onnx.ModelProto) -> onnx.ModelProto:
    fused, candidate = written(model)
    assert candidate["algebra"] == ALL, candidate["algebra_left"]
    assert_constant_channel(fused)
    assert_same(model, fused)
    return fused


def assert_stays(model: onnx.ModelProto, because: str, runs: bool = True) -> None:
    fused, candidate = written(model)
    assert CONSTANT not in candidate["algebra"]
    assert because in candidate["algebra_left"][CONSTANT], candidate["algebra_left"]
    if runs:
        assert_same(model, fused)


def reordered(net: Net, value: str) -> str:
    """Rows in another order, by a node that is no part of a linear layer."""
    return net.op("Gather", value, net.ints(*ORDER), axis=1)


@pytest.mark.parametrize("more", [0, 1])
def test_so_many_nodes_may_stand_between_and_no_more(more: int) -> None:
    block = PreNorm()
    value = block.norm()
    for _ in range(MOST_NODES + more):
        value = reordered(block.net, value)
    model = block.model(block.block(value))
    if more:
        assert_stays(model, "does not come from a LayerNorm alone")
    else:
        assert_carries(model)


BESIDE: dict[str, Callable[[Net], str]] = {
    "computed": lambda net: net.op("Relu", net.input("memory", 2, 3, WIDTH)),
    "projected": lambda net: net.linear(net.input("memory", 2, 3, WIDTH), WIDTH),
    "of a Constant node": lambda net: net.op(
        "Constant", value=numpy_helper.from_array(np.ones((2, 1, WIDTH), np.float32))
    ),
    "random": lambda net: net.op("Mul", net.op("RandomNormal", shape=[2, 3, WIDTH]), net.const(0.0)),
}


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("rows", BESIDE)
def test_rows_of_the_norm_beside_others(rows: str, first: bool) -> None:
    """The constant would be missing in the others."""
    block = PreNorm()
    both = [BESIDE[rows](block.net), block.norm()]
    joined = block.net.op("Concat", *(both if first else both[::-1]), axis=1)
    assert_stays(block.model(block.block(joined)), "")


def test_random_rows_come_from_no_norm() -> None:
    """A node without inputs makes the source of K and V."""
    block = PreNorm()
    net = block.net
    rows = net.op("RandomNormal", shape=[2, 7, WIDTH])
    k, v = (net.split_heads(block.layer(rows)) for _ in range(2))
    model = block.model(block.out(block.attend(net.split_heads(block.layer(block.x)), k, v)))
    assert_stays(model, "LayerNorm", runs=False)


PASSES: dict[str, Callable[[Net, str], str]] = {
    "Identity": lambda net, y: net.op("Identity", y),
    "Dropout": lambda net, y: net.op("Dropout", y),
    "cast to its own type": lambda net, y: net.op("Cast", y, to=TensorProto.FLOAT),
    "sum with zeros": lambda net, y: net.op("Add", net.const(np.zeros((1, 1, WIDTH))), y),
    "cast": lambda net, y: net.op("Cast", net.op("Cast", y, to=TensorProto.DOUBLE), to=TensorProto.FLOAT),
}


@pytest.mark.parametrize("step", PASSES)
def test_what_changes_nothing_may_stand_further_up(step: str) -> None:
    block = PreNorm()
    assert_carries(block.model(block.block(reordered(block.net, PASSES[step](block.net, block.norm())))))


def test_whole_numbers_in_between_are_no_rows_of_the_norm() -> None:
    block = PreNorm()
    net = block.net
    whole = net.op("Cast", reordered(net, net.op("Cast", block.norm(), to=TensorProto.INT32)), to=TensorProto.FLOAT)
    assert_stays(block.model(block.block(whole)), "Cast")


def test_a_transpose_without_perm_turns_all_axes_round() -> None:
    """Channels of the norm are tokens of the attention."""
    net = Net()
    rows = net.op("LayerNormalization", net.input("x", WIDTH, 5), net.weight(5), net.weight(5))
    turned = net.op("Transpose", rows)
    q, k, v = (net.linear(turned, HEAD_DIM) for _ in range(3))
    net.output(net.linear(net.sdpa(q, net.swap(k, 2), v), WIDTH, width=HEAD_DIM), 2)
    assert_stays(net.model(), "Transpose")


def test_a_transpose_of_what_nobody_knows_the_rank_of() -> None:
    """Of its result, annotated, the shape is known."""
    block = PreNorm()
    net = block.net
    turned = net.turn(net.op("Theirs", block.x, domain="my.company"), 1, 0, 2)
    model = block.model(block.block(net.op("Gather", turned, net.ints(1, 0), axis=1)))
    model.opset_import.add(domain="my.company", version=1)
    model.graph.value_info.append(helper.make_tensor_value_info(turned, TensorProto.FLOAT, [5, 2, WIDTH]))
    assert_stays(model, "Transpose", runs=False)


def test_a_norm_of_what_nobody_knows_the_rank_of() -> None:
    block = PreNorm()
    rows = block.norm(block.net.op("Theirs", block.x, domain="my.company"))
    model = block.model(block.block(rows))
    model.opset_import.add(domain="my.company", version=1)
    model.graph.value_info.append(helper.make_tensor_value_info(rows, TensorProto.FLOAT, [2, 5, WIDTH]))
    assert_stays(model, "more than one axis", runs=False)


@pytest.mark.parametrize("taken", [True, False])
def test_rows_padded_along_axes_that_are_named(taken: bool) -> None:
    """The fourth input of a Pad names axes, as that of a Slice does: of zeros, no constant is 1."""
    block = PreNorm(opset=18)
    net = block.net
    padded = net.op("Pad", block.norm(), net.ints(0, 1), "", net.ints(1))
    padded = reordered(net, padded) if taken else padded
    assert_stays(block.model(block.block(padded)), "Pad")


def test_rows_back_to_front_in_their_channels_are_others() -> None:
    """The width is the same, and the constant lies in another channel."""
    block = PreNorm()
    net = block.net
    turned = net.op("Slice", block.norm(), net.ints(-1), net.ints(-WIDTH - 1), net.ints(-1), net.ints(-1))
    assert_stays(block.model(block.block(reordered(net, turned))), "Slice")


def test_a_slice_that_leaves_its_axes_out_in_writing() -> None:
    """Then its bounds are of all axes, whatever numbers another node has given away under no name."""
    block = PreNorm()
    net = block.net
    _, number = net.op("Split", net.ints(0, 1), net.ints(1, 1), outputs=2, axis=0)
    net.nodes[-1].output[0] = ""
    net.output(net.op("Cast", number, to=TensorProto.FLOAT), 1)
    bounds = net.ints(0, 0, -1), net.ints(2, 5, -WIDTH - 1)
    turned = net.op("Slice", block.norm(), *bounds, "", net.ints(1, 1, -1))
    assert_stays(block.model(block.block(reordered(net, turned))), "Slice", runs=False)


def test_rows_of_another_width_are_no_rows_of_the_norm() -> None:
    block = PreNorm()
    net = block.net
    halves = net.reshape(block.x, 2, 10, WIDTH // 2)
    rows = net.op("LayerNormalization", halves, net.weight(WIDTH // 2), net.weight(WIDTH // 2))
    assert_stays(block.model(block.block(reordered(net, net.reshape(rows, 2, 5, WIDTH)))), "Reshape")


@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("number", [1, 2])
def test_the_norms_mean_and_deviation_are_those_of_other_rows(number: int, output: bool) -> None:
    block = PreNorm()
    net = block.net
    found = net.op("LayerNormalization", block.x, net.weight(WIDTH), net.weight(WIDTH), outputs=3)
    net.output(found[number] if output else net.op("Exp", found[number]), 3)
    assert_stays(block.model(block.block(found[0])), "the LayerNorm's mean or deviation is read")


def test_a_mean_that_nobody_reads_is_no_matter() -> None:
    block = PreNorm()
    net = block.net
    rows, _ = net.op("LayerNormalization", block.x, net.weight(WIDTH), net.weight(WIDTH), outputs=2)
    assert_carries(block.model(block.block(rows)))


@pytest.mark.parametrize("which", [0, 1])
def test_weights_of_the_norm_by_a_constant_node(which: int) -> None:
    block = PreNorm()
    net = block.net
    weights = [net.weight(WIDTH), net.weight(WIDTH)]
    weights[which] = net.op("Constant", value=numpy_helper.from_array(np.linspace(1, 2, WIDTH, dtype=np.float32)))
    model = block.model(block.block(net.op("LayerNormalization", block.x, *weights)))
    fused, candidate = written(model)
    assert CONSTANT in candidate["algebra"] or "weights" in candidate["algebra_left"][CONSTANT]
    assert_same(model, fused)


def test_what_moved_the_rows_goes_with_the_old_projection() -> None:
    """Sequence first, as nn.MultiheadAttention turns them: nothing is left that nobody reads."""
    block = PreNorm()
    fused = assert_carries(block.model(block.block(block.net.turn(block.norm(), 1, 0, 2))))
    read = {name for node in fused.graph.node for name in node.input} | {value.name for value in fused.graph.output}
    assert [node.name for node in fused.graph.node if not read & set(node.output)] == []


def test_weights_of_many_rows_are_folded_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the pieces begin and end, also at the channel that carries the constant."""
    monkeypatch.setattr(rounding, "ELEMENTS", 3 * CHANNELS)
    for channel in range(3):
        block = PreNorm()
        gamma = np.where(np.arange(WIDTH) == channel, 0.0, 1.5)
        assert_carries(block.model(block.block(block.norm(gamma=gamma))))
