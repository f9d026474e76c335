"""A LayerNorm's redundant channel carries a constant only where whole normalised rows reach the projection and nobody else."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds
from graphs import CHANNELS, HEADS, WIDTH, Net
from onnx import TensorProto, helper, numpy_helper
from pre_norm import ALL, PreNorm, assert_applied, assert_sound, assert_stays, biases, stored

import onnx_attn

CONSTANT = "constant-channel"


def channel_is_constant(fused: onnx.ModelProto) -> None:
    """γ = 1 and β = 0 but in one channel, and no bias behind it."""
    (norm,) = [node for node in fused.graph.node if node.op_type == "LayerNormalization"]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in fused.graph.initializer}
    gamma, beta = (weights[name] for name in norm.input[1:])
    assert sorted(gamma) == [0.0] + [1.0] * (gamma.size - 1)
    np.testing.assert_array_equal(gamma + beta, np.ones_like(gamma))
    assert stored(fused, "in_proj_bias") is None


AXES = [{}, {"axis": -1}, {"axis": 2}, {"axis": -1, "epsilon": 0.3}, {"axis": -1, "stash_type": 1}]


@pytest.mark.parametrize("attributes", AXES, ids=str)
def test_every_spelling_of_the_last_axis(attributes: dict[str, float]) -> None:
    block = PreNorm()
    channel_is_constant(assert_applied(block.model(block.block(block.norm(**attributes))), *ALL))


@pytest.mark.parametrize("opset", [17, 18, 20, 23])
@pytest.mark.parametrize("biased", ["q", "k", "v", "qk"])
def test_one_bias_is_enough(opset: int, biased: str) -> None:
    block = PreNorm(opset)
    model = block.model(block.block(block.norm(), biased))
    gone = {"k": "key-bias", "v": "value-bias"}
    names = [CONSTANT, *(gone[role] for role in biased if role in gone), "scale"]
    channel_is_constant(assert_applied(model, *names))


GAMMAS: dict[str, np.ndarray] = {
    "negative": -1.0 - np.arange(WIDTH) / 7,
    "one zero": np.where(np.arange(WIDTH) == 3, 0.0, 1.5),
    "all but one zero": np.where(np.arange(WIDTH) == 3, 1.5, 0.0),
    "all zero": np.zeros(WIDTH),
    "far apart": np.logspace(-6, 6, WIDTH),
}


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("beta", [None, ""], ids=["β", "no β"])
def test_every_gamma(gamma: str, beta: str | None) -> None:
    block = PreNorm()
    model = block.model(block.block(block.norm(gamma=GAMMAS[gamma] * np.float32(1), beta=beta)))
    fused, (candidate,) = assert_sound(model)
    assert candidate["algebra"] == ALL
    channel_is_constant(fused)


def test_beta_that_is_left_out_in_writing() -> None:
    block = PreNorm()
    net = block.net
    norm = net.op("LayerNormalization", block.x, net.weight(WIDTH), "")
    channel_is_constant(assert_applied(block.model(block.block(norm)), *ALL))


def test_rows_that_are_constant_are_only_their_bias() -> None:
    """Nothing to normalise: n = 0, and y = β. The constant is all that the projection gets."""
    block = PreNorm()
    model = block.model(block.block(block.norm()))
    inputs = feeds(model)
    inputs["x"][:, 1:3] = 4.0
    assert_applied(model, *ALL, inputs=inputs)


@pytest.mark.parametrize("width", [2, 3])
def test_two_channels_are_enough(width: int) -> None:
    block = PreNorm(width=width)
    inputs = {"x": np.random.default_rng(5).standard_normal((2, 5, width)).astype(np.float32)}
    channel_is_constant(assert_applied(block.model(block.block(block.norm())), *ALL, inputs=inputs))


def test_one_channel_is_always_zero_and_has_no_redundant_one() -> None:
    block = PreNorm(width=1)
    assert_stays(block.model(block.block(block.norm())), CONSTANT, "whole rows")


def test_masked_rows_are_no_matter() -> None:
    block = PreNorm()
    net = block.net
    mask = net.input("mask", 2, 1, 5, 5)
    model = block.model(block.block(block.norm(), scores=lambda s: net.op("Add", net.scaled(s), mask)))
    inputs = feeds(model)
    inputs["mask"][0, 0, 2], inputs["mask"][1, 0, :, 1] = -np.inf, -np.inf
    assert_applied(model, *ALL, inputs=inputs)


def windows(net: Net, value: str, pad: int) -> str:
    """`(B, H, W, E)`, rolled, padded, cut into windows of 2 by 2: `(B·nW, 4, E)`."""
    for axis in (1, 2):
        first = net.op("Slice", value, net.ints(1), net.ints(9), net.ints(axis))
        last = net.op("Slice", value, net.ints(0), net.ints(1), net.ints(axis))
        value = net.op("Concat", first, last, axis=axis)
    value = net.op("Pad", value, net.ints(0, 0, 0, 0, 0, 0, pad, 0))
    value = net.reshape(value, 2, 2, 2, (4 + pad) // 2, 2, WIDTH)
    return net.reshape(net.turn(value, 0, 1, 3, 2, 4, 5), -1, 4, WIDTH)


@pytest.mark.parametrize("pad", [0, 2])
def test_rolled_windows_may_be_cut_but_not_padded(pad: int) -> None:
    block = PreNorm(lead=(2, 4))
    net = block.net
    picture = net.input("picture", 2, 4, 4, WIDTH)
    model = block.model(block.block(windows(net, block.norm(picture), pad)))
    if pad:
        assert biases(assert_stays(model, CONSTANT, "Pad")) == [True, False, False]
    else:
        channel_is_constant(assert_applied(model, *ALL))


MOVED: dict[str, Callable[[Net, str], str]] = {
    "Identity": lambda net, y: net.op("Identity", y),
    "Dropout": lambda net, y: net.op("Dropout", y),
    "sequence first": lambda net, y: net.turn(y, 1, 0, 2),
    "flat": lambda net, y: net.reshape(net.op("Flatten", y, axis=2), 2, 5, WIDTH),
    "one axis more": lambda net, y: net.op("Squeeze", net.op("Unsqueeze", y, net.ints(1)), net.ints(1)),
    "other order": lambda net, y: net.op("Gather", y, net.ints(4, 2, 0, 1, 3), axis=1),
    "some rows": lambda net, y: net.op("Gather", y, net.ints(0, 2), axis=1),
    "rows twice": lambda net, y: net.op("Concat", y, y, axis=1),
    "halves": lambda net, y: net.op("Concat", *net.op("Split", y, net.ints(2, 3), outputs=2, axis=1)[::-1], axis=1),
    "every other row": lambda net, y: net.op("Slice", y, net.ints(0), net.ints(5), net.ints(1), net.ints(2)),
    "cast and back": lambda net, y: net.op("Cast", net.op("Cast", y, to=TensorProto.DOUBLE), to=TensorProto.FLOAT),
}


@pytest.mark.parametrize("move", MOVED)
def test_rows_may_be_moved(move: str) -> None:
    block = PreNorm()
    channel_is_constant(assert_applied(block.model(block.block(MOVED[move](block.net, block.norm()))), *ALL))


CHANGED: dict[str, Callable[[Net, str], str]] = {
    "padded": lambda net, y: net.op("Pad", y, net.ints(0, 1, 0, 0, 0, 0)),
    "padded channels cut again": lambda net, y: net.op(
        "Slice", net.op("Pad", y, net.ints(0, 0, 1, 0, 0, 0)), net.ints(0), net.ints(WIDTH), net.ints(2)
    ),
    "class token": lambda net, y: net.op("Concat", net.const(np.ones((2, 1, WIDTH))), y, axis=1),
    "memory": lambda net, y: net.op("Concat", net.input("memory", 2, 3, WIDTH), y, axis=1),
    "positions": lambda net, y: net.op("Add", y, net.weight(5, WIDTH)),
    "scaled": lambda net, y: net.op("Mul", y, net.const(2.0)),
    "masked": lambda net, y: net.op("Mul", y, net.input("kept", 2, 5, 1)),
    "ReLU": lambda net, y: net.op("Relu", y),
    "as whole numbers": lambda net, y: net.op("Cast", net.op("Cast", y, to=TensorProto.INT32), to=TensorProto.FLOAT),
    "channels back to front": lambda net, y: net.op(
        "Slice", y, net.ints(-1), net.ints(-WIDTH - 1), net.ints(2), net.ints(-1)
    ),
    "last axis unsaid": lambda net, y: net.op("Slice", y, net.ints(0, 0, 0), net.ints(2, 5, WIDTH)),
    "channels in another order": lambda net, y: net.op("Gather", y, net.ints(*range(1, WIDTH), 0), axis=-1),
    "channels rolled": lambda net, y: net.op(
        "Concat", *net.op("Split", y, net.ints(8, WIDTH - 8), outputs=2, axis=2)[::-1], axis=2
    ),
    "dropout in training": lambda net, y: net.op("Dropout", y, net.const(0.0, np.float32), net.const(True, bool)),
    "scattered": lambda net, y: net.op(
        "ScatterElements", y, net.const(np.full((2, 1, WIDTH), 3), np.int64), net.const(np.ones((2, 1, WIDTH))), axis=1
    ),
    "another norm": lambda net, y: net.op("LpNormalization", y, axis=1),
    "chosen": lambda net, y: net.op("Where", net.input("allowed", 2, 5, 1, dtype=bool), y, net.const(0.0)),
}


@pytest.mark.parametrize("change", CHANGED)
def test_rows_may_not_be_changed(change: str) -> None:
    block = PreNorm()
    assert_stays(block.model(block.block(CHANGED[change](block.net, block.norm()))), CONSTANT, "LayerNorm")


def test_square_rows_turned() -> None:
    """As many tokens as channels: the shapes say nothing."""
    block = PreNorm(lead=(2, WIDTH))
    assert_stays(block.model(block.block(block.net.turn(block.norm(), 0, 2, 1))), CONSTANT, "LayerNorm")


def test_rows_of_two_norms() -> None:
    block = PreNorm()
    net = block.net
    other = block.norm(net.input("y", 2, 3, WIDTH))
    model = block.model(block.block(net.op("Concat", other, block.norm(), axis=1)))
    assert_stays(model, CONSTANT, "more than one")


@pytest.mark.parametrize("shape", [(5, WIDTH), (1, WIDTH), (1,)], ids=str)
def test_weights_that_are_no_vector(shape: Sequence[int]) -> None:
    block = PreNorm()
    net = block.net
    norm = net.op("LayerNormalization", block.x, net.weight(*shape), net.weight(*shape))
    assert_stays(block.model(block.block(norm)), CONSTANT, "weights")


@pytest.mark.parametrize("which", ["gamma", "beta"])
@pytest.mark.parametrize("how", ["input", "default", "computed", "training"])
def test_weights_that_others_decide(which: str, how: str) -> None:
    block = PreNorm()
    net = block.net
    if how == "input":
        name = net.input(which, WIDTH)
    elif how == "computed":
        name = net.op("Exp", net.input(which, WIDTH))
    else:
        name = net.weight(WIDTH, name=which)
    if how == "default":
        net.input(which, WIDTH)
    model = block.model(block.block(block.norm(**{which: name})))
    if how == "training":
        info = model.training_info.add()
        info.algorithm.CopyFrom(helper.make_graph([], "step", [], []))
        info.initialization.CopyFrom(helper.make_graph([], "start", [], []))
        info.update_binding.add(key=which, value=which)
    given = feeds(model) | ({which: np.full(WIDTH, 0.7, np.float32)} if how != "training" else {})
    assert_stays(model, CONSTANT, "weights", given)


def test_weights_that_another_norm_shares() -> None:
    block = PreNorm()
    net = block.net
    gamma, beta = net.weight(WIDTH, name="gamma"), net.weight(WIDTH, name="beta")
    after = block.block(block.norm(gamma=gamma, beta=beta))
    fused = assert_applied(block.model(block.norm(after, gamma, beta)), *ALL)
    assert {"gamma", "beta"} <= {tensor.name for tensor in fused.graph.initializer}


READ: dict[str, Callable[[PreNorm, str], str | None]] = {
    "residual": lambda b, y: b.net.op("Add", y, b.net.weight(WIDTH)),
    "second projection": lambda b, y: b.layer(y),
    "output": lambda b, y: y,
    "If": lambda b, y: used_inside_if(b.net, y),
    "mean": lambda b, y: b.net.op("ReduceMean", y, axes=[1]),
}


def used_inside_if(net: Net, value: str) -> str:
    def body(name: str, op: str) -> onnx.GraphProto:
        info = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [None] * 3)
        return helper.make_graph([helper.make_node(op, [value], [f"{name}_out"])], name, [], [info])

    flag = net.input("flag", dtype=bool)
    return str(net.op("If", flag, then_branch=body("yes", "Exp"), else_branch=body("no", "Neg")))


@pytest.mark.parametrize("moved", [False, True], ids=["normalised", "moved"])
@pytest.mark.parametrize("reader", READ)
def test_rows_that_somebody_else_reads(reader: str, moved: bool) -> None:
    block = PreNorm()
    net = block.net
    rows = block.norm()
    source = net.op("Gather", rows, net.ints(4, 2, 0, 1, 3), axis=1)
    net.output(READ[reader](block, source if moved else rows), 3)
    fused = assert_stays(block.model(block.block(source)), CONSTANT, "read")
    assert biases(fused) == [True, False, False]


def test_rows_whose_deviation_is_read() -> None:
    block = PreNorm()
    net = block.net
    rows, _, deviation = net.op("LayerNormalization", block.x, net.weight(WIDTH), net.weight(WIDTH), outputs=3)
    net.output(net.op("Exp", deviation), 3)
    assert_stays(block.model(block.block(rows)), CONSTANT, "deviation")


def test_post_norm() -> None:
    """The residual goes on from the normalised rows."""
    block = PreNorm()
    rows = block.norm()
    assert_stays(block.model(block.net.op("Add", rows, block.block(rows))), CONSTANT, "Add")


def test_two_sites_on_one_norm() -> None:
    block = PreNorm()
    net = block.net
    rows, memory = block.norm(), net.input("memory", 2, 7, WIDTH)
    own = block.block(rows)
    q = net.split_heads(block.layer(rows))
    k, v = (net.split_heads(block.layer(memory)) for _ in range(2))
    other = block.out(block.attend(q, k, v, name="cross"))
    assert_stays(block.model(net.op("Add", own, other)), CONSTANT)


def test_each_source_of_cross_attention_has_its_norm() -> None:
    block = PreNorm()
    net = block.net
    rows, memory = block.norm(), block.norm(net.input("memory", 2, 7, WIDTH))
    q = net.split_heads(block.layer(rows))
    k, v = (net.split_heads(block.layer(memory)) for _ in range(2))
    fused = assert_applied(block.model(block.out(block.attend(q, k, v))), *ALL)
    assert not [tensor for tensor in fused.graph.initializer if tensor.name.endswith("in_proj_bias")]


def test_queries_of_some_rows_and_keys_of_all() -> None:
    """Class attention: two groups read one LayerNorm, each would change it for the other."""
    block = PreNorm()
    net = block.net
    rows = block.norm()
    q = net.split_heads(block.layer(net.op("Slice", rows, net.ints(0), net.ints(1), net.ints(1))))
    k, v = (net.split_heads(block.layer(rows)) for _ in range(2))
    assert_stays(block.model(block.out(block.attend(q, k, v))), CONSTANT, "read")


def test_weights_of_the_projection_that_another_layer_shares() -> None:
    block = PreNorm()
    net = block.net
    rows, weight = block.norm(), net.weight(WIDTH, CHANNELS, name="tied")
    q, k, v = block.heads(rows)
    q = net.split_heads(net.op("Add", net.op("MatMul", rows, weight), net.weight(CHANNELS)))
    net.output(net.op("MatMul", block.x, weight), 3)
    assert_stays(block.model(block.out(block.attend(q, k, v))), CONSTANT)


@pytest.mark.parametrize("moved", [False, True])
def test_shape_of_the_rows_is_asked_for(moved: bool) -> None:
    block = PreNorm()
    net = block.net
    rows = block.norm()
    source = net.turn(rows, 1, 0, 2) if moved else rows
    sizes = net.op("Concat", net.op("Shape", source, start=0, end=2), net.ints(HEADS, -1), axis=0)
    q, k, v = (net.turn(net.op("Reshape", block.layer(source), sizes), 0, 2, 1, 3) for _ in range(3))
    net.output(net.op("Shape", rows), 1, np.int64)
    fused = assert_applied(block.model(block.out(block.attend(q, k, v))), *ALL)
    channel_is_constant(fused)


def test_rotary_behind() -> None:
    """Q and K are no layer's results; V alone is nothing to pack."""
    block = PreNorm()
    q, k, v = block.heads(block.norm())
    angles = block.net.const(np.cos(np.arange(5))[:, None])
    model = block.model(block.out(block.attend(*(block.net.op("Mul", t, angles) for t in (q, k)), v)))
    assert_stays(model, CONSTANT)


