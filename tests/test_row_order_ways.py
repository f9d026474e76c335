"""Ways out of the map and back that are each other's inverse or are not, residuals, branches, and whose weights they are."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds
from graphs import WIDTH, Net, self_attention
from onnx import TensorProto, helper
from quantised import step
from window_blocks import Residual, calls, inside, ordered

import onnx_attn


class AnotherRoll(Residual):
    def unrolled(self, net: Net, value: str) -> str:
        for axis, (shift, size) in enumerate(zip(self.shift, self.sizes, strict=True), 1):
            value = self.roll(net, value, axis, shift + 1, size)
        return value


class NoRollBack(Residual):
    def unrolled(self, net: Net, value: str) -> str:
        return value


class SwappedAxes(Residual):
    def uncut(self, net: Net, value: str) -> str:
        apart = net.reshape(value, -1, 2, 2, 4, 4, WIDTH)
        return net.reshape(net.turn(apart, 0, 1, 4, 2, 3, 5), -1, 8, 8, WIDTH)


class LeftAsWindows(Residual):
    def uncut(self, net: Net, value: str) -> str:
        return net.reshape(value, -1, 8, 8, WIDTH)


class TurnedTokens(Residual):
    def uncut(self, net: Net, value: str) -> str:
        apart = net.turn(net.reshape(value, -1, 4, 4, WIDTH), 0, 2, 1, 3)
        return super().uncut(net, net.reshape(apart, -1, 16, WIDTH))


@pytest.mark.parametrize("block", [AnotherRoll, NoRollBack, SwappedAxes, LeftAsWindows, TurnedTokens])
def test_a_way_back_to_other_places_is_none(block: type[Residual]) -> None:
    for norm in ("front", "behind"):
        fused, done = ordered(block(shift=(2, 3), norm=norm).model())
        assert done == [False]
        assert calls(fused) == []


def body(of: str) -> Any:
    def whole(self: Residual, net: Net, x: str) -> str:
        value = self.landed(net, self.normed(net, x))
        if of == "rolled":
            value = net.op("Add", self.rolled(net, x), value)
        elif of == "turned":
            value = net.op("Add", net.turn(x, 0, 2, 1, 3), value)
        elif of == "twice":
            value = net.op("Add", net.op("Add", value, x), x)
        elif of == "taken from":
            value = net.op("Sub", x, value)
        else:
            value = net.op("Add", value, x)
        return self.with_mlp(net, value)

    return type(of, (Residual,), {"whole": whole})


@pytest.mark.parametrize("of", ["rolled", "turned"])
def test_a_residual_of_other_places_is_added_on_the_map(of: str) -> None:
    fused, done = ordered(body(of)(shift=(2, 3)).model())
    assert done == [True]
    assert inside(fused).count("Add") == 2  # The biases of both projections.


@pytest.mark.parametrize("of", ["other way round", "twice", "taken from"])
def test_a_residual_however_it_is_added(of: str) -> None:
    fused, done = ordered(body(of)(shift=(2, 3)).model())
    assert done == [True]
    assert "Sigmoid" in inside(fused)


class Parallel(Residual):
    """Attention and MLP, both on one LayerNorm."""

    def whole(self, net: Net, x: str) -> str:
        normed = self.normed(net, x)
        value = self.landed(net, normed)
        inner = net.linear(net.op("Relu", net.linear(normed, 2 * WIDTH)), WIDTH, width=2 * WIDTH)
        return net.op("Add", net.op("Add", x, value), inner)


class TwoOfOneNorm(Residual):
    def whole(self, net: Net, x: str) -> str:
        normed = self.normed(net, x)
        first, second = (self.landed(net, normed) for _ in range(2))
        return net.op("Add", net.op("Add", x, first), second)


class TwoOfOneMap(Residual):
    """Of different shifts, on one x and into one sum."""

    def whole(self, net: Net, x: str) -> str:
        first = self.landed(net, self.normed(net, x))
        shift, self.shift = self.shift, (0, 0)
        second = self.landed(net, self.normed(net, x))
        self.shift = shift
        return self.with_mlp(net, net.op("Add", net.op("Add", x, first), second))


@pytest.mark.parametrize("block", [Parallel, TwoOfOneNorm, TwoOfOneMap])
def test_branches(block: type[Residual]) -> None:
    fused, done = ordered(block(shift=(2, 3)).model())
    assert all(done)
    assert calls(fused).count("WindowPartition") == calls(fused).count("WindowReverse") == len(done)


@pytest.mark.parametrize("norm", ["front", "behind", "none"])
@pytest.mark.parametrize("rows", [False, True], ids=["map", "rows"])
def test_a_global_attention_behind_a_block(norm: str, rows: bool) -> None:
    """Its LayerNorm and projections work row by row too, but what is moved back is the one value in front of them."""

    class Mixed(Residual):
        def whole(self, net: Net, x: str) -> str:
            x = super().whole(net, x)
            value = self_attention(net, net.reshape(self.normed(net, x), -1, 64, WIDTH), name="global")
            return self.with_mlp(net, net.op("Add", x, value if rows else net.reshape(value, -1, 8, 8, WIDTH)))

    fused, done = ordered(Mixed(shift=(2, 1), norm=norm, rows=rows).model())
    assert done == [True, False]
    assert calls(fused) == ["WindowPartition", "WindowReverse"]


@pytest.mark.parametrize("norm", ["front", "behind", "none"])
def test_a_convolution_between_blocks(norm: str) -> None:
    """It has the channels first: where the map is turned, it is a map of rows."""

    class Between(Residual):
        def whole(self, net: Net, x: str) -> str:
            kernel = net.weight(WIDTH, 1, 3, 3)
            turned = net.turn(super().whole(net, x), 0, 3, 1, 2)
            return net.turn(net.op("Conv", turned, kernel, pads=[1] * 4, group=WIDTH), 0, 2, 3, 1)

    fused, done = ordered(Between(shift=(2, 1), norm=norm, blocks=2).model())
    assert done == [True, True]
    assert inside(fused).count("Relu") == 2


@pytest.mark.parametrize("norm", ["front", "behind", "none"])
def test_blocks_and_grids_in_turn(norm: str) -> None:
    class Turns(Residual):
        def whole(self, net: Net, x: str) -> str:
            self.strided = not self.strided
            return super().whole(net, x)

    fused, done = ordered(Turns(norm=norm, blocks=2).model())
    assert done == [True, True]
    assert inside(fused).count("Relu") == 2


def test_attention_on_attention_without_anything_between() -> None:
    class Chain(Residual):
        def whole(self, net: Net, x: str) -> str:
            return self.landed(net, self.landed(net, self.normed(net, x)))

    _, done = ordered(Chain(shift=(2, 3)).model())
    assert len(done) == 2


@pytest.mark.parametrize("which", ["norm", "bias"])
def test_weights_that_a_caller_may_replace(which: str) -> None:
    """They stand among the inputs too."""
    model = Residual(shift=(2, 3)).model()
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    last = [node for node in model.graph.node if node.op_type == "Add"][3]
    name = norm.input[1] if which == "norm" else last.input[1]
    (stored,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(stored.dims)))
    fused, done = ordered(model)
    assert done == [which == "norm"]
    assert "LayerNormalization" not in inside(fused)
    inputs = feeds(model) | {name: np.random.default_rng(0).standard_normal(stored.dims).astype(np.float32)}
    assert_same(model, fused, inputs)


def test_weights_that_two_layers_share() -> None:
    model = Residual(shift=(2, 3), blocks=2).model()
    norms = [node for node in model.graph.node if node.op_type == "LayerNormalization"]
    for node in norms[1:]:
        node.input[1:] = norms[0].input[1:]
    fused, done = ordered(model)
    assert done == [True, True]
    assert inside(fused).count("LayerNormalization") == 4


def test_nodes_of_one_name() -> None:
    """ONNX Runtime takes no such model; the others do."""
    model = Residual(shift=(2, 3), blocks=2).model()
    for node in model.graph.node:
        node.name = node.op_type
    result = onnx_attn.fuse(model, verify=False)
    onnx.checker.check_model(result.model, full_check=True)
    for node in result.model.graph.node:
        node.name = ""
    assert_same(Residual(shift=(2, 3), blocks=2).model(), result.model)
    assert "Sigmoid" in inside(result.model)


@pytest.mark.parametrize("place", ["normed", "windows", "attended", "landed", "added", "hidden"])
def test_quantisation_steps(place: str) -> None:
    model = Residual(shift=(2, 3), opset=19, hooks={place: lambda net, value: step(net, value, 1 / 32)}).model()
    result = onnx_attn.fuse(model)
    assert not result.report["candidates"][0]["changes_left"]
    assert_same(model, result.model, feeds(model), rtol=2e-2)


def test_windows_outside_the_batch() -> None:
    class Outside(Residual):
        def cut(self, net: Net, value: str) -> str:
            apart = net.turn(net.reshape(value, -1, 2, 4, 2, 4, WIDTH), 1, 3, 0, 2, 4, 5)
            return net.reshape(apart, -1, 16, WIDTH)

        def uncut(self, net: Net, value: str) -> str:
            apart = net.turn(net.reshape(value, 2, 2, -1, 4, 4, WIDTH), 2, 0, 3, 1, 4, 5)
            return net.reshape(apart, -1, 8, 8, WIDTH)

    fused, done = ordered(Outside(shift=(2, 3)).model())
    assert done == [True]
    assert "Sigmoid" in inside(fused)


def test_maps_side_by_side_in_one_sequence() -> None:
    """What comes back varies in its second axis."""

    class Sequence(Residual):
        def whole(self, net: Net, x: str) -> str:
            value = net.reshape(self.landed(net, self.normed(net, x)), 1, -1, WIDTH)
            return net.reshape(net.op("Add", net.reshape(x, 1, -1, WIDTH), value), -1, 8, 8, WIDTH)

    _, done = ordered(Sequence(shift=(2, 3)).model())
    assert done == [True]
