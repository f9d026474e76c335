"""Values with named axes, the ways to move them about, and what exporters leave that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from graphs import Dim, Net
from hypothesis import strategies as st

Axes = tuple[tuple[str, ...], ...]
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
SILENT = ("seed", "order", "letters", "noise")
"""Choices that are not told."""


@dataclass
class Spelling:
    """One drawn graph. truth: what a report has to say of its site, as far as the graph tells it. expected: its first output,
    in float64. batch: the name of the batch's size, where it varies."""

    net: Net = field(repr=False)
    expected: np.ndarray = field(repr=False)
    inputs: dict[str, np.ndarray] = field(repr=False)
    truth: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    @property
    def model(self) -> onnx.ModelProto:
        return self.net.model()


@dataclass
class Value:
    name: str
    axes: Axes


class Values:
    """Draws, and moves values.

    b batch, n heads, s queries, l keys, h features of keys, v features of values, e width of the source. By default as many
    keys as queries: sizes tell nothing.
    """

    def __init__(self, draw: Any, near_miss: str | None):
        self.draw, self.near_miss = draw, near_miss
        self.told: list[str] = []
        self.dtype = np.dtype(self.choose("type", ["float32", "float32", "float32", "float16", "float64"]))
        self.opset = self.choose("opset", [11, 13, 17, 18, 20, 23])
        self.net = Net(self.opset, self.dtype)
        self.kv_heads = self.choose("kv heads", [4, 4, 4, 2, 1])
        keys = self.choose("keys", [5, 5, 7]) if near_miss is None else 5
        self.sizes = {"b": 2, "n": 4, "s": 5, "l": keys, "h": 12, "v": self.choose("value size", [8, 12]), "e": 10}
        self.varies = self.choose("batch varies", [False, False, True])
        self.rng = np.random.default_rng(self.choose("seed", range(100)))
        self.inputs: dict[str, np.ndarray] = {}

    def choose(self, what: str, options: Sequence[Any]) -> Any:
        found = self.draw(st.sampled_from(list(options)))
        if what not in SILENT:
            self.told.append(f"{what}: {found}")
        return found

    # Numbers

    def numbers(self, *shape: int) -> np.ndarray:
        """Random numbers of the site's type."""
        return self.rng.standard_normal(shape).astype(self.dtype)

    def given(self, name: str, numbers: np.ndarray, axes: Axes) -> Value:
        """An input of the model."""
        self.inputs[name] = numbers
        dims: list[Dim] = [
            "batch" if axis == ("b",) and self.varies else size for axis, size in zip(axes, numbers.shape, strict=True)
        ]
        if self.varies and any("b" in axis and len(axis) > 1 for axis in axes):
            dims = [None if "b" in axis else size for axis, size in zip(axes, numbers.shape, strict=True)]
        return Value(self.net.input(name, *dims, dtype=numbers.dtype), axes)

    # Movement

    def size(self, axis: Sequence[str]) -> int:
        return int(np.prod([self.sizes[a] for a in axis], dtype=np.int64)) if axis else 1

    def shape(self, axes: Axes) -> list[int]:
        """The operand of a Reshape: −1 for the batch where it varies."""
        return [-1 if self.varies and "b" in axis else self.size(axis) for axis in axes]

    def reshape(self, value: Value, axes: Axes) -> Value:
        if value.axes == axes:
            return value
        return Value(self.noise(self.net.reshape(value.name, *self.shape(axes))), axes)

    def arrange(self, value: Value, axes: Axes) -> Value:
        """Bring a value into other axes: apart, turned, together."""
        wanted = [a for axis in axes for a in axis]
        flat: Axes = tuple((a,) for axis in value.axes for a in axis)
        value = self.reshape(value, flat)
        order = [flat.index((a,)) for a in wanted]
        if order != sorted(order):
            if self.opset >= 12 and self.choose("turn", ["Transpose", "Transpose", "Einsum"]) == "Einsum":
                letters = self.letters({a for (a,) in flat})
                equation = "".join(letters[a] for (a,) in flat) + " -> " + "".join(letters[a] for a in wanted)
                value = Value(self.net.op("Einsum", value.name, equation=equation), tuple((a,) for a in wanted))
            else:
                value = Value(self.net.turn(value.name, *order), tuple((a,) for a in wanted))
        return self.reshape(value, axes)

    def apart(self, value: Value) -> Value:
        """Every axis by itself."""
        return self.reshape(value, tuple((a,) for axis in value.axes for a in axis))

    def letters(self, axes: set[str]) -> dict[str, str]:
        drawn = self.draw(st.permutations(LETTERS))
        return dict(zip(sorted(axes), drawn, strict=False))

    def order(self, axes: Sequence[str]) -> tuple[str, ...]:
        return tuple(self.draw(st.permutations(list(axes))))

    def noise(self, name: str) -> str:
        """What changes nothing: exporters and optimizers leave it."""
        kind = self.choose("noise", ["", "", "", "", "", "Identity", "one", "zero", "cast"])
        if kind == "Identity":
            return self.net.op("Identity", name)
        if kind == "one":
            return self.net.op("Mul", name, self.net.const(1.0))
        if kind == "zero":
            return self.net.op("Add", self.net.const(0.0), name)
        return self.net.op("Cast", name, to=self.element) if kind == "cast" else name

    @property
    def element(self) -> int:
        return onnx.helper.np_dtype_to_tensor_dtype(self.dtype)

    def reduced(self, op: str, name: str, axis: int, since: int) -> str:
        """A reduction whose axes are an input from some opset on."""
        if self.opset >= since:
            return self.net.op(op, name, self.net.ints(axis))
        return self.net.op(op, name, axes=[axis])

    def split(self, name: str, axis: int, sizes: Sequence[int]) -> list[str]:
        """Pieces along an axis, by Split or by Slice."""
        if self.choose("cut", ["Split", "Slice"]) == "Split":
            if self.opset >= 13:
                return list(self.net.op("Split", name, self.net.ints(*sizes), outputs=len(sizes), axis=axis))
            return list(self.net.op("Split", name, outputs=len(sizes), axis=axis, split=list(sizes)))
        ends = np.cumsum(sizes).tolist()
        starts = [0, *ends[:-1]]
        return [
            self.net.op("Slice", name, self.net.ints(start), self.net.ints(end), self.net.ints(axis))
            for start, end in zip(starts, ends, strict=True)
        ]


def arranged(numbers: np.ndarray, flat: Sequence[str], axes: Axes) -> np.ndarray:
    """Numbers over `flat` axes (some of size 1 that `axes` leaves out) as `axes` has them."""
    wanted = [a for axis in axes for a in axis]
    numbers = numbers.reshape([numbers.shape[i] for i, a in enumerate(flat) if a in wanted])
    left = [a for a in flat if a in wanted]
    numbers = numbers.transpose([left.index(a) for a in wanted])
    shape, start = [], 0
    for axis in axes:
        shape.append(int(np.prod(numbers.shape[start : start + len(axis)], dtype=np.int64)))
        start += len(axis)
    return np.ascontiguousarray(numbers.reshape(shape))
