"""Whole sites, legal ones and near misses."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from spelling.between import Between, canonical
from spelling.operands import Made
from spelling.values import Axes, Spelling, Value, arranged

NEAR_MISSES = (
    "softmax over queries",
    "values by queries",
    "heads mixed before",
    "heads mixed after",
    "probabilities are an output",
    "probabilities read twice",
    "probabilities plus a number",
    "probabilities times a mask",
    "probabilities filled with a number",
    "scale from outside",
    "divided by the scores",
    "scores times a mask from outside",
    "dropout in training",
    "no softmax",
)
PLACES = ("scores", "scores", "query", "key", "both roots", "size", "behind the mask")


class Writer(Between):
    """Writes a spelling, drawing every choice."""

    def write(self) -> Spelling:
        self.masks, self.causal, self.normalised = 0, False, False
        made = {role: self.turned_about(role, each) for role, each in self.operands().items()}
        self.places(made)
        scores, numbers = self.scores(made)
        with np.errstate(over="ignore", invalid="ignore"):
            powers = np.exp(numbers - numbers.max(-1, keepdims=True))
        weights = powers / powers.sum(-1, keepdims=True)
        probabilities, weights = self.changed(self.softmax(scores), weights)
        value, value_numbers = made["v"]
        value = self.repeated(value, "v")
        summed = "s" if self.near_miss == "values by queries" else "l"
        if summed == "s":
            # Queries are summed where keys should be: values stand on the wrong axis of a square.
            value = Value(value.name, tuple(tuple("s" if a == "l" else a for a in axis) for axis in value.axes))
        attended = self.product("values", probabilities, value, summed)
        copies = 4 // self.kv_heads
        result = np.einsum("bnsl,bnlv->bnsv", weights, value_numbers.repeat(copies, axis=1))
        expected = self.finished(attended, result, "l" if summed == "s" else "s")
        self.read_elsewhere(made, probabilities, value)
        truth = {"head_dim": 12, "value_dim": self.sizes["v"]}
        if self.place != "behind the mask":
            # A triangle that is scaled is one, or none: it depends on its numbers.
            truth |= {"scale": self.scale, "causal": self.causal}
        if self.projection != "none":
            truth |= {"heads": 4, "kv_heads": self.kv_heads, "projection": self.projection}
        return Spelling(self.net, expected, self.inputs, truth, self.told)

    def places(self, made: dict[str, Made]) -> None:
        """Where the scale stands, and what it is."""
        self.place = self.choose("scale on", PLACES)
        self.scale = 12**-0.5 if self.place == "size" else self.choose("scale", [12**-0.5, 0.3, 1.0])
        parts = {"query": ("q", 1.0), "key": ("k", 1.0)}
        for role, power in [parts[self.place]] if self.place in parts else []:
            made[role] = self.scaled(made[role][0], self.scale**power), made[role][1]
        if self.place == "both roots":
            for role in "qk":
                made[role] = self.scaled(made[role][0], self.scale**0.5), made[role][1]

    def scores(self, made: dict[str, Made]) -> tuple[Value, np.ndarray]:
        (query, query_numbers), (key, key_numbers) = made["q"], made["k"]
        copies = 4 // self.kv_heads
        numbers = np.einsum("bnsh,bnlh->bnsl", query_numbers, key_numbers.repeat(copies, axis=1))
        scores = self.product("query and key", query, self.repeated(key, "k"), "h")
        if self.place == "scores":
            scores = self.scaled(scores, self.scale)
        elif self.place == "size":
            scores = self.by_its_size(scores, self.apart(query))
        scores = self.missed(scores)
        if self.place == "behind the mask":
            scores, numbers = self.masked(scores, numbers)
            return self.scaled(scores, self.scale), numbers * self.scale
        numbers = numbers * self.scale
        for _ in range(self.choose("masks", [0, 0, 1, 1, 2])):
            scores, numbers = self.masked(scores, numbers)
        return scores, numbers

    def missed(self, scores: Value) -> Value:
        """What makes the scores no scores."""
        net = self.net
        if self.near_miss == "heads mixed before":
            return self.mixed(scores)
        if self.near_miss == "scale from outside":
            number = self.given("scale", np.asarray([0.3], self.dtype), ((),))
            return Value(net.op("Mul", scores.name, number.name), scores.axes)
        if self.near_miss == "scores times a mask from outside":
            apart = self.apart(scores)
            axes: Axes = tuple(axis if axis == ("l",) else () for axis in apart.axes)
            factor = self.given("factor", self.numbers(*(self.size(axis) for axis in axes)), axes)
            return Value(net.op("Mul", apart.name, factor.name), apart.axes)
        if self.near_miss == "divided by the scores":
            return Value(net.op("Div", net.const(1.0), scores.name), scores.axes)
        return scores

    def mixed(self, value: Value) -> Value:
        """Heads mixed by a matrix of weights."""
        others = tuple((a,) for axis in value.axes for a in axis if a != "n")
        last = self.arrange(value, (*others, ("n",)))
        return Value(self.net.op("MatMul", last.name, self.net.weight(4, 4)), last.axes)

    def changed(self, value: Value, weights: np.ndarray) -> tuple[Value, np.ndarray]:
        """Probabilities on their way to the values."""
        if self.near_miss == "probabilities filled with a number":
            return self.cleared(value, weights, 0.5)
        if self.near_miss is None and self.choose("cleared", [False, False, False, True]):
            return self.cleared(value, weights, 0.0)
        return Value(*self.missed_behind(value)), weights

    def cleared(self, value: Value, weights: np.ndarray, fill: float) -> tuple[Value, np.ndarray]:
        """Probabilities of keys that a mask names become a number."""
        held = (
            "l"
            if any("b" in axis and len(axis) > 1 for axis in value.axes)
            else self.choose("cleared over", ["l", "bl"])
        )
        kept = tuple(axis if all(a in held for a in axis) else () for axis in value.axes)
        blocked = self.rng.random([self.size(axis) for axis in kept]) < 0.5
        place = tuple((a,) if a in held and any(a in axis for axis in kept) else () for a in "bnsl")
        spread = canonical(blocked, kept, place, self.sizes)
        keep = self.choose("cleared where", [True, False])
        name = self.mask_input(blocked != keep, kept)
        pair = (self.net.const(fill), value.name)
        made = self.net.op("Where", name, *(pair[::-1] if keep else pair))
        return Value(made, value.axes), np.where(spread, fill, weights)

    def missed_behind(self, value: Value) -> tuple[str, Axes]:
        net, name = self.net, value.name
        if self.near_miss == "probabilities are an output":
            net.output(name, len(value.axes))
        if self.near_miss == "probabilities plus a number":
            return net.op("Add", name, net.const(0.1)), value.axes
        if self.near_miss == "probabilities times a mask":
            apart = self.apart(value)
            axes: Axes = tuple(axis if axis == ("l",) else () for axis in apart.axes)
            factor = self.given("factor", self.numbers(*(self.size(axis) for axis in axes)), axes)
            return net.op("Mul", apart.name, factor.name), apart.axes
        if self.near_miss == "dropout in training":
            ratio, training = net.const(0.5), net.const(True, bool)
            if self.opset >= 12:
                return net.op("Dropout", name, ratio, training), value.axes
            return net.op("Add", name, net.const(0.1)), value.axes
        if self.near_miss == "heads mixed after":
            mixed = self.mixed(Value(name, value.axes))
            return mixed.name, mixed.axes
        kind = self.choose("behind the softmax", ["", "", "Dropout", "guard", "Identity"])
        if kind in ("Dropout", "Identity"):
            name = net.op(kind, name)
        elif kind == "guard":
            # IsNaN knows half precision from opset 13 on.
            if self.dtype == np.float16 and self.opset < 13:
                return name, value.axes
            name = net.op("Where", net.op("IsNaN", name), net.const(0.0), name)
        return name, value.axes

    # Products

    def product(self, what: str, left: Value, right: Value, summed: str) -> Value:
        """The sum over one axis of two values that share `b n`, in any spelling, its result in any axes."""
        own = [next(a for axis in v.axes for a in axis if a not in ("b", "n", summed)) for v in (left, right)]
        ways = ["MatMul", "MatMul", "MatMul swapped"] + (["Einsum"] if self.opset >= 12 else [])
        way = self.choose(what, ways)
        if way == "Einsum":
            return self.by_einsum(left, right, own, summed)
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

    def by_einsum(self, left: Value, right: Value, own: list[str], summed: str) -> Value:
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

    # Behind the site

    def finished(self, made: Value, numbers: np.ndarray, row: str) -> np.ndarray:
        """The result in some axes, or through a layer; as an output of the model. Its numbers."""
        axes: Axes = self.choose(
            "result", [(("b",), ("n",), (row,), ("v",)), (("b",), (row,), ("n", "v")), ((row,), ("b",), ("n", "v"))]
        )
        value, found = self.arrange(made, axes), arranged(numbers, ("b", "n", row, "v"), axes)
        if len(axes) == 3 and self.choose("out-projection", [True, False]):
            weight, bias = self.numbers(self.size(("n", "v")), 6) / np.asarray(5, self.dtype), self.numbers(6)
            name = self.net.op("Add", self.net.op("MatMul", value.name, self.net.const(weight)), self.net.const(bias))
            value, found = Value(name, axes), found @ weight.astype(np.float64) + bias.astype(np.float64)
        self.net.output(value.name, len(axes))
        return found

    def read_elsewhere(self, made: dict[str, Made], probabilities: Value, value: Value) -> None:
        """Outputs beside the result: an operand that something else reads too."""
        if self.near_miss == "probabilities read twice":
            again = self.product("other values", probabilities, value, "l")
            self.net.output(again.name, len(again.axes))
            return
        role = self.choose("read elsewhere", ["", "", "", "q", "k", "v"])
        if role:
            other = self.net.op("Relu", made[role][0].name)
            self.net.output(other, len(made[role][0].axes))


@st.composite
def legal(draw: Any) -> Spelling:
    return Writer(draw, None).write()


@st.composite
def near_misses(draw: Any, near_miss: str) -> Spelling:
    return Writer(draw, near_miss).write()
