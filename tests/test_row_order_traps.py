"""What keeps part of a block in the order of the map: the model stays right, and no proof has to say so."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from graphs import Net
from onnx import TensorProto, helper
from row_nodes import EACH_ROW, MIX_ROWS
from window_blocks import Hook, Residual, inside, operators, ordered


@pytest.mark.parametrize("name", MIX_ROWS)
def test_what_mixes_or_tells_rows_apart_is_done_on_the_map(name: str) -> None:
    for place in ("normed", "landed", "added"):
        model = Residual(shift=(2, 1), hooks={place: MIX_ROWS[name]}).model()
        fused, done = ordered(model)
        assert place != "added" or done == [True]
        assert "Sigmoid" not in inside(fused)
        # The biases of both projections are added among windows; behind a norm that stays, x is not there to be added to.
        residual = place == "added"
        assert not done[0] or inside(fused).count("Add") == 2 + residual, inside(fused)


@pytest.mark.parametrize("name", EACH_ROW)
def test_what_works_on_each_row_is_done_among_windows(name: str) -> None:
    for place in ("landed", "added"):
        fused, done = ordered(Residual(shift=(2, 1), hooks={place: EACH_ROW[name]}).model())
        assert done == [True]
        assert "Sigmoid" in inside(fused)


def read_too(net: Net, value: str) -> str:
    net.output(net.op("Exp", value), 3 if value.startswith(("Add_2", "Reshape")) else 4)
    return value


def given_out(net: Net, value: str) -> str:
    net.output(value, 4)
    return value


READ: dict[str, tuple[bool, bool]] = {
    "normed": (True, False),
    "rolled": (False, False),
    "landed": (True, False),
    "added": (True, False),
    "hidden": (True, False),
    "out": (True, False),
}
"""Where somebody else reads the value at a place: whether the block is in window order, and all of it to its end."""


@pytest.mark.parametrize("place", READ)
@pytest.mark.parametrize("reader", [read_too, given_out])
@pytest.mark.parametrize("norm", ["front", "behind"])
def test_what_others_read_too_stays(place: str, reader: Hook, norm: str) -> None:
    order, whole = READ[place]
    model = Residual(shift=(2, 1), norm=norm, hooks={place: reader}).model()
    fused, done = ordered(model)
    # In front of it, x is what is normed: with the norm behind, anyone may read it.
    front = norm == "front" or place != "normed"
    assert done == [order]
    assert ("Sigmoid" in inside(fused)) == (whole or not front)


@pytest.mark.parametrize("reader", ["node", "output"])
@pytest.mark.parametrize("place", ["windows", "attended"])
def test_windows_themselves_are_there_for_all(place: str, reader: str) -> None:
    def read(net: Net, value: str) -> str:
        net.output(net.op("Exp", value) if reader == "node" else value, 3)
        return value

    fused, done = ordered(Residual(shift=(2, 1), hooks={place: read}).model())
    assert done == [place == "windows"]
    assert ("Sigmoid" in inside(fused)) == done[0]


def test_x_that_is_computed_and_given_out() -> None:
    fused, done = ordered(Residual(shift=(2, 1), hooks={"x": lambda n, v: given_out(n, n.op("Relu", v))}).model())
    assert done == [True]
    assert "Sigmoid" in inside(fused)


class Asking(Residual):
    """Sizes come from values in between, at run time, and are given out too."""

    told: bool = True

    def tell(self, net: Net, value: str) -> str:
        if self.told:
            net.output(net.op("Shape", value), 1, dtype=np.int64)
        return value

    def cut(self, net: Net, value: str) -> str:
        apart = net.turn(net.reshape(value, (value, 0), 2, 4, 2, 4, (value, 3)), 0, 1, 3, 2, 4, 5)
        self.apart = self.tell(net, apart)
        return self.tell(net, net.reshape(apart, -1, 16, (apart, 5)))

    def uncut(self, net: Net, value: str) -> str:
        apart = net.reshape(self.tell(net, value), (self.apart, 0), 2, 2, 4, 4, (value, 2))
        turned = self.tell(net, net.turn(apart, 0, 1, 3, 2, 4, 5))
        return self.tell(net, net.reshape(turned, (turned, 0), 8, 8, (turned, 5)))


@pytest.mark.parametrize("batch", ["batch", 3])
@pytest.mark.parametrize("told", [True, False])
def test_who_asks_for_the_shape_of_what_goes_is_told(batch: Any, told: bool) -> None:
    block = Asking(shift=(2, 3), batch=batch, blocks=2)
    block.told = told
    fused, done = ordered(block.model())
    assert done == [True, True]
    assert "Sigmoid" in inside(fused)
    assert told or operators(fused, "Shape") == 0


def reading_bodies(place: str, op: str) -> onnx.ModelProto:
    """A value is read inside If, by its name."""

    def read(net: Net, value: str) -> str:
        def branch(name: str, inner: str) -> onnx.GraphProto:
            node = helper.make_node(inner, [value], [f"{name}_out"])
            info = helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [None] * 4)
            return helper.make_graph([node], name, [], [info])

        flag = net.input("flag", dtype=np.bool_)
        net.output(net.op("If", flag, then_branch=branch("yes", op), else_branch=branch("no", "Neg")), 4)
        return value

    return Residual(shift=(2, 3), hooks={place: read}).model()


@pytest.mark.parametrize("op", ["Exp", "Identity"])
@pytest.mark.parametrize("place", ["normed", "rolled", "landed", "added", "hidden"])
def test_bodies_read_by_name(place: str, op: str) -> None:
    _, done = ordered(reading_bodies(place, op))
    assert done == [place != "rolled"]


def test_a_norm_whose_mean_is_read() -> None:
    model = Residual(shift=(2, 3)).model()
    norm = next(node for node in model.graph.node if node.op_type == "LayerNormalization")
    norm.output.append("mean")
    model.graph.output.append(helper.make_tensor_value_info("mean", TensorProto.FLOAT, [None] * 4))
    fused, done = ordered(model)
    assert done == [True]
    assert "LayerNormalization" not in inside(fused)


def test_a_split_whose_other_part_is_read() -> None:
    """Padding is cut off by a Split, and somebody reads what is cut off."""

    class Cut(Residual):
        def unpadded(self, net: Net, value: str) -> str:
            kept, rest = net.op("Split", value, net.ints(5, 3), axis=1, outputs=2)
            net.output(rest, 4)
            return str(kept)

    _, done = ordered(Cut(edges=(5, 8), pads=(0, 3, 0, 0)).model())
    assert done == [False]
