"""What stands between Q·Kᵀ and P·V: the scale, masks, casts and the softmax."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from spelling.operands import Operands
from spelling.values import Axes, Value

FILLS = (-1e4, "least", -np.inf, -7.0)


class Between(Operands):
    """Writes scores."""

    # The scale

    def scaled(self, value: Value, scale: float) -> Value:
        net = self.net
        way = self.choose("scaled by", ["Mul", "Div", "twice negative"])
        if way == "twice negative":
            return Value(net.op("Neg", net.op("Mul", net.const(-scale), value.name)), value.axes)
        number = net.const(scale if way == "Mul" else 1 / scale)
        return Value(net.op(way, value.name, number), value.axes)

    def by_its_size(self, scores: Value, query: Value) -> Value:
        """Divided by the root of the number of features, which is looked up as the model runs."""
        net = self.net
        size = net.op("Gather", net.op("Shape", query.name), net.const(query.axes.index(("h",)), np.int64), axis=0)
        return Value(net.op("Div", scores.name, net.op("Sqrt", net.op("Cast", size, to=self.element))), scores.axes)

    # Masks

    def masked(self, scores: Value, numbers: np.ndarray) -> tuple[Value, np.ndarray]:
        kinds = [
            "added",
            "where keep",
            "where fill",
            "constant",
            "subtracted",
            "ones and zeros",
            "keep to added",
            "causal",
        ]
        kind = self.choose("mask", kinds)
        if self.choose("mask's axes", ["as they are", "others"]) == "others":
            options: list[Axes] = [
                (("b",), ("n",), ("s",), ("l",)),
                (("b", "n"), ("s",), ("l",)),
                (("n",), ("b",), ("l",), ("s",)),
            ]
            scores = self.arrange(scores, self.choose("axes under the mask", options))
        held = "sl" if kind == "causal" else self.choose("mask over", ["bl", "sl", "nsl", "bnsl", "l", "bsl"])
        if self.varies and (kind == "constant" or any("b" in axis and len(axis) > 1 for axis in scores.axes)):
            held = held.replace("b", "")
        kept = tuple(axis if all(a in held for a in axis) else () for axis in scores.axes)
        place = tuple((a,) if any(a in axis for axis in kept) else () for a in "bnsl")
        shape = [self.size(axis) for axis in kept]
        if kind == "causal":
            self.causal = True
            return self.causally(scores, numbers, kept, place)
        if kind in ("where keep", "where fill", "ones and zeros", "keep to added"):
            # The first key is attended to by every query.
            attended = self.rng.random(shape) < 0.7
            attended[tuple(0 if axis == ("l",) else slice(None) for axis in kept)] = True
            return self.blocked(scores, numbers, kind, attended, kept, place)
        value = self.numbers(*shape)
        spread = canonical(value.astype(np.float64), kept, place, self.sizes)
        name = self.net.const(value) if kind == "constant" else self.mask_input(value, kept)
        if kind == "subtracted":
            return Value(self.net.op("Sub", scores.name, name), scores.axes), numbers - spread
        return self.plus(scores, name), numbers + spread

    def plus(self, scores: Value, name: str) -> Value:
        pair = (scores.name, name)
        return Value(self.net.op("Add", *(pair if self.choose("order", [0, 1]) else pair[::-1])), scores.axes)

    def mask_input(self, value: np.ndarray, kept: Axes) -> str:
        self.masks += 1
        return self.given(f"mask_{self.masks}", value, kept).name

    def fill(self) -> float:
        found = self.choose("fill", FILLS)
        return float(np.finfo(self.dtype).min) if found == "least" else float(found)

    def blocked(
        self, scores: Value, numbers: np.ndarray, kind: str, attended: np.ndarray, kept: Axes, place: Axes
    ) -> tuple[Value, np.ndarray]:
        """Keys that are blocked by a mask that a caller gives."""
        net, spread = self.net, canonical(attended, kept, place, self.sizes)
        if kind == "ones and zeros":
            name = self.mask_input(attended.astype(self.dtype), kept)
            added = net.op("Mul", net.op("Sub", net.const(1.0), name), net.const(-1e4))
            return self.plus(scores, added), numbers + np.where(spread, 0.0, float(self.dtype.type(-1e4)))
        fill = self.fill()
        if kind == "keep to added":
            # Where what is added absorbs the scores, and no row is blocked throughout.
            fill = -1e4 if fill == -7.0 else fill
            name = self.mask_input(attended, kept)
            added = net.op("Where", name, net.const(0.0), net.const(fill))
            return self.plus(scores, added), numbers + np.where(spread, 0.0, float(self.dtype.type(fill)))
        keep = kind == "where keep"
        name = self.mask_input(attended == keep, kept)
        pair = (scores.name, net.const(fill))
        made = net.op("Where", name, *(pair if keep else pair[::-1]))
        return Value(made, scores.axes), np.where(spread, numbers, float(self.dtype.type(fill)))

    def causally(self, scores: Value, numbers: np.ndarray, kept: Axes, place: Axes) -> tuple[Value, np.ndarray]:
        """No key later than the query: a stored triangle, one that is cut from ones, or positions that are compared."""
        net, rows, keys = self.net, self.sizes["s"], self.sizes["l"]
        lower = np.tril(np.ones((rows, keys), bool))
        fill = self.choose("fill", [-1e4, -np.inf])
        ways = ["stored", "stored as numbers"] + (["positions"] if self.opset >= 12 else [])
        ways += ["Trilu"] if self.opset >= 14 else []
        way = self.choose("causal by", ways)
        flat = [a for axis in kept for a in axis]
        turned = flat == ["l", "s"]
        shape = [self.size(axis) for axis in kept]
        expected = np.where(lower, numbers, numbers + fill if way == "stored as numbers" else fill)
        triangle = lower.T if turned else lower
        if way == "stored as numbers":
            return self.plus(scores, net.const(np.where(triangle, 0.0, fill).reshape(shape))), expected
        if way == "stored":
            name = net.const(triangle.reshape(shape), bool)
        elif way == "positions":
            row, column = net.ints(*range(rows)), net.ints(*range(keys))
            down = net.reshape(row, *((1, rows) if turned else (rows, 1)))
            across = net.reshape(column, *((keys, 1) if turned else (1, keys)))
            name = net.reshape(net.op("GreaterOrEqual", down, across), *shape)
        else:
            cut = net.op("Trilu", net.const(np.ones((rows, keys)), np.float32), upper=0)
            cut = net.turn(cut, 1, 0) if turned else cut
            name = net.reshape(net.op("Cast", cut, to=onnx.TensorProto.BOOL), *shape)
        return Value(net.op("Where", name, scores.name, net.const(fill)), scores.axes), expected

    # The softmax

    def softmax(self, scores: Value) -> Value:
        """Over the keys; in another type where that is drawn."""
        wide = np.float64 if self.dtype == np.float32 else np.float32
        if self.dtype == np.float64 or self.choose("softmax in another type", [False, False, True]) is False:
            return Value(self.one_softmax(scores), scores.axes)
        element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(wide))
        inside = Value(self.net.op("Cast", scores.name, to=element), scores.axes)
        return Value(self.net.op("Cast", self.one_softmax(inside), to=self.element), scores.axes)

    def one_softmax(self, scores: Value) -> str:
        net, x = self.net, scores.name
        axis = scores.axes.index(("s",) if self.near_miss == "softmax over queries" else ("l",))
        last = axis == len(scores.axes) - 1
        ways = ["Softmax", "Softmax"] if self.opset >= 13 or last else []
        ways += ["spelled out", "in logarithms"] if self.opset >= 13 else ["spelled out"]
        way = self.choose("softmax", ways)
        if self.near_miss == "no softmax":
            return net.op("Sigmoid", x)
        if way == "Softmax":
            number = axis if self.choose("letters", [0, 1]) or not last else -1
            return net.op("Softmax", x, axis=number, name="softmax")
        if way == "in logarithms":
            return net.op("Exp", net.op("LogSoftmax", x, axis=axis, name="softmax"))
        powers = net.op("Exp", net.op("Sub", x, self.reduced("ReduceMax", x, axis, 18)))
        return net.op("Div", powers, self.reduced("ReduceSum", powers, axis, 13), name="softmax")


def canonical(value: np.ndarray, kept: Sequence[tuple[str, ...]], place: Axes, sizes: dict[str, int]) -> np.ndarray:
    """A mask's numbers as `b n s l`, with 1 where it has no axis."""
    flat = [a for axis in kept for a in axis]
    value = value.reshape([sizes[a] for a in flat])
    value = value.transpose([flat.index(a) for axis in place for a in axis])
    return value.reshape([sizes[a[0]] if a else 1 for a in place])
