"""Hand-made attention graphs: a small graph writer, and the few graphs that many traps start from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

Dim = int | str | None
Step = Callable[[str], str]

HEADS, HEAD_DIM, WIDTH = 2, 24, 20
CHANNELS = HEADS * HEAD_DIM
"""1/√24 is no power of two, and the source's width is not heads · head size."""


def same(value: str) -> str:
    return value


class Net:
    """A graph under construction. Values are names; `op` appends a node and returns its output's name."""

    def __init__(self, opset: int = 17, dtype: Any = np.float32, seed: int = 0, named: bool = True):
        self.opset, self.dtype, self.named = opset, np.dtype(dtype), named
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def input(self, name: str, *dims: Dim, dtype: Any = None) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, self._type(dtype), dims))
        return name

    def output(self, value: str, rank: int = 4, dtype: Any = None) -> None:
        self.outputs.append(helper.make_tensor_value_info(value, self._type(dtype), [None] * rank))

    def const(self, value: Any, dtype: Any = None, name: str | None = None) -> str:
        name = name or f"const_{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.asarray(value, dtype or self.dtype), name))
        return name

    def ints(self, *values: int) -> str:
        return self.const(values, np.int64)

    def weight(self, *shape: int, name: str | None = None) -> str:
        return self.const(self.rng.standard_normal(shape) / np.sqrt(WIDTH), name=name)

    def op(
        self, op: str, *inputs: str, outputs: int = 1, name: str | None = None, domain: str = "", **attrs: Any
    ) -> Any:
        number = len(self.nodes)
        produced = [f"{op}_{number}_{i}_out" for i in range(outputs)]
        label = (name or f"{op}_{number}") if self.named else ""
        self.nodes.append(helper.make_node(op, inputs, produced, name=label, domain=domain or None, **attrs))
        return produced[0] if outputs == 1 else produced

    def reshape(self, value: str, *dims: int | tuple[str, int]) -> str:
        """Dimensions are numbers, or `(tensor, axis)` for a size that is asked for at run time."""
        if all(isinstance(dim, int) for dim in dims):
            return self.op("Reshape", value, self.ints(*dims))  # type: ignore[arg-type]
        parts = [
            self.ints(dim) if isinstance(dim, int) else self.op("Gather", self.op("Shape", dim[0]), self.ints(dim[1]))
            for dim in dims
        ]
        return self.op("Reshape", value, self.op("Concat", *parts, axis=0))

    def turn(self, value: str, *perm: int) -> str:
        return self.op("Transpose", value, perm=perm)

    def linear(
        self, value: str, channels: int, *, width: int = WIDTH, bias: bool = True, weight: str | None = None
    ) -> str:
        product = self.op("MatMul", value, weight or self.weight(width, channels))
        return self.op("Add", product, self.weight(channels)) if bias else product

    def split_heads(self, value: str, heads: int = HEADS, size: int = HEAD_DIM) -> str:
        return self.turn(self.reshape(value, 0, 0, heads, size), 0, 2, 1, 3)

    def merge_heads(self, value: str, channels: int = HEADS * HEAD_DIM) -> str:
        return self.reshape(self.turn(value, 0, 2, 1, 3), 0, 0, channels)

    def swap(self, value: str, rank: int = 4) -> str:
        """Exchange the last two axes."""
        return self.turn(value, *range(rank - 2), rank - 1, rank - 2)

    def scaled(self, value: str, factor: float = HEAD_DIM**-0.5) -> str:
        return self.op("Mul", value, self.const(factor))

    def sdpa(
        self,
        q: str,
        kt: str,
        v: str,
        scores: Step | None = None,
        probabilities: Step = same,
        axis: int = -1,
        **softmax: Any,
    ) -> str:
        """`P·V` with hooks on the scores (by default the scale) and on the probabilities."""
        logits = (scores or self.scaled)(self.op("MatMul", q, kt))
        found = self.op("Softmax", logits, **{"axis": axis, "name": "softmax"} | softmax)
        return self.op("MatMul", probabilities(found), v)

    def model(self, functions: Sequence[onnx.FunctionProto] = (), **opsets: int) -> onnx.ModelProto:
        imports = {"": self.opset, **{domain.replace("_", "."): version for domain, version in opsets.items()}}
        graph = helper.make_graph(self.nodes, "hand_made", self.inputs, self.outputs, self.weights)
        return helper.make_model(
            graph,
            ir_version=8 if self.opset < 19 else 10,
            functions=functions,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in imports.items()],
        )

    def _type(self, dtype: Any) -> int:
        return helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))


def heads_in(net: Net, batch: Dim = 2, queries: Dim = 5, keys: Dim = 5) -> tuple[str, str, str]:
    """Q, K turned and V, straight from graph inputs `(B, N, S, H)`."""
    q = net.input("q", batch, HEADS, queries, HEAD_DIM)
    k = net.input("k", batch, HEADS, keys, HEAD_DIM)
    return q, net.swap(k), net.input("v", batch, HEADS, keys, HEAD_DIM)


def small_site(**knobs: Any) -> onnx.ModelProto:
    """One site on graph inputs; `scores` and `probabilities` take the Net and a value and give a value."""
    net = Net(opset=knobs.get("opset", 17), dtype=knobs.get("dtype", np.float32))
    hooks = {
        hook: (lambda value, f=knobs[hook]: f(net, value)) for hook in ("scores", "probabilities") if hook in knobs
    }
    q, kt, v = heads_in(net, *knobs.get("sizes", (2, 5, 5)))
    net.output(net.sdpa(q, kt, v, axis=knobs.get("axis", -1), **hooks))
    return net.model()


def self_attention(net: Net, source: str, name: str = "softmax") -> str:
    """A plain block on `(B, S, WIDTH)`: three biased layers, the site, and the output layer back to that width."""
    q, k, v = (net.split_heads(net.linear(source, HEADS * HEAD_DIM)) for _ in range(3))
    merged = net.merge_heads(net.sdpa(q, net.swap(k), v, name=name))
    return net.linear(merged, WIDTH, width=HEADS * HEAD_DIM)


class Three:
    """A 4-D block whose three layers are written one by one; any of them can be replaced."""

    def __init__(self, opset: int = 17):
        self.net = Net(opset)
        self.x = self.net.input("x", 2, 5, WIDTH)

    def layer(self, source: str | None = None, weight: str | None = None) -> str:
        return self.net.linear(source or self.x, CHANNELS, weight=weight)

    def finish(
        self, q: str | None = None, k: str | None = None, v: str | None = None, split: bool = True
    ) -> onnx.ModelProto:
        """The missing layers, the head split (unless Q, K and V have heads already) and the site."""
        net = self.net
        found = [given or self.layer() for given in (q, k, v)]
        if split:
            found = [net.split_heads(value) for value in found]
        net.output(net.merge_heads(net.sdpa(found[0], net.swap(found[1]), found[2])), 3)
        return net.model()
