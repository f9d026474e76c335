"""Random legal attention, spelled as an ONNX graph in whatever axes, with its truth; and what only looks like it.

A value under construction knows its axes as einops would write them: `(b n) s h` is `(("b", "n"), ("s",), ("h",))`. Every product
is drawn with its operands and its result in any order of axes, so that no position of an axis means anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from graphs import Net
from hypothesis import strategies as st

Axes = tuple[tuple[str, ...], ...]
SIZES = {"b": 2, "n": 4, "s": 5, "l": 5, "h": 12, "v": 8, "e": 10}
"""batch, heads, queries, keys, features of keys, features of values, width of the source. As many keys as queries: sizes tell
nothing."""
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

NEAR_MISSES = (
    "softmax over queries",
    "values by queries",
    "heads mixed before",
    "heads mixed after",
    "probabilities are an output",
    "probabilities plus a number",
    "scale from outside",
    "divided by the scores",
    "no softmax",
)


@dataclass
class Spelling:
    """One drawn graph. truth: what a report has to say of its site, as far as the graph tells it."""

    net: Net
    scale: float
    sizes: dict[str, int]
    expected: np.ndarray
    inputs: dict[str, np.ndarray]
    truth: dict[str, Any] = field(default_factory=dict)
    told: list[str] = field(default_factory=list)

    @property
    def model(self) -> onnx.ModelProto:
        return self.net.model()


@dataclass
class Value:
    name: str
    axes: Axes


class Writer:
    """Writes a spelling, drawing every choice."""

    def __init__(self, draw: Any, near_miss: str | None):
        self.draw, self.near_miss = draw, near_miss
        self.told: list[str] = []
        self.kv_heads = self.choose("kv heads", [4, 4, 4, 2, 1])
        self.sizes = SIZES | {"l": self.choose("keys", [5, 5, 7]) if near_miss is None else 5}
        self.opset = self.choose("opset", [11, 13, 17, 18, 20, 23])
        self.net = Net(self.opset)
        self.rng = np.random.default_rng(self.choose("seed", range(100)))
        self.inputs: dict[str, np.ndarray] = {}

    def choose(self, what: str, options: Sequence[Any]) -> Any:
        found = self.draw(st.sampled_from(list(options)))
        if what not in ("seed", "order", "letters", "noise"):
            self.told.append(f"{what}: {found}")
        return found

    # Movement

    def shape(self, axes: Axes) -> list[int]:
        return [int(np.prod([self.sizes[a] for a in axis], dtype=np.int64)) if axis else 1 for axis in axes]

    def ints(self, *values: int) -> str:
        return self.net.ints(*values)

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

    def letters(self, axes: set[str]) -> dict[str, str]:
        drawn = self.draw(st.permutations(LETTERS))
        return dict(zip(sorted(axes), drawn, strict=False))

    def noise(self, name: str) -> str:
        """What changes nothing: exporters and optimizers leave it."""
        kind = self.choose("noise", ["", "", "", "", "", "Identity", "one", "zero", "cast"])
        if kind == "Identity":
            return self.net.op("Identity", name)
        if kind == "one":
            return self.net.op("Mul", name, self.net.const(1.0))
        if kind == "zero":
            return self.net.op("Add", self.net.const(0.0), name)
        return self.net.op("Cast", name, to=1) if kind == "cast" else name

    def order(self, axes: Sequence[str]) -> tuple[str, ...]:
        return tuple(self.draw(st.permutations(list(axes))))

    # Operands

    def operand(self, role: str, rows: str, features: str, heads: int) -> tuple[Value, np.ndarray]:
        """An operand's own layer or input, in some axes; and its numbers as `b n rows features`."""
        sizes = self.sizes | {"n": heads}
        width = heads * sizes[features]
        if self.projected:
            first = self.choose("rows", [("b", rows), (rows, "b")])
            source = self.source(rows)
            weight, bias = self.rng.standard_normal((sizes["e"], width)) / 3, self.rng.standard_normal(width)
            value = self.arrange(source, (*((a,) for a in first), ("e",)))
            made = self.net.op("MatMul", value.name, self.net.const(weight))
            name = self.net.op("Add", made, self.net.const(bias))
            numbers = self.inputs[source.name] @ weight.astype(np.float32) + bias.astype(np.float32)
            numbers = numbers.reshape(sizes["b"], sizes[rows], heads, sizes[features]).transpose(0, 2, 1, 3)
            channels = ("n", features) if heads > 1 else (features,)
            return Value(name, (*((a,) for a in first), channels)), numbers
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
        if heads == 1:
            axes = tuple(tuple(a for a in axis if a != "n") for axis in axes if axis != ("n",))
        numbers = self.rng.standard_normal((sizes["b"], heads, sizes[rows], sizes[features])).astype(np.float32)
        self.inputs[role] = arranged(numbers, ("b", "n", rows, features), axes, sizes)
        return Value(self.net.input(role, *self.inputs[role].shape), axes), numbers

    def source(self, rows: str) -> Value:
        name = "x" if rows == "s" or not self.cross else "y"
        if name not in self.inputs:
            numbers = self.rng.standard_normal((self.sizes["b"], self.sizes[rows], self.sizes["e"]))
            self.inputs[name] = numbers.astype(np.float32)
            self.net.input(name, *numbers.shape)
        return Value(name, (("b",), (rows,), ("e",)))

    def repeated(self, value: Value, rows: str, features: str) -> Value:
        """Heads of K or V for every head of Q, where they are shared."""
        if self.kv_heads == 4:
            return value
        sizes, self.sizes = self.sizes, self.sizes | {"n": self.kv_heads}
        wanted: Axes = (("b",), ("n",), (rows,), (features,))
        if self.kv_heads == 1:
            value = self.reshape(
                self.arrange(value, (("b",), (rows,), (features,))), (("b",), (), (rows,), (features,))
            )
            value = Value(value.name, wanted)
        else:
            value = self.arrange(value, wanted)
        self.sizes = sizes
        copies, shape = 4 // self.kv_heads, self.shape(wanted)
        kind = self.choose("repeat", ["Expand", "Tile", "Gather"])
        if kind == "Gather":
            return Value(
                self.net.op("Gather", value.name, self.ints(*np.repeat(range(self.kv_heads), copies)), axis=1), wanted
            )
        apart = self.net.reshape(value.name, shape[0], self.kv_heads, 1, *shape[2:])
        if kind == "Expand":
            many = self.net.op("Expand", apart, self.ints(shape[0], self.kv_heads, copies, *shape[2:]))
        else:
            many = self.net.op("Tile", apart, self.ints(1, 1, copies, 1, 1))
        return Value(self.net.reshape(many, *shape), wanted)

    # Products

    def product(self, what: str, left: Value, right: Value, summed: str) -> Value:
        """The sum over one axis of two values that share `b n`, in any spelling, its result in any axes."""
        own = [next(a for axis in v.axes for a in axis if a not in ("b", "n", summed)) for v in (left, right)]
        ways = ["MatMul", "MatMul", "MatMul swapped"] + (["Einsum"] if self.opset >= 12 else [])
        way = self.choose(what, ways)
        if way == "Einsum":
            orders = [self.order(["b", "n", axis, summed]) for axis in own]
            result = self.order(["b", "n", *own])
            letters = self.letters({"b", "n", summed, *own})
            space = self.choose("letters", ["", " "])
            terms = ["".join(letters[a] + space for a in order) for order in orders]
            given = [
                self.arrange(v, tuple((a,) for a in order)).name for v, order in zip((left, right), orders, strict=True)
            ]
            if self.choose("letters", [False, True]):
                terms, given = terms[::-1], given[::-1]
            equation = ",".join(terms) + " ->" + space + "".join(letters[a] for a in result)
            return Value(self.net.op("Einsum", *given, equation=equation), tuple((a,) for a in result))
        batch: Axes = self.choose(
            "batch of " + what, [(("b",), ("n",)), (("b", "n"),), (("n",), ("b",)), (("n", "b"),)]
        )
        if way == "MatMul":
            first = self.arrange(left, (*batch, (own[0],), (summed,)))
            second = self.arrange(right, (*batch, (summed,), (own[1],)))
            return Value(self.net.op("MatMul", first.name, second.name), (*batch, (own[0],), (own[1],)))
        first = self.arrange(left, (*batch, (summed,), (own[0],)))
        second = self.arrange(right, (*batch, (own[1],), (summed,)))
        return Value(self.net.op("MatMul", second.name, first.name), (*batch, (own[1],), (own[0],)))

    # Between the products

    def masked(self, scores: Value, numbers: np.ndarray) -> tuple[Value, np.ndarray]:
        kind = self.choose("mask", ["none", "none", "added", "where keep", "where fill", "constant", "subtracted"])
        if kind == "none":
            return scores, numbers
        if self.choose("mask's axes", ["as they are", "others"]) == "others":
            options: list[Axes] = [
                (("b",), ("n",), ("s",), ("l",)),
                (("b", "n"), ("s",), ("l",)),
                (("n",), ("b",), ("l",), ("s",)),
            ]
            scores = self.arrange(scores, self.choose("axes under the mask", options))
        held = self.choose("mask over", ["bl", "sl", "nsl", "bnsl", "l", "bsl"])
        kept = [axis if all(a in held for a in axis) else () for axis in scores.axes]
        shape = self.shape(tuple(kept))
        place = tuple((a,) if any(a in axis for axis in kept) else () for a in "bnsl")
        self.masks += 1
        if kind.startswith("where"):
            keep = kind == "where keep"
            value = (self.rng.random(shape) < 0.7) == keep
            # The first key is attended to by every query.
            value[tuple(0 if axis == ("l",) else slice(None) for axis in kept)] = keep
            fill = self.choose("fill", [-1e4, float(np.finfo(np.float32).min), -np.inf, -7.0])
            name = self.net.input("mask", *shape, dtype=bool)
            self.inputs["mask"] = value
            canonical = self.canonical(value, kept, place)
            pair = (scores.name, self.net.const(fill))
            made = self.net.op("Where", name, *(pair if keep else pair[::-1]))
            return Value(made, scores.axes), np.where(canonical == keep, numbers, np.float32(fill))
        value = self.rng.standard_normal(shape).astype(np.float32)
        canonical = self.canonical(value, kept, place)
        if kind == "constant":
            name = self.net.const(value)
        else:
            name = self.net.input("mask", *shape)
            self.inputs["mask"] = value
        if kind == "subtracted":
            return Value(self.net.op("Sub", scores.name, name), scores.axes), numbers - canonical
        pair = (scores.name, name)
        return Value(
            self.net.op("Add", *(pair if self.choose("order", [0, 1]) else pair[::-1])), scores.axes
        ), numbers + canonical

    def canonical(self, value: np.ndarray, kept: Sequence[tuple[str, ...]], place: Axes) -> np.ndarray:
        """A mask's numbers as `b n s l`, with 1 where it has no axis."""
        flat = [a for axis in kept for a in axis]
        value = value.reshape([self.sizes[a] for a in flat])
        value = value.transpose([flat.index(a) for axis in place for a in axis])
        return value.reshape([self.sizes[a[0]] if a else 1 for a in place])

    def softmax(self, scores: Value) -> Value:
        axis = next(i for i, axis in enumerate(scores.axes) if axis == ("l",))
        if self.near_miss == "softmax over queries":
            axis = next(i for i, names in enumerate(scores.axes) if names == ("s",))
        last = axis == len(scores.axes) - 1
        ways = ["Softmax", "Softmax"] if self.opset >= 13 or last else []
        ways += ["spelled out", "in logarithms"] if self.opset >= 13 else ["spelled out"]
        way = self.choose("softmax", ways)
        net, x = self.net, scores.name
        if self.near_miss == "no softmax":
            return Value(net.op("Sigmoid", x), scores.axes)
        if way == "Softmax":
            number = axis if self.choose("letters", [0, 1]) or not last else -1
            return Value(net.op("Softmax", x, axis=number, name="softmax"), scores.axes)
        if way == "in logarithms":
            return Value(net.op("Exp", net.op("LogSoftmax", x, axis=axis, name="softmax")), scores.axes)
        peak = net.op("ReduceMax", x, self.ints(axis)) if self.opset >= 18 else net.op("ReduceMax", x, axes=[axis])
        powers = net.op("Exp", net.op("Sub", x, peak))
        total = (
            net.op("ReduceSum", powers, self.ints(axis))
            if self.opset >= 13
            else net.op("ReduceSum", powers, axes=[axis])
        )
        return Value(net.op("Div", powers, total, name="softmax"), scores.axes)

    def scaled(self, scores: Value, scale: float) -> Value:
        way = self.choose("scale", ["Mul", "Div", "none left"])
        if self.near_miss == "scale from outside":
            self.inputs["scale"] = np.asarray([0.3], np.float32)
            return Value(self.net.op("Mul", scores.name, self.net.input("scale", 1)), scores.axes)
        if self.near_miss == "divided by the scores":
            return Value(self.net.op("Div", self.net.const(1.0), scores.name), scores.axes)
        if way == "none left":
            return Value(self.net.op("Neg", self.net.op("Mul", self.net.const(-scale), scores.name)), scores.axes)
        number = self.net.const(scale if way == "Mul" else 1 / scale)
        return Value(self.net.op(way, scores.name, number), scores.axes)

    def mixed(self, value: Value) -> Value:
        """Heads mixed by a matrix of weights."""
        others = tuple((a,) for axis in value.axes for a in axis if a != "n")
        last = self.arrange(value, (*others, ("n",)))
        return Value(self.net.op("MatMul", last.name, self.net.weight(4, 4)), last.axes)

    def write(self) -> Spelling:
        self.projected = self.choose("projected", [True, False])
        self.cross = self.sizes["l"] != self.sizes["s"] or self.choose("cross", [True, False])
        self.masks = 0
        scale = self.choose("scale's number", [12**-0.5, 0.3, 1.0])
        q, query = self.operand("q", "s", "h", 4)
        k, key = self.operand("k", "l", "h", self.kv_heads)
        v, value = self.operand("v", "l", "v", self.kv_heads)
        scores = self.product("query and key", q, self.repeated(k, "l", "h"), "h")
        scores = self.scaled(scores, scale)
        copies = 4 // self.kv_heads
        numbers = np.einsum("bnsh,bnlh->bnsl", query, key.repeat(copies, 1)) * np.float32(scale)
        if self.near_miss == "heads mixed before":
            scores = self.mixed(scores)
        scores, numbers = self.masked(scores, numbers)
        with np.errstate(over="ignore", invalid="ignore"):
            powers = np.exp(numbers - numbers.max(-1, keepdims=True))
        probabilities = Value(*self._probabilities(self.softmax(scores)))
        summed = "s" if self.near_miss == "values by queries" else "l"
        v = self.repeated(v, "l", "v")
        if summed == "s":
            # Queries are summed where keys should be: values stand on the wrong axis of a square.
            v = Value(v.name, tuple(tuple("s" if a == "l" else a for a in axis) for axis in v.axes))
        made = self.product("values", probabilities, v, summed)
        result = np.einsum("bnsl,bnlv->bnsv", powers / powers.sum(-1, keepdims=True), value.repeat(copies, 1))
        row = "l" if summed == "s" else "s"
        axes = self.choose(
            "result", [(("b",), ("n",), (row,), ("v",)), (("b",), (row,), ("n", "v")), ((row,), ("b",), ("n", "v"))]
        )
        self.net.output(self.arrange(made, axes).name, len(axes))
        spelled = Spelling(
            self.net, scale, self.sizes, arranged(result, ("b", "n", row, "v"), axes, self.sizes), self.inputs
        )
        spelled.told = self.told
        spelled.truth = {"scale": float(np.float32(scale)), "head_dim": 12, "value_dim": 8, "causal": False}
        if self.projected:
            spelled.truth |= {"heads": 4, "kv_heads": self.kv_heads, "projection": "triplet"}
        return spelled

    def _probabilities(self, value: Value) -> tuple[str, Axes]:
        net, name = self.net, value.name
        if self.near_miss == "probabilities are an output":
            net.output(name, len(value.axes))
        if self.near_miss == "probabilities plus a number":
            name = net.op("Add", name, net.const(0.1))
        if self.near_miss == "heads mixed after":
            mixed = self.mixed(Value(name, value.axes))
            return mixed.name, mixed.axes
        kind = self.choose("behind the softmax", ["", "", "Dropout", "guard", "Identity"])
        if kind in ("Dropout", "Identity"):
            name = net.op(kind, name)
        elif kind == "guard":
            name = net.op("Where", net.op("IsNaN", name), net.const(0.0), name)
        return name, value.axes


def arranged(numbers: np.ndarray, flat: Sequence[str], axes: Axes, sizes: dict[str, int]) -> np.ndarray:
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


@st.composite
def legal(draw: Any) -> Spelling:
    return Writer(draw, None).write()


@st.composite
def near_misses(draw: Any) -> tuple[str, Spelling]:
    near_miss = draw(st.sampled_from(NEAR_MISSES))
    return near_miss, Writer(draw, near_miss).write()
