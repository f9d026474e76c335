"""Other spellings of the same block: tables of places, axial windows, rows in two or four axes, several sites of one window."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net, self_attention
from window_blocks import Residual, calls, inside, ordered


class OneTable(Residual):
    """Roll and partition as one Gather of the flat map, and so the way back."""

    def landed(self, net: Net, value: str) -> str:
        rolled = np.roll(np.arange(64).reshape(8, 8), [-shift for shift in self.shift], (0, 1))
        places = rolled.reshape(2, 4, 2, 4).transpose(0, 2, 1, 3).reshape(-1)
        windows = net.op("Gather", net.reshape(value, -1, 64, WIDTH), net.ints(*places), axis=1)
        out = self_attention(net, net.reshape(windows, -1, 16, WIDTH), name=f"softmax_{len(net.nodes)}")
        back = net.op("Gather", net.reshape(out, -1, 64, WIDTH), net.ints(*np.argsort(places)), axis=1)
        return net.reshape(back, -1, 8, 8, WIDTH)


class Columns(Residual):
    """Every column of the map is a window."""

    def landed(self, net: Net, value: str) -> str:
        columns = net.reshape(net.turn(value, 0, 2, 1, 3), -1, 8, WIDTH)
        out = self_attention(net, columns, name=f"softmax_{len(net.nodes)}")
        return net.turn(net.reshape(out, -1, 8, 8, WIDTH), 0, 2, 1, 3)


class Interleaved(Residual):
    """Every fourth token of the flat map."""

    def landed(self, net: Net, value: str) -> str:
        units = net.reshape(net.turn(net.reshape(value, -1, 16, 4, WIDTH), 0, 2, 1, 3), -1, 16, WIDTH)
        out = self_attention(net, units, name=f"softmax_{len(net.nodes)}")
        return net.reshape(net.turn(net.reshape(out, -1, 4, 16, WIDTH), 0, 2, 1, 3), -1, 8, 8, WIDTH)


class TwoAxes(Residual):
    """Both projections are a Gemm on `(rows, C)`."""

    def attention(self, net: Net, value: str) -> str:
        rows = net.reshape(self.cut(net, self.rolled(net, value)), -1, WIDTH)
        layers = (net.op("Gemm", rows, net.weight(WIDTH, CHANNELS), net.weight(CHANNELS)) for _ in range(3))
        q, k, v = (net.turn(net.reshape(layer, -1, 16, HEADS, HEAD_DIM), 0, 2, 1, 3) for layer in layers)
        result = net.turn(net.sdpa(q, net.swap(k), v, name=f"softmax_{len(net.nodes)}"), 0, 2, 1, 3)
        out = net.op("Gemm", net.reshape(result, -1, CHANNELS), net.weight(CHANNELS, WIDTH), net.weight(WIDTH))
        return self.uncut(net, out)


class FourAxes(Residual):
    """Windows stand map by map all the way, `(B, windows, tokens, C)`, with a bias for each."""

    def attention(self, net: Net, value: str) -> str:
        windows = net.reshape(self.cut(net, self.rolled(net, value)), -1, 4, 16, WIDTH)
        layers = (net.reshape(net.linear(windows, CHANNELS), -1, 4, 16, HEADS, HEAD_DIM) for _ in range(3))
        q, k, v = (net.turn(layer, 0, 1, 3, 2, 4) for layer in layers)
        logits = net.op("Add", net.scaled(net.op("MatMul", q, net.swap(k, 5))), net.weight(1, 4, 1, 16, 16))
        result = net.op("MatMul", net.op("Softmax", logits, axis=-1, name=f"softmax_{len(net.nodes)}"), v)
        merged = net.reshape(net.turn(result, 0, 1, 3, 2, 4), -1, 4, 16, CHANNELS)
        return self.uncut(net, net.linear(merged, WIDTH, width=CHANNELS))


class PartsOfShapes(Residual):
    """Who asks for part of a shape is told that part."""

    def tell(self, net: Net, value: str, **part: int) -> None:
        net.output(net.op("Shape", value, **part), 1, dtype=np.int64)

    def cut(self, net: Net, value: str) -> str:
        for part in ({"start": 0, "end": 1}, {"start": -2}, {"start": 1, "end": -1}, {"end": 3}):
            self.tell(net, value, **part)
        return super().cut(net, value)

    def uncut(self, net: Net, value: str) -> str:
        self.tell(net, value, end=1)
        result = super().uncut(net, value)
        self.tell(net, result, start=-4, end=-1)
        return result


@pytest.mark.parametrize("block", [OneTable, Columns, Interleaved, TwoAxes, FourAxes, PartsOfShapes])
@pytest.mark.parametrize("norm", ["front", "behind", "none"])
@pytest.mark.parametrize("batch", ["batch", 3])
def test_however_a_block_is_spelled(block: type[Residual], norm: str, batch: Any) -> None:
    fused, done = ordered(block(shift=(2, 1), norm=norm, batch=batch).model())
    assert done == [True]
    assert "Sigmoid" in inside(fused)


class ThreeChains(Residual):
    """Q, K and V have a movement of their own each."""

    def attention(self, net: Net, value: str) -> str:
        cuts = (self.cut(net, self.rolled(net, value)) for _ in range(3))
        q, k, v = (net.split_heads(net.linear(windows, CHANNELS)) for windows in cuts)
        merged = net.merge_heads(net.sdpa(q, net.swap(k), v))
        return self.uncut(net, net.linear(merged, WIDTH, width=CHANNELS))


@pytest.mark.parametrize("norm", ["front", "behind"])
def test_windows_that_are_cut_three_times(norm: str) -> None:
    fused, done = ordered(ThreeChains(shift=(2, 1), norm=norm).model())
    assert done == [True]
    assert calls(fused) == ["WindowPartition", "WindowReverse"]


class OtherKeys(Residual):
    """Keys and values from windows that lie elsewhere."""

    def attention(self, net: Net, value: str) -> str:
        elsewhere = Residual(shift=(1, 1))
        windows = self.cut(net, self.rolled(net, value))
        others = self.cut(net, elsewhere.rolled(net, value))
        q, k, v = (net.split_heads(net.linear(each, CHANNELS)) for each in (windows, others, others))
        merged = net.merge_heads(net.sdpa(q, net.swap(k), v))
        return self.uncut(net, net.linear(merged, WIDTH, width=CHANNELS))


class SumAmongWindows(Residual):
    """Two sites of the same windows, added before they go back."""

    def attention(self, net: Net, value: str) -> str:
        windows = self.cut(net, self.rolled(net, value))
        first, second = (self_attention(net, windows, name=f"softmax_{number}") for number in range(2))
        return self.uncut(net, net.op("Add", first, second))


@pytest.mark.parametrize("block", [OtherKeys, SumAmongWindows])
@pytest.mark.parametrize("norm", ["front", "behind"])
def test_what_is_no_block_of_one_site_is_left(block: type[Residual], norm: str) -> None:
    fused, done = ordered(block(shift=(2, 1), norm=norm).model())
    assert not any(done)
    assert calls(fused) == []


@pytest.mark.parametrize("norm", ["front", "behind", "none"])
def test_two_sites_of_the_same_windows(norm: str) -> None:
    """Rows go into windows once, and come back for each."""

    class Shared(Residual):
        def whole(self, net: Net, x: str) -> str:
            windows = self.cut(net, self.rolled(net, self.normed(net, x)))
            first, second = (
                self.unrolled(net, self.uncut(net, self_attention(net, windows, name=f"softmax_{number}")))
                for number in range(2)
            )
            return self.with_mlp(net, net.op("Add", net.op("Add", x, first), second))

    fused, done = ordered(Shared(shift=(2, 1), norm=norm).model())
    assert done == [True, True]
    assert calls(fused) == ["WindowPartition", "WindowReverse", "WindowReverse"]
