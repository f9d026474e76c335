"""A LayerNorm's redundant channel carries a constant only where whole normalised rows reach the projection and nobody else."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds
from graphs import CHANNELS, WIDTH
from onnx import helper
from pre_norm import ALL, PreNorm, assert_applied, assert_constant_channel, assert_sound, assert_stays

import onnx_attn

CONSTANT = "constant-channel"


AXES = [{}, {"axis": -1}, {"axis": 2}, {"axis": -1, "epsilon": 0.3}, {"axis": -1, "stash_type": 1}]


@pytest.mark.parametrize("attributes", AXES, ids=str)
def test_every_spelling_of_the_last_axis(attributes: dict[str, float]) -> None:
    block = PreNorm()
    assert_constant_channel(assert_applied(block.model(block.block(block.norm(**attributes))), *ALL))


@pytest.mark.parametrize("opset", [17, 18, 20, 23])
@pytest.mark.parametrize("biased", ["q", "k", "v", "qk"])
def test_one_bias_is_enough(opset: int, biased: str) -> None:
    block = PreNorm(opset)
    model = block.model(block.block(block.norm(), biased))
    gone = {"k": "key-bias", "v": "value-bias"}
    names = [CONSTANT, *(gone[role] for role in biased if role in gone), "scale"]
    assert_constant_channel(assert_applied(model, *names))


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
    assert_constant_channel(fused)


def test_beta_that_is_left_out_in_writing() -> None:
    block = PreNorm()
    net = block.net
    norm = net.op("LayerNormalization", block.x, net.weight(WIDTH), "")
    assert_constant_channel(assert_applied(block.model(block.block(norm)), *ALL))


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
    assert_constant_channel(assert_applied(block.model(block.block(block.norm())), *ALL, inputs=inputs))


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


def test_weights_of_the_projection_that_another_layer_shares() -> None:
    block = PreNorm()
    net = block.net
    rows, weight = block.norm(), net.weight(WIDTH, CHANNELS, name="tied")
    q, k, v = block.heads(rows)
    q = net.split_heads(net.op("Add", net.op("MatMul", rows, weight), net.weight(CHANNELS)))
    net.output(net.op("MatMul", block.x, weight), 3)
    assert_stays(block.model(block.out(block.attend(q, k, v))), CONSTANT)


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


def test_somebody_elses_operator_of_a_known_name_moves_nothing() -> None:
    """What it does to rows, nobody here knows, though its shape is annotated."""
    block = PreNorm()
    net = block.net
    theirs = net.op("Reshape", block.norm(), net.ints(2, 5, block.width), domain="my.company")
    model = block.model(block.block(theirs))
    model.opset_import.add(domain="my.company", version=1)
    model.graph.value_info.append(helper.make_tensor_value_info(theirs, 1, [2, 5, block.width]))
    (candidate,) = onnx_attn.fuse(model, verify=False).report["candidates"]
    assert candidate["status"] == "site"
    assert "constant-channel" not in candidate["algebra"]
