"""Hand-made maps that are rolled, padded and cut into windows, and what a report says of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from graphs import WIDTH, Net, self_attention

import onnx_attn

Window = dict[str, Any] | None


def windows(model: onnx.ModelProto | Any) -> list[Window]:
    """By site, the keys that the interface promises."""
    found = [candidate["window"] for candidate in onnx_attn.inspect(model)["candidates"]]
    return [window and {key: window[key] for key in ("size", "shift", "grid")} for window in found]


def kinds(model: onnx.ModelProto | Any) -> list[list[str]]:
    return [[mask["kind"] for mask in site["masks"]] for site in onnx_attn.inspect(model)["candidates"]]


Roll = Callable[[Net, str, int, int, int], str]


def by_slices(net: Net, value: str, axis: int, shift: int, size: int) -> str:
    """`value` rolled by −shift."""
    first = net.op("Slice", value, net.ints(shift), net.ints(2**31), net.ints(axis))
    last = net.op("Slice", value, net.ints(0), net.ints(shift), net.ints(axis))
    return net.op("Concat", first, last, axis=axis)


def by_split(net: Net, value: str, axis: int, shift: int, size: int) -> str:
    parts = net.op("Split", value, net.ints(shift, size - shift), axis=axis, outputs=2)
    return net.op("Concat", parts[1], parts[0], axis=axis)


def by_indices(net: Net, value: str, axis: int, shift: int, size: int) -> str:
    return net.op("Gather", value, net.ints(*np.roll(np.arange(size), -shift)), axis=axis)


ROLLS: dict[str, Roll] = {"Slice": by_slices, "Split": by_split, "Gather": by_indices}


@dataclass
class Block:
    """A map `(B, H, W, E)` that is normed, rolled, padded, cut into windows `(B·nW, Wh·Ww, E)` and attended to."""

    edges: tuple[int, int] = (8, 8)
    window: tuple[int, int] = (4, 4)
    shift: tuple[int, int] = (0, 0)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    roll: Roll = by_slices
    strided: bool = False
    pad_first: bool = True
    channels_first: bool = False
    batch: int | str = "batch"

    def start(self) -> tuple[Net, str]:
        net = Net()
        if self.channels_first:
            picture = net.input("picture", self.batch, WIDTH, *self.edges)
            return net, net.turn(picture, 0, 2, 3, 1)
        picture = net.input("picture", self.batch, *self.edges, WIDTH)
        return net, net.op("LayerNormalization", picture, net.weight(WIDTH), net.weight(WIDTH), axis=-1)

    def padded(self, net: Net, value: str) -> str:
        top, bottom, left, right = self.pads
        return net.op("Pad", value, net.ints(0, top, left, 0, 0, bottom, right, 0)) if any(self.pads) else value

    def rolled(self, net: Net, value: str) -> str:
        top, bottom, left, right = self.pads if self.pad_first else (0, 0, 0, 0)
        sizes = (self.edges[0] + top + bottom, self.edges[1] + left + right)
        for axis, (shift, size) in enumerate(zip(self.shift, sizes, strict=True), 1):
            value = self.roll(net, value, axis, shift, size) if shift else value
        return value

    def cut(self, net: Net, value: str) -> str:
        top, bottom, left, right = self.pads
        sizes = (self.edges[0] + top + bottom, self.edges[1] + left + right)
        grid = [size // edge for size, edge in zip(sizes, self.window, strict=True)]
        edges = list(zip(self.window, grid, strict=True) if self.strided else zip(grid, self.window, strict=True))
        apart = net.reshape(value, -1, *edges[0], *edges[1], WIDTH)
        turned = net.turn(apart, 0, 2, 4, 1, 3, 5) if self.strided else net.turn(apart, 0, 1, 3, 2, 4, 5)
        return net.reshape(turned, -1, self.window[0] * self.window[1], WIDTH)

    def cut_map(self, net: Net, value: str) -> str:
        steps = [self.padded, self.rolled] if self.pad_first else [self.rolled, self.padded]
        for step in (*steps, self.cut):
            value = step(net, value)
        return value

    def model(self) -> onnx.ModelProto:
        net, value = self.start()
        net.output(self_attention(net, self.cut_map(net, value)), 3)
        return net.model()


def read(model: onnx.ModelProto) -> Window:
    (candidate,) = onnx_attn.inspect(model)["candidates"]
    assert candidate["status"] == "site", candidate
    return candidate["window"]


def expected(size: Sequence[int], shift: Sequence[int], grid: Sequence[int], kind: str = "window") -> dict[str, Any]:
    return {"size": list(size), "shift": list(shift), "grid": list(grid), "kind": kind, "padding": [[0, 0], [0, 0]]}


def unit_rows(net: Net, value: str) -> str:
    """`(B, 8, 8, E)` as `(B, 64, E)`: the place within 2 × 2 outermost, then that within 4 × 4, then which 4 × 4 it is."""
    apart = net.reshape(value, -1, 2, 2, 2, 2, 2, 2, WIDTH)
    return net.reshape(net.turn(apart, 0, 3, 6, 2, 5, 1, 4, 7), -1, 64, WIDTH)


def attend_units(net: Net, rows: str, length: int, name: str) -> str:
    """`(B, length, E)`, in four units that lie side by side on the last axis."""
    apart = net.turn(net.reshape(rows, -1, length // 4, 4, WIDTH), 0, 2, 1, 3)
    out = self_attention(net, net.reshape(apart, -1, length // 4, WIDTH), name=name)
    together = net.turn(net.reshape(out, -1, 4, length // 4, WIDTH), 0, 2, 1, 3)
    return net.op("Add", rows, net.reshape(together, -1, length, WIDTH))
