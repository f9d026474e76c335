"""One attention block with a knob for each way of spelling it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from graphs import HEAD_DIM, HEADS, WIDTH, Dim, Net
from onnx import helper


@dataclass(frozen=True)
class Knobs:
    """How one attention block is spelled. `biases` names the operands whose layer has one."""

    opset: int = 17
    dtype: str = "float32"
    layout: str = "BNSH"  # heads3d, sequence_first
    projection: str = "matmul"  # gemm, packed, none
    biases: str = "qkv"
    scale: str = "scores_mul"  # scores_div, q_before, q_after, k, sqrt_both, none
    mask: str = "none"  # additive, keep, fill, two
    cast: bool = False
    guard: bool = False
    dropout: str = "none"  # plain, mode_false
    dynamic: tuple[str, ...] = ()  # batch, sequence
    batch: int = 2
    sequence: int = 5
    heads: int = HEADS
    head_dim: int = HEAD_DIM
    value_dim: int = HEAD_DIM
    key_in_two_steps: bool = False
    alpha: float = 1.0
    beta: float = 1.0
    trans_b: bool = True
    packed_order: str = "three_h_d"  # h_three_d, split
    norm: str = "none"  # plain, no_beta, turned: a LayerNorm before the projections
    out: str = "none"  # matmul, no_bias, gemm: a layer behind the merged heads
    seed: int = 0
    named: bool = True


class Block:
    """Writes the block that `Knobs` describe."""

    def __init__(self, knobs: Knobs):
        self.knobs = knobs
        self.net = Net(knobs.opset, knobs.dtype, knobs.seed, knobs.named)
        self.b: Dim = "batch" if "batch" in knobs.dynamic else knobs.batch
        self.s: Dim = "sequence" if "sequence" in knobs.dynamic else knobs.sequence
        self.x = ""

    def model(self) -> onnx.ModelProto:
        net, knobs = self.net, self.knobs
        lead = (self.s, self.b) if knobs.layout == "sequence_first" else (self.b, self.s)
        if knobs.projection != "none":
            self.x = self._normalised(net.input("x", *lead, WIDTH))
        q, k, v = self._packed(lead) if knobs.projection == "packed" else (self._operand(role, lead) for role in "qkv")
        rank = 4 if knobs.layout == "BNSH" else 3
        key = k if knobs.key_in_two_steps and rank == 4 else net.swap(k, rank)
        if knobs.key_in_two_steps and rank == 4:
            key = net.turn(net.turn(k, 0, 2, 1, 3), 0, 2, 3, 1)
        key = net.scaled(key, self.factor) if knobs.scale == "k" else key
        key = net.scaled(key, self.factor**0.5) if knobs.scale == "sqrt_both" else key
        attended = net.sdpa(q, key, v, self._scores, self._probabilities)
        net.output(self._projected_out(self._merged(attended, lead)), 3)
        return net.model()

    def _normalised(self, x: str) -> str:
        net, knobs = self.net, self.knobs
        if knobs.norm == "none":
            return x
        weights = [net.weight(WIDTH)] if knobs.norm == "no_beta" else [net.weight(WIDTH), net.weight(WIDTH)]
        normalised = net.op("LayerNormalization", x, *weights)
        return net.turn(net.turn(normalised, 1, 0, 2), 1, 0, 2) if knobs.norm == "turned" else normalised

    def _projected_out(self, merged: str) -> str:
        net, knobs, channels = self.net, self.knobs, self.knobs.heads * self.knobs.value_dim
        if knobs.out == "none":
            return merged
        if knobs.out != "gemm":
            return net.linear(merged, WIDTH, width=channels, bias=knobs.out == "matmul")
        flat = net.reshape(merged, -1, channels)
        weights = (net.weight(WIDTH, channels), net.weight(WIDTH))
        made = net.op("Gemm", flat, *weights, transB=1, alpha=knobs.alpha, beta=knobs.beta)
        return net.reshape(made, (merged, 0), (merged, 1), WIDTH)

    @property
    def factor(self) -> float:
        return self.knobs.head_dim**-0.5

    def _layer(self, role: str, lead: tuple[Dim, Dim], channels: int) -> str:
        """The output `(…, C)` of one linear layer."""
        net, knobs, bias = self.net, self.knobs, role in self.knobs.biases
        if knobs.projection != "gemm":
            return net.linear(self.x, channels, bias=bias)
        weight = net.weight(*((channels, WIDTH) if knobs.trans_b else (WIDTH, channels)))
        given = [net.reshape(self.x, -1, WIDTH), weight, *([net.weight(channels)] if bias else [])]
        flat = net.op("Gemm", *given, transB=int(knobs.trans_b), alpha=knobs.alpha, beta=knobs.beta)
        return net.reshape(flat, *self._sizes(lead), channels)

    def _sizes(self, lead: tuple[Dim, Dim]) -> list[int | tuple[str, int]]:
        return [dim if isinstance(dim, int) else (self.x, axis) for axis, dim in enumerate(lead)]

    def _operand(self, role: str, lead: tuple[Dim, Dim]) -> str:
        size = self.knobs.value_dim if role == "v" else self.knobs.head_dim
        channels = self.knobs.heads * size
        if self.knobs.projection == "none":
            layer = self.net.input(role, *lead, channels)
            self.x = self.x or layer
        else:
            layer = self._layer(role, lead, channels)
        if role == "q" and self.knobs.scale == "q_before":
            layer = self.net.scaled(layer, self.factor)
        found = self._heads(layer, size)
        if role == "q" and self.knobs.scale in ("q_after", "sqrt_both"):
            found = self.net.scaled(found, self.factor if self.knobs.scale == "q_after" else self.factor**0.5)
        return found

    def _heads(self, layer: str, size: int) -> str:
        net, heads = self.net, self.knobs.heads
        if self.knobs.layout == "sequence_first":
            return net.turn(net.reshape(layer, 0, -1, size), 1, 0, 2)
        found = net.split_heads(layer, heads, size)
        return found if self.knobs.layout == "BNSH" else net.reshape(found, -1, self._tokens(), size)

    def _tokens(self) -> int | tuple[str, int]:
        return self.s if isinstance(self.s, int) else (self.x, 1)

    def _packed(self, lead: tuple[Dim, Dim]) -> list[str]:
        """One layer for all three; `(three h d)` and `(h three d)` are for 4-D heads."""
        net, knobs = self.net, self.knobs
        heads, size = knobs.heads, knobs.head_dim
        layer = net.linear(self.x, 3 * heads * size, bias=bool(knobs.biases))
        if knobs.packed_order == "split" or knobs.layout != "BNSH":
            parts = net.op("Split", layer, net.ints(*[heads * size] * 3), outputs=3, axis=-1)
            found = [self._heads(part, size) for part in parts]
        elif knobs.packed_order == "three_h_d":
            turned = net.turn(net.reshape(layer, 0, 0, 3, heads, size), 2, 0, 3, 1, 4)
            found = [net.op("Gather", turned, net.const(i, np.int64), axis=0) for i in range(3)]
        else:
            turned = net.turn(net.reshape(layer, 0, 0, heads, 3, size), 3, 0, 2, 1, 4)
            found = [
                net.op("Squeeze", part, net.ints(0)) for part in net.op("Split", turned, net.ints(1, 1, 1), outputs=3)
            ]
        if knobs.scale in ("q_before", "q_after", "sqrt_both"):
            found[0] = net.scaled(found[0], self.factor**0.5 if knobs.scale == "sqrt_both" else self.factor)
        return found

    def _scores(self, scores: str) -> str:
        net, knobs = self.net, self.knobs
        if knobs.scale == "scores_mul":
            scores = net.scaled(scores, self.factor)
        elif knobs.scale == "scores_div":
            scores = net.op("Div", scores, net.const(1 / self.factor))
        per_batch = (self.b, 1) if knobs.layout == "BNSH" else (1,)
        if knobs.mask in ("additive", "two"):
            scores = net.op("Add", scores, net.input("mask", *per_batch, self.s, self.s))
        if knobs.mask in ("keep", "fill", "two"):
            allowed = net.input("allowed", *per_batch, 1, self.s, dtype=bool)
            fill = net.const(-1e4)
            scores = net.op("Where", allowed, *((fill, scores) if knobs.mask == "fill" else (scores, fill)))
        return net.op("Cast", scores, to=onnx.TensorProto.FLOAT) if knobs.cast else scores

    def _probabilities(self, found: str) -> str:
        net, knobs = self.net, self.knobs
        if knobs.guard:
            found = net.op("Where", net.op("IsNaN", found), net.const(0, np.float32 if knobs.cast else None), found)
        if knobs.cast:
            found = net.op("Cast", found, to=helper.np_dtype_to_tensor_dtype(net.dtype))
        if knobs.dropout == "plain":
            found = net.op("Dropout", found)
        elif knobs.dropout == "mode_false":
            found = net.op("Dropout", found, net.const(0.5, np.float32), net.const(False, bool))
        return found

    def _merged(self, attended: str, lead: tuple[Dim, Dim]) -> str:
        net, knobs = self.net, self.knobs
        channels = knobs.heads * knobs.value_dim
        if knobs.layout == "sequence_first":
            return net.reshape(net.turn(attended, 1, 0, 2), 0, *self._sizes(lead)[1:], channels)
        if knobs.layout == "heads3d":
            attended = net.reshape(attended, -1, knobs.heads, self._tokens(), knobs.value_dim)
        return net.merge_heads(attended, channels)
