"""Q, K and V: straight from inputs or by layers, one for all or one each, their heads in any order and shared in any way."""

from __future__ import annotations

import numpy as np

from spelling.values import Axes, Value, Values, arranged

ROLES = {"q": ("s", "h"), "k": ("l", "h"), "v": ("l", "v")}
"""The axis of rows and that of features of each."""
Made = tuple[Value, np.ndarray]
"""A value, and its numbers as `b n rows features` in float64."""


class Operands(Values):
    """Writes Q, K and V."""

    def operands(self) -> dict[str, Made]:
        """Q, K and V with the heads that they have of their own; `projection` says how they came about."""
        self.cross = self.sizes["l"] != self.sizes["s"] or self.choose("cross", [True, False])
        kinds = ["inputs", "layers", "layers", "Gemm", "no biases", "packed" if not self.cross else "kv packed"]
        # ONNX Runtime has no convolution in double precision.
        kinds += ["Conv"] if self.dtype != np.float64 else []
        kind = self.choose("projection", kinds)
        self.projection = {"inputs": "none", "packed": "packed", "kv packed": "kv_packed"}.get(kind, "triplet")
        if kind == "inputs":
            return {role: self.from_outside(role) for role in ROLES}
        if kind == "packed":
            return self.packed("qkv")
        if kind == "kv packed":
            return {"q": self.projected("q", "layers")} | self.packed("kv")
        return {role: self.projected(role, kind) for role in ROLES}

    def heads(self, role: str) -> int:
        return 4 if role == "q" else self.kv_heads

    def from_outside(self, role: str) -> Made:
        rows, features = ROLES[role]
        axes: Axes = self.choose(
            f"input of {role}",
            [
                (("b",), ("n",), (rows,), (features,)),
                (("b",), (rows,), ("n", features)),
                ((rows,), ("b",), ("n", features)),
                (("b", "n"), (rows,), (features,)),
                (("b",), ("n", features), (rows,)),
                (("b",), (rows,), ("n",), (features,)),
            ],
        )
        if self.varies and axes[0] == ("b", "n"):
            # What no name says is no size: an input has the batch as an axis of its own.
            axes = (("b",), ("n", features), (rows,))
        heads = self.heads(role)
        if heads == 1:
            axes = tuple(tuple(a for a in axis if a != "n") for axis in axes if axis != ("n",))
        numbers = self.numbers(self.sizes["b"], heads, self.sizes[rows], self.sizes[features])
        return self.given(role, arranged(numbers, ("b", "n", rows, features), axes), axes), numbers.astype(np.float64)

    def source(self, rows: str) -> Value:
        name = "x" if rows == "s" or not self.cross else "y"
        axes: Axes = (("b",), (rows,), ("e",))
        if name in self.inputs:
            return Value(name, axes)
        return self.given(name, self.numbers(*(self.sizes[a] for (a,) in axes)), axes)

    def weights(self, width: int, bias: bool = True) -> tuple[np.ndarray, np.ndarray]:
        scaled = self.numbers(self.sizes["e"], width) / np.asarray(3, self.dtype)
        return scaled, self.numbers(width) if bias else np.zeros(width, self.dtype)

    def result(self, source: str, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        return self.inputs[source].astype(np.float64) @ weight.astype(np.float64) + bias.astype(np.float64)

    def projected(self, role: str, kind: str) -> Made:
        """A layer of the operand's own."""
        rows, features = ROLES[role]
        heads, size = self.heads(role), self.sizes[features]
        source = self.source(rows)
        weight, bias = self.weights(heads * size, kind != "no biases")
        numbers = self.result(source.name, weight, bias)
        numbers = numbers.reshape(*numbers.shape[:2], heads, size).transpose(0, 2, 1, 3)
        channels = ("n", features) if heads > 1 else (features,)
        return self.layer(source, rows, channels, weight, bias, kind), numbers

    def layer(
        self, source: Value, rows: str, channels: tuple[str, ...], weight: np.ndarray, bias: np.ndarray, kind: str
    ) -> Value:
        net = self.net
        first = self.choose("rows", [("b", rows), (rows, "b")])
        if kind == "Conv":
            value = self.arrange(source, (("b",), ("e",), (rows,)))
            made = net.op("Conv", value.name, net.const(weight.T[:, :, None]), net.const(bias), kernel_shape=[1])
            return Value(made, (("b",), channels, (rows,)))
        if kind == "Gemm":
            value = self.arrange(source, (first, ("e",)))
            turned = self.choose("letters", [0, 1])
            stored = net.const(weight.T if turned else weight)
            return Value(net.op("Gemm", value.name, stored, net.const(bias), transB=turned), (first, channels))
        value = self.arrange(source, (*((a,) for a in first), ("e",)))
        made = net.op("MatMul", value.name, net.const(weight))
        if kind != "no biases":
            pair = (made, net.const(bias))
            made = net.op("Add", *(pair if self.choose("order", [0, 1]) else pair[::-1]))
        return Value(made, (*((a,) for a in first), channels))

    def packed(self, roles: str) -> dict[str, Made]:
        """One layer for several operands, cut on its channels, or on an axis of their own where they are alike."""
        rows = "s" if "q" in roles else "l"
        widths = {role: self.heads(role) * self.sizes[ROLES[role][1]] for role in roles}
        weight, bias = self.weights(sum(widths.values()))
        source = self.source(rows)
        alike = len(set(widths.values())) == 1 and self.kv_heads == 4
        kind = self.choose("packed as", ["last"] + (["own axis", "heads outside"] if alike else []))
        numbers = self.result(source.name, weight, bias)
        self.sizes |= {"t": len(roles), "w": sum(widths.values())}
        if kind == "last":
            value = self.layer(source, rows, ("w",), weight, bias, "layers")
            pieces = self.split(value.name, 2, list(widths.values()))
            starts = np.cumsum([0, *widths.values()])
            cut = {r: numbers[..., starts[i] : starts[i + 1]] for i, r in enumerate(roles)}
        else:
            inner = ("t", "n", "h") if kind == "own axis" else ("n", "t", "h")
            value = self.apart(self.layer(source, rows, inner, weight, bias, "layers"))
            value = self.arrange(value, tuple((a,) for a in self.order([a for (a,) in value.axes])))
            axis = value.axes.index(("t",))
            pieces = self.taken(value, axis, len(roles))
            apart = numbers.reshape(*numbers.shape[:2], *(self.sizes[a] for a in inner))
            cut = {r: np.take(apart, i, axis=2 + inner.index("t")) for i, r in enumerate(roles)}
        made = {}
        for role, piece in zip(roles, pieces, strict=True):
            own, features = ROLES[role]
            heads, size = self.heads(role), self.sizes[features]
            if kind == "last":
                channels = ("n", features) if heads > 1 else (features,)
                axes: Axes = (*value.axes[:2], channels)
            else:
                axes = tuple(axis for axis in value.axes if axis != ("t",))
            names = {rows: own, "h": features}
            axes = tuple(tuple(names.get(a, a) for a in axis) for axis in axes)
            own_numbers = cut[role].reshape(*numbers.shape[:2], heads, size).transpose(0, 2, 1, 3)
            made[role] = Value(piece, axes), own_numbers
        return made

    def taken(self, value: Value, axis: int, count: int) -> list[str]:
        """The slices of an axis, without it."""
        if self.choose("taken by", ["Gather", "cut"]) == "Gather":
            index = [self.net.const(i, np.int64) for i in range(count)]
            return [self.net.op("Gather", value.name, each, axis=axis) for each in index]
        pieces = self.split(value.name, axis, [1] * count)
        if self.opset >= 13:
            return [self.net.op("Squeeze", piece, self.net.ints(axis)) for piece in pieces]
        return [self.net.op("Squeeze", piece, axes=[axis]) for piece in pieces]

    # What may happen to one operand

    def turned_about(self, role: str, made: Made) -> Made:
        """Heads in another order, keys and values in another order, or normalised features."""
        value, numbers = made
        rows, features = ROLES[role]
        kinds = ["", "", "", "", "rows rolled"] + (["heads gathered"] if self.heads(role) == 4 else [])
        kinds += ["normalised"] if role != "v" else []
        kind = self.choose(f"{role} turned about", kinds)
        if not kind:
            return made
        sizes, self.sizes = self.sizes, self.sizes | {"n": self.heads(role)}
        value = self.apart(value)
        self.sizes = sizes
        if kind == "heads gathered":
            order = [2, 0, 3, 1]
            name = self.net.op("Gather", value.name, self.net.ints(*order), axis=value.axes.index(("n",)))
            return Value(name, value.axes), numbers[:, order]
        if kind == "rows rolled":
            axis, size = value.axes.index((rows,)), self.sizes[rows]
            parts = self.split(value.name, axis, [2, size - 2])
            return Value(self.net.op("Concat", *parts[::-1], axis=axis), value.axes), np.roll(numbers, -2, axis=2)
        self.normalised = True
        axis = value.axes.index((features,))
        name = self.net.op("LpNormalization", value.name, axis=axis, p=2)
        return Value(name, value.axes), numbers / np.linalg.norm(numbers, axis=-1, keepdims=True)

    def repeated(self, value: Value, role: str) -> Value:
        """Heads of K or V for every head of Q, where they are shared."""
        if self.kv_heads == 4:
            return value
        rows, features = ROLES[role]
        sizes, self.sizes = self.sizes, self.sizes | {"n": self.kv_heads}
        wanted: Axes = (("b",), ("n",), (rows,), (features,))
        bare: Axes = (("b",), (rows,), (features,))
        if self.kv_heads == 1 and not any("n" in axis for axis in value.axes):
            value = self.reshape(self.arrange(value, bare), (("b",), (), (rows,), (features,)))
            value = Value(value.name, wanted)
        else:
            value = self.arrange(value, wanted)
        own = self.shape(wanted)
        self.sizes = sizes
        copies, net = 4 // self.kv_heads, self.net
        kind = self.choose("repeat", ["Expand", "Tile", "Gather"])
        if kind == "Gather":
            return Value(
                net.op("Gather", value.name, net.ints(*np.repeat(range(self.kv_heads), copies)), axis=1), wanted
            )
        apart = net.reshape(value.name, own[0], self.kv_heads, 1, *own[2:])
        if kind == "Expand":
            many = net.op("Expand", apart, net.ints(1, self.kv_heads, copies, *own[2:]))
        else:
            many = net.op("Tile", apart, net.ints(1, 1, copies, 1, 1))
        return Value(net.reshape(many, *self.shape(wanted)), wanted)
