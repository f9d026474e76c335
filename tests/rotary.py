"""Small attention blocks with rotary embeddings in many spellings, and near misses of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from graphs import HEAD_DIM, HEADS, WIDTH, Dim, Net
from onnx import TensorProto

import onnx_attn

LENGTH, BATCH = 5, 2
OPSET = 23
"""The first with the operator."""


@dataclass
class Rotation:
    """One rotary embedding as it is spelled.

    spelling: "turned" is `x·cos + rot(x)·sin`, "halves" joins `a·cos − b·sin` and `b·cos + a·sin`, "products" turns what was
    multiplied already, "operator" is the standard's own.
    tables: "stored", "looked up" at position_ids, "computed" from these, "given" as inputs, or "one by one" (GatherElements).
    miss: what is wrong with it.
    """

    kind: str = "half"
    dim: int = HEAD_DIM
    spelling: str = "turned"
    tables: str = "stored"
    transposed: bool = False
    wide: bool = False
    scale: float = 1.0
    miss: str = ""
    head_dim: int = HEAD_DIM

    def of(self, net: Net, x: str, other: str = "") -> str:
        """x `(B, N, S, H)`, or `(B, S, N, H)` where `transposed`, rotated. other: a tensor like it."""
        if self.spelling == "operator":
            partial = {"rotary_embedding_dim": self.dim} if self.dim < self.head_dim else {}
            cos, sin = self._tables(net, halves=True)
            return net.op("RotaryEmbedding", x, cos, sin, interleaved=int(self.kind == "interleaved"), **partial)
        sizes = net.ints(self.dim, self.head_dim - self.dim)
        rest = ""
        if self.dim < self.head_dim:
            x, rest = net.op("Split", x, sizes, outputs=2, axis=-1)
            other = net.op("Split", other, sizes, outputs=2, axis=-1)[0] if other else ""
        x, other = (net.op("Cast", each, to=TensorProto.FLOAT) if self.wide and each else each for each in (x, other))
        turned = getattr(self, f"_{self.spelling}")(net, x, other or x)
        turned = net.op("Cast", turned, to=net._type(None)) if self.wide else turned
        turned = turned if self.scale == 1.0 else net.scaled(turned, self.scale)
        rest = rest if self.scale == 1.0 or not rest else net.scaled(rest, self.scale)
        return net.op("Concat", turned, rest, axis=-1) if rest else turned

    def _turned(self, net: Net, x: str, other: str) -> str:
        cos, sin = self._wide(net, *self._tables(net, halves=False))
        source = other if self.miss == "another source" else x
        first, second = self._pair(net, source)
        if self.miss == "partner":
            second = self._pair(net, self._rolled(net, source))[1]
        signs = {"sign": (first, second), "both signs": (net.op("Neg", first), net.op("Neg", second))}
        below, above = signs.get(self.miss, (first, net.op("Neg", second)))
        turned = self._join(net, above, below)
        return net.op("Add", net.op("Mul", x, cos), net.op("Mul", sin, turned))

    def _halves(self, net: Net, x: str, other: str) -> str:
        cos, sin = self._wide(net, *self._tables(net, halves=True))
        first, second = self._pair(net, x)
        signs = ("Add", "Add") if self.miss == "sign" else ("Sub", "Add")
        real = net.op(signs[0], net.op("Mul", first, cos), net.op("Mul", second, sin))
        return self._join(net, real, net.op(signs[1], net.op("Mul", first, sin), net.op("Mul", second, cos)))

    def _products(self, net: Net, x: str, other: str) -> str:
        cos, sin = self._wide(net, *self._tables(net, halves=False))
        first, second = self._pair(net, net.op("Mul", x, sin))
        turned = self._join(net, second, net.op("Neg", first))
        return net.op("Sub", net.op("Mul", x, cos), turned)

    def _pair(self, net: Net, x: str) -> list[str]:
        if self.kind == "half":
            found: list[str] = net.op("Split", x, net.ints(self.dim // 2, self.dim // 2), outputs=2, axis=-1)
            return found
        bounds = net.ints(self.dim), net.ints(-1), net.ints(2)
        return [net.op("Slice", x, net.ints(start), *bounds) for start in (0, 1)]

    def _rolled(self, net: Net, x: str) -> str:
        first, rest = net.op("Split", x, net.ints(2, self.dim - 2), outputs=2, axis=-1)
        return net.op("Concat", rest, first, axis=-1)

    def _join(self, net: Net, first: str, second: str) -> str:
        if self.kind == "half":
            return net.op("Concat", first, second, axis=-1)
        apart = [net.op("Unsqueeze", each, net.ints(-1)) for each in (first, second)]
        return net.reshape(net.op("Concat", *apart, axis=-1), 0, 0, 0, self.dim)

    def _wide(self, net: Net, *tables: str) -> list[str]:
        """Beside heads."""
        return [net.op("Unsqueeze", table, net.ints(2 if self.transposed else 1)) for table in tables]

    def _tables(self, net: Net, halves: bool) -> list[str]:
        """cos and sin, `(B or 1, S, dim)`, of half as many channels where only halves are wanted."""
        angles = np.arange(64)[:, None] / 100 ** (np.arange(0, self.dim, 2) / self.dim)
        wide = angles if halves else self._doubled(angles)
        dtype = np.float32 if self.wide else None
        if self.miss == "tables not alike":
            wide[:, -1] = wide[:, 0]
        functions = ["Cos", "Sin"] if self.miss != "swapped" else ["Sin", "Cos"]
        numbers = [{"Cos": np.cos, "Sin": np.sin}[function](wide) for function in functions]
        if self.tables == "stored":
            batch = BATCH if self.spelling == "operator" else 1
            return [net.const(np.repeat(table[None, :LENGTH], batch, 0), dtype) for table in numbers]
        if self.tables == "given":
            shape = (BATCH, LENGTH, wide.shape[1])
            kind = f"{shape[2]}_{'wide' if self.wide else 'own'}"
            return [_once(net, f"{name}_{kind}", *shape, dtype=dtype) for name in ("cos", "sin")]
        positions = _once(net, "positions", BATCH, LENGTH, dtype=np.int64)
        if self.tables == "looked up":
            return [net.op("Gather", net.const(table, dtype), positions) for table in numbers]
        if self.tables == "one by one":
            return self._one_by_one(net, numbers, positions, dtype)
        frequencies = net.const(1 / 100 ** (np.arange(0, self.dim, 2) / self.dim), dtype)
        places = net.op("Cast", net.op("Unsqueeze", positions, net.ints(2)), to=net._type(dtype))
        found = net.op("Mul", places, frequencies)
        found = found if halves else self._doubled_value(net, found)
        return [net.op(function, found) for function in functions]

    def _one_by_one(self, net: Net, numbers: list[np.ndarray], positions: str, dtype: Any) -> list[str]:
        """cos and sin side by side in one table, each element picked by itself."""
        both = np.concatenate(numbers, -1)
        rows = net.op("Expand", net.op("Unsqueeze", positions, net.ints(2)), net.ints(1, 1, both.shape[1]))
        table = net.op("Expand", net.const(both[None], dtype), net.ints(BATCH, 1, 1))
        picked = net.op("GatherElements", table, rows, axis=1)
        found: list[str] = net.op("Split", picked, net.ints(*[both.shape[1] // 2] * 2), outputs=2, axis=-1)
        return found

    def _doubled(self, angles: np.ndarray) -> np.ndarray:
        return np.concatenate([angles, angles], -1) if self.kind == "half" else np.repeat(angles, 2, -1)

    def _doubled_value(self, net: Net, angles: str) -> str:
        stretched = self.miss == "tables not alike"
        second = net.op("Mul", angles, net.const(1.5, np.float32 if self.wide else None)) if stretched else angles
        if self.kind == "half":
            return net.op("Concat", angles, second, axis=-1)
        pair = [net.op("Unsqueeze", each, net.ints(-1)) for each in (angles, second)]
        return net.reshape(net.op("Concat", *pair, axis=-1), 0, 0, self.dim)


def _once(net: Net, name: str, *dims: int, dtype: Any = None) -> str:
    """A model input that is there once."""
    return name if name in {value.name for value in net.inputs} else net.input(name, *dims, dtype=dtype)


def block(
    query: Rotation | None, key: Rotation | None, dtype: Any = np.float32, past: bool = False, batch: Dim = BATCH
) -> onnx.ModelProto:
    """One site on `(B, S, WIDTH)`, Q and K rotated, K behind a past where there is one."""
    net = Net(opset=OPSET, dtype=dtype)
    x = net.input("x", batch, LENGTH, WIDTH)
    q, k = (_operand(net, x, rotation) for rotation in (query, key))
    v = net.split_heads(net.linear(x, HEADS * HEAD_DIM))
    if past:
        k, v = (
            net.op("Concat", net.input(f"past_{n}", BATCH, HEADS, 3, HEAD_DIM), t, axis=2)
            for n, t in (("k", k), ("v", v))
        )
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), v)), 3)
    return net.model()


def _operand(net: Net, x: str, rotation: Rotation | None) -> str:
    apart = [net.reshape(net.linear(x, HEADS * HEAD_DIM), 0, 0, HEADS, HEAD_DIM) for _ in range(2)]
    if rotation is None:
        return net.turn(apart[0], 0, 2, 1, 3)
    if rotation.transposed:
        return net.turn(rotation.of(net, *apart), 0, 2, 1, 3)
    return rotation.of(net, *(net.turn(each, 0, 2, 1, 3) for each in apart))


def behind_channels(rotation: Rotation) -> onnx.ModelProto:
    """One site of which the last channels of Q and K alone are rotated, those of K of one head for all and a layer's own."""
    net, still = Net(opset=OPSET), HEAD_DIM - rotation.dim
    x = net.input("x", BATCH, LENGTH, WIDTH)
    q = net.split_heads(net.linear(x, HEADS * HEAD_DIM))
    plain, turned = net.op("Split", q, net.ints(still, rotation.dim), outputs=2, axis=-1)
    q = net.op("Concat", plain, rotation.of(net, turned), axis=-1)
    one = rotation.of(net, net.split_heads(net.linear(x, rotation.dim), 1, rotation.dim))
    every = net.op("Expand", one, net.ints(BATCH, HEADS, LENGTH, rotation.dim))
    k = net.op("Concat", net.split_heads(net.linear(x, HEADS * still), HEADS, still), every, axis=-1)
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), net.split_heads(net.linear(x, HEADS * HEAD_DIM)))), 3)
    return net.model()


def shared(rotation: Rotation) -> onnx.ModelProto:
    """One site whose Q and K read the same tables."""
    net = Net(opset=OPSET)
    x = net.input("x", BATCH, LENGTH, WIDTH)
    made: dict[bool, list[str]] = {}
    tables = rotation._tables

    def once(net: Net, halves: bool) -> list[str]:
        if halves not in made:
            made[halves] = tables(net, halves)
        return made[halves]

    rotation._tables = once  # type: ignore[method-assign]
    q, k = (_operand(net, x, rotation) for _ in range(2))
    net.output(net.merge_heads(net.sdpa(q, net.swap(k), net.split_heads(net.linear(x, HEADS * HEAD_DIM)))), 3)
    return net.model()


def read(model: onnx.ModelProto) -> Any:
    (candidate,) = onnx_attn.inspect(model)["candidates"]
    return candidate["rotary"]