opset17 = helper.make_opsetid("", 17)


def rms(name: str) -> onnx.FunctionProto:
    """No mean is removed, whatever the function is called."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["square"]),
        helper.make_node("ReduceMean", ["square"], ["mean"], axes=[-1]),
        helper.make_node("Sqrt", ["mean"], ["root"]),
        helper.make_node("Div", ["x", "root"], ["n"]),
        helper.make_node("Mul", ["n", "gamma"], ["scaled"]),
        helper.make_node("Add", ["scaled", "beta"], ["y"]),
    ]
    return helper.make_function("mine", name, ["x", "gamma", "beta"], ["y"], nodes, [opset17])


def of_the_users_own(op: str) -> onnx.ModelProto:
    """A block in which a function has an operator's name and does something else."""
    block = PreNorm()
    net, source = block.net, block.norm(domain="mine" if op == "LayerNormalization" else "")
    relu = helper.make_function("mine", op, ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [opset17])
    if op == "Shape":
        net.output(net.op(op, source, domain="mine"), 3)
    attended = block.attend(*block.heads(source))
    if op == "Transpose":
        attended = net.op(op, attended, domain="mine")
    net.output(block.out(attended), 3)
    return net.model([rms("LayerNormalization") if op == "LayerNormalization" else relu], mine=1)


@pytest.mark.parametrize("op", ["LayerNormalization", "Shape", "Transpose"])
def test_a_function_of_the_same_name_is_another_operator(op: str) -> None:
    """Without a proof to fall back on."""
    model = of_the_users_own(op)
    fused = onnx_attn.fuse(model, verify=False)
    (candidate,) = fused.report["candidates"]
    left = "value-bias" if op == "Transpose" else CONSTANT
    assert left in candidate["algebra_left"]
    assert left not in candidate["algebra"]
    assert_same(model, fused.model)


def test_half_precision_is_as_exact_as_before() -> None:
    block = PreNorm(dtype=np.float16)
    result = onnx_attn.fuse(block.model(block.block(block.norm())))
    (candidate,) = result.report["candidates"]
    assert candidate["algebra"] == ALL
    errors = candidate["certificate"]["error_against_float64"]
    assert errors["after"]["max_rel"] <= 2 * errors["before"]["max_rel"]
