"""Hand-made blocks of windowed attention: out of the map, attended to, back, a residual, an MLP; and a hook at every place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from checks import assert_same, feeds, run
from graphs import CHANNELS, WIDTH, Net, self_attention
from windows import Block

import onnx_attn

Hook = Callable[[Net, str], str]
PLACES = "x normed rolled windows attended landed added hidden out".split()


@dataclass
class Residual(Block):
    """`x (B, H, W, E)`, whole blocks of a transformer on it, and what comes out, once more through an activation.

    norm: "front", "behind" or "none". layer: of the attention's result, "MatMul" or "Gemm". hooks: by place, what is done to the
    value there. rows: the map comes as `(B, H·W, E)`. blocks: how many follow each other, every second one shifted as told.
    """

    norm: str = "front"
    mlp: bool = True
    layer: str = "MatMul"
    rows: bool = False
    blocks: int = 1
    opset: int = 17
    dtype: Any = np.float32
    named: bool = True
    hooks: Mapping[str, Hook] = field(default_factory=dict)

    def hook(self, net: Net, place: str, value: str) -> str:
        assert set(self.hooks) <= set(PLACES)
        return self.hooks[place](net, value) if place in self.hooks else value

    def normed(self, net: Net, value: str) -> str:
        return net.op("LayerNormalization", value, net.weight(WIDTH), net.weight(WIDTH), axis=-1)

    @property
    def sizes(self) -> tuple[int, int]:
        top, bottom, left, right = self.pads
        return self.edges[0] + top + bottom, self.edges[1] + left + right

    def uncut(self, net: Net, value: str) -> str:
        grid = [size // edge for size, edge in zip(self.sizes, self.window, strict=True)]
        apart = net.reshape(value, -1, *grid, *self.window, WIDTH)
        perm = (0, 3, 1, 4, 2, 5) if self.strided else (0, 1, 3, 2, 4, 5)
        return net.reshape(net.turn(apart, *perm), -1, *self.sizes, WIDTH)

    def unrolled(self, net: Net, value: str) -> str:
        sizes = self.sizes if self.pad_first else self.edges
        for axis, (shift, size) in enumerate(zip(self.shift, sizes, strict=True), 1):
            value = self.roll(net, value, axis, size - shift, size) if shift else value
        return value

    def unpadded(self, net: Net, value: str) -> str:
        top, _, left, _ = self.pads
        ends = net.ints(top + self.edges[0], left + self.edges[1])
        return net.op("Slice", value, net.ints(top, left), ends, net.ints(1, 2)) if any(self.pads) else value

    def attention(self, net: Net, value: str) -> str:
        for step in (self.padded, self.rolled) if self.pad_first else (self.rolled, self.padded):
            value = step(net, value)
        windows = self.hook(net, "windows", self.cut(net, self.hook(net, "rolled", value)))
        if self.layer == "MatMul":
            out = self_attention(net, windows, name=f"softmax_{len(net.nodes)}")
        else:
            q, k, v = (net.split_heads(net.linear(windows, CHANNELS)) for _ in range(3))
            merged = net.merge_heads(net.sdpa(q, net.swap(k), v, name=f"softmax_{len(net.nodes)}"))
            out = net.op(
                "Gemm", net.reshape(merged, -1, CHANNELS), net.weight(CHANNELS, WIDTH), net.weight(WIDTH), alpha=0.7
            )
        return self.uncut(net, self.hook(net, "attended", out))

    def landed(self, net: Net, value: str) -> str:
        value = self.attention(net, value)
        for step in (self.unrolled, self.unpadded) if self.pad_first else (self.unpadded, self.unrolled):
            value = step(net, value)
        return value

    def whole(self, net: Net, x: str) -> str:
        x = self.hook(net, "x", x)
        value = self.normed(net, x) if self.norm == "front" else x
        value = self.hook(net, "normed", value)
        value = net.reshape(value, -1, *self.edges, WIDTH) if self.rows else value
        value = self.landed(net, value)
        value = net.reshape(value, -1, self.edges[0] * self.edges[1], WIDTH) if self.rows else value
        value = self.hook(net, "landed", value)
        value = self.normed(net, value) if self.norm == "behind" else value
        value = self.hook(net, "added", net.op("Add", x, value))
        return self.hook(net, "out", self.with_mlp(net, value) if self.mlp else value)

    def with_mlp(self, net: Net, value: str) -> str:
        inner = self.normed(net, value) if self.norm == "front" else value
        inner = self.hook(net, "hidden", net.op("Relu", net.linear(inner, 2 * WIDTH)))
        inner = net.linear(inner, WIDTH, width=2 * WIDTH)
        inner = self.normed(net, inner) if self.norm == "behind" else inner
        return net.op("Add", value, inner)

    def begin(self) -> tuple[Net, str]:
        net = Net(opset=self.opset, dtype=self.dtype, named=self.named)
        shape = (self.edges[0] * self.edges[1],) if self.rows else self.edges
        return net, net.input("picture", self.batch, *shape, WIDTH)

    def model(self) -> onnx.ModelProto:
        net, x = self.begin()
        shift = self.shift
        for number in range(self.blocks):
            self.shift = (0, 0) if self.blocks > 1 and number % 2 == 0 else shift
            x = self.whole(net, x)
        self.shift = shift
        net.output(net.op("Sigmoid", x), 3 if self.rows else 4)
        return net.model()


def calls(model: onnx.ModelProto) -> list[str]:
    """The functions of movement that a model calls, in order, without their sizes."""
    found = [node.op_type for node in model.graph.node if node.domain == "onnx_attn"]
    return [name.partition("_")[0] for name in found if name.startswith("Window")]


def operators(model: onnx.ModelProto, *names: str) -> int:
    return sum(node.op_type in names for node in model.graph.node)


def ordered(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, list[bool]]:
    """The model fused, which computes the same under every old name; and by site, whether its block is in window order."""
    result = onnx_attn.fuse(model, **options)
    sites = [candidate for candidate in result.report["candidates"] if candidate["status"] == "site"]
    assert not [site["changes_left"] for site in sites if site["changes_left"]]
    onnx.checker.check_model(result.model, full_check=True)
    assert_same(model, result.model, feeds(model, {"batch": 5}))
    assert_old_names_hold_old_numbers(model, result.model, feeds(model, {"batch": 2}))
    named = [node.name for node in result.model.graph.node if node.name]
    before = [node.name for node in model.graph.node if node.name]
    assert len(named) == len(set(named)) or len(before) != len(set(before))
    return result.model, ["tokens-first" in site["changes"] for site in sites]


def assert_old_names_hold_old_numbers(
    before: onnx.ModelProto, after: onnx.ModelProto, inputs: Mapping[str, np.ndarray]
) -> None:
    made = [{name for node in model.graph.node for name in node.output if name} for model in (before, after)]
    shared = sorted(made[0] & made[1])
    values = [run(watched(model, shared), dict(inputs)) for model in (before, after)]
    for a, b in zip(*values, strict=True):
        # The mean of what was centred before is nothing but rounding.
        largest = np.abs(a[np.isfinite(a)].astype(np.float64)).max(initial=1.0)
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * largest)


def watched(model: onnx.ModelProto, values: Sequence[str]) -> onnx.ModelProto:
    """The same model with more outputs."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    have = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in values if name not in have)
    return copy


def inside(model: onnx.ModelProto) -> list[str]:
    """The operators that work in window order: they follow from a partition and lead to a reverse."""
    nodes = list(model.graph.node)
    entered = {name for node in nodes if node.op_type.startswith("WindowPartition") for name in node.output}
    following = []
    for node in nodes:
        if not entered.isdisjoint(node.input) and not node.op_type.startswith("WindowReverse"):
            entered.update(node.output)
            following.append(node)
    left = {name for node in nodes if node.op_type.startswith("WindowReverse") for name in node.input}
    found = []
    for node in reversed(following):
        if not left.isdisjoint(node.output):
            left.update(node.input)
            found.append(node.op_type)
    return found
