"""`out(attention(LayerNorm(x)))` written piece by piece, and what exact algebra may make of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from checks import assert_fused, assert_same
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Dim, Net
from onnx import numpy_helper

import onnx_attn

ROOT = HEAD_DIM**-0.5
ALL = ["constant-channel", "key-bias", "value-bias", "scale"]
MIXED = [name for name in ALL if name != "constant-channel"]
"""What is left where no LayerNorm comes before."""


class PreNorm:
    """A block whose pieces are written one by one; any of them can be replaced."""

    def __init__(self, opset: int = 17, dtype: Any = np.float32, lead: tuple[Dim, Dim] = (2, 5), width: int = WIDTH):
        self.net, self.width = Net(opset, dtype), width
        self.x = self.net.input("x", *lead, width)

    def norm(self, value: str | None = None, gamma: Any = None, beta: Any = None, **attributes: Any) -> str:
        """A LayerNorm with γ away from 1 and β away from 0. A weight may be a name, an array, or "" for no β."""
        net = self.net
        gamma = 1.0 + 0.5 * net.rng.standard_normal(self.width) if gamma is None else gamma
        beta = net.rng.standard_normal(self.width) if beta is None else beta
        weights = [each if isinstance(each, str) else net.const(each) for each in (gamma, beta)]
        return net.op("LayerNormalization", value or self.x, *[w for w in weights if w], **attributes)

    def layer(self, source: str, channels: int = CHANNELS, bias: bool = True) -> str:
        return self.net.linear(source, channels, width=self.width, bias=bias)

    def heads(self, source: str, biases: str = "qkv", kv_heads: int = HEADS) -> tuple[str, str, str]:
        counts = (HEADS, kv_heads, kv_heads)
        q, k, v = (
            self.net.split_heads(self.layer(source, count * HEAD_DIM, role in biases), count)
            for role, count in zip("qkv", counts, strict=True)
        )
        return q, k, v

    def attend(self, q: str, k: str, v: str, **hooks: Any) -> str:
        return self.net.sdpa(q, self.net.swap(k), v, **hooks)

    def out(self, attended: str, bias: bool = True) -> str:
        return self.net.linear(self.net.merge_heads(attended), self.width, width=CHANNELS, bias=bias)

    def block(self, source: str | None = None, biases: str = "qkv", **hooks: Any) -> str:
        return self.out(self.attend(*self.heads(source or self.x, biases), **hooks))

    def model(self, value: str, rank: int = 3) -> onnx.ModelProto:
        self.net.output(value, rank)
        return self.net.model()


def assert_applied(
    model: onnx.ModelProto, *names: str, inputs: dict[str, np.ndarray] | None = None, rtol: float = 1e-5
) -> onnx.ModelProto:
    """Just these identities are applied, and the numbers are the same; returns the fused model."""
    return assert_fused(model, inputs, rtol, packed=True, algebra=list(names))


def assert_sound(
    model: onnx.ModelProto, inputs: dict[str, np.ndarray] | None = None, rtol: float = 1e-5
) -> tuple[onnx.ModelProto, list[dict[str, Any]]]:
    """No site's proof fails, the numbers are the same, and nothing is computed twice; the fused model and its candidates."""
    result = onnx_attn.fuse(model)
    found = [candidate for candidate in result.report["candidates"] if candidate["status"] != "not_attention"]
    for candidate in found:
        assert candidate["code"] != "proof-failed", candidate["reason"]
        assert "max_rel" not in str(candidate["algebra_left"]), "planned, but its proof failed"
    onnx.checker.check_model(result.model, full_check=True)
    assert products(result.model) <= products(model)
    assert_same(model, result.model, inputs, rtol)
    return result.model, found


def assert_stays(
    model: onnx.ModelProto,
    name: str,
    because: str = "",
    inputs: dict[str, np.ndarray] | None = None,
    rtol: float = 1e-5,
) -> onnx.ModelProto:
    """The identity is not applied at any site, for this reason where one is given, and all is sound; the fused model."""
    fused, found = assert_sound(model, inputs, rtol)
    for candidate in found:
        assert name not in candidate["algebra"]
        assert because == "" or because in candidate["algebra_left"].get(name, ""), candidate
    return fused


def products(model: onnx.ModelProto) -> int:
    """Products with a matrix of weights."""
    matrices = {tensor.name for tensor in model.graph.initializer if len(tensor.dims) == 2}
    return sum(node.op_type in ("MatMul", "Gemm") and bool(matrices & set(node.input[:2])) for node in model.graph.node)


def stored(model: onnx.ModelProto, ending: str) -> np.ndarray | None:
    """The one weight whose name ends so."""
    found = [tensor for tensor in model.graph.initializer if tensor.name.endswith(ending)]
    assert len(found) <= 1
    return numpy_helper.to_array(found[0]) if found else None


def biases(fused: onnx.ModelProto) -> list[bool]:
    """Whether Q, K and V of one packed projection (equal widths) still have a bias added."""
    bias = stored(fused, "in_proj_bias")
    return [bias is not None and bool(part.any()) for part in np.split(np.zeros(3) if bias is None else bias, 3)]


def assert_constant_channel(fused: onnx.ModelProto) -> None:
    """γ = 1 and β = 0 but in one channel, and no bias behind it."""
    (norm,) = [node for node in fused.graph.node if node.op_type == "LayerNormalization"]
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in fused.graph.initializer}
    gamma, beta = (weights[name] for name in norm.input[1:])
    assert sorted(gamma) == [0.0] + [1.0] * (gamma.size - 1)
    np.testing.assert_array_equal(gamma + beta, np.ones_like(gamma))
    assert stored(fused, "in_proj_bias") is None
