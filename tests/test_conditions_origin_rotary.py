"""What is nearly a rotary embedding, and none: a sign, a factor, a table, a channel or a token does not fit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import HEAD_DIM, HEADS, WIDTH, Net
from rotary import BATCH, LENGTH, OPSET, read

import onnx_attn
from onnx_attn.recognize import rotation

HALF = HEAD_DIM // 2
ROTATION = (1.0, -1.0, 1.0, 1.0)
"""The factors of `a·cos`, `b·sin`, `b·cos` and `a·sin`."""
Turn = Callable[[Net, str], str]
Tables = tuple[str, str]


def site(turn: Turn, length: int = LENGTH) -> onnx.ModelProto:
    """One site of which Q `(B, N, S, H)` is turned, and K is not."""
    net = Net(opset=OPSET)
    x = net.input("x", BATCH, length, WIDTH)
    q, k, v = (net.split_heads(net.linear(x, HEADS * HEAD_DIM)) for _ in range(3))
    net.output(net.merge_heads(net.sdpa(turn(net, q), net.swap(k), v)), 3)
    return net.model()


def angles(half: int = HALF, length: int = LENGTH) -> np.ndarray:
    return np.arange(length)[:, None] / 100 ** (np.arange(half) / half)


def stored(net: Net, half: int = HALF, length: int = LENGTH) -> Tables:
    found = angles(half, length)[None, None]
    return net.const(np.cos(found)), net.const(np.sin(found))


def rotated(net: Net, x: str, tables: Tables | None = None, factors: tuple[float, ...] = ROTATION, **size: int) -> str:
    """The halves a and b of x as `a·cos − b·sin` and `b·cos + a·sin`, each product times its factor."""
    return net.op("Concat", *pieces(net, x, tables, factors, **size), axis=-1)


def pieces(
    net: Net, x: str, tables: Tables | None = None, factors: tuple[float, ...] = ROTATION, **size: int
) -> tuple[str, str]:
    cos, sin = tables or stored(net, **size)
    half = size.get("half", HALF)
    a, b = net.op("Split", x, net.ints(half, half), outputs=2, axis=-1)
    parts = [net.op("Mul", *pair) for pair in ((a, cos), (b, sin), (b, cos), (a, sin))]
    parts = [part if factor == 1.0 else net.scaled(part, factor) for part, factor in zip(parts, factors, strict=True)]
    return net.op("Add", parts[0], parts[1]), net.op("Add", parts[2], parts[3])


def is_read(turn: Turn) -> bool:
    return read(site(turn)) is not None


@pytest.mark.parametrize("tables", ["stored", "given"])
@pytest.mark.parametrize("size", [1.0, 0.5])
@pytest.mark.parametrize("signs", [*product((1, -1), repeat=4)], ids=str)
def test_of_all_signs_a_rotation_has_one_way_and_its_negative(signs: tuple[int, ...], size: float, tables: str) -> None:
    """Of tables that are given, either may be the cosine's, and turn b against a."""
    factors = tuple(sign * size for sign in signs)
    wanted = signs[0] != signs[1] and signs[2] == signs[3] and (signs[0] == signs[2] or tables == "given")
    made = given if tables == "given" else stored
    assert is_read(lambda net, x: rotated(net, x, made(net), factors)) == wanted


@pytest.mark.parametrize("factors", [(1, -0.5, 1, 0.5), (0.5, -1, 0.5, 1), (1, -1, 0.5, 0.5), (1, -1, 1, 0.5)], ids=str)
def test_sines_and_cosines_have_one_factor(factors: tuple[float, ...]) -> None:
    assert not is_read(lambda net, x: rotated(net, x, factors=factors))


def test_channels_that_stay_stand_on_one_side_of_those_that_turn() -> None:
    def turn(net: Net, x: str) -> str:
        first, still, second = net.op("Split", x, net.ints(4, HEAD_DIM - 8, 4), outputs=3, axis=-1)
        above, below = pieces(net, net.op("Concat", first, second, axis=-1), half=4)
        return net.op("Concat", above, still, below, axis=-1)

    assert not is_read(turn)


@pytest.mark.parametrize("first", [False, True], ids=["behind", "in front"])
@pytest.mark.parametrize(("work", "wanted"), [("none", True), ("table", False), ("factor", False), ("zero", False)])
def test_channels_beside_are_left_as_they_are(work: str, wanted: bool, first: bool) -> None:
    """They may not be multiplied by numbers of their own."""

    def turn(net: Net, x: str) -> str:
        turning, still = net.op("Split", x, net.ints(8, HEAD_DIM - 8), outputs=2, axis=-1)
        still = worked_on(net, still, work, HEAD_DIM - 8)
        parts = (still, rotated(net, turning, half=4)) if first else (rotated(net, turning, half=4), still)
        return net.op("Concat", *parts, axis=-1)

    assert is_read(turn) == wanted
    assert onnx_attn.fuse(site(turn), target="onnx").report["proof"]["ok"]


@pytest.mark.parametrize(("work", "wanted"), [("none", True), ("table", False), ("zero", False)])
def test_a_class_token_is_left_as_it_is(work: str, wanted: bool) -> None:
    def turn(net: Net, x: str) -> str:
        token, others = net.op("Split", x, net.ints(1, LENGTH - 1), outputs=2, axis=2)
        token = worked_on(net, token, work, HEAD_DIM)
        return net.op("Concat", token, rotated(net, others, length=LENGTH - 1), axis=2)

    assert (read(site(turn)) or {}).get("all_tokens") == (False if wanted else None)


def worked_on(net: Net, value: str, work: str, width: int) -> str:
    if work == "table":
        return net.op("Mul", value, net.const(np.full(width, 2.0)))
    return value if work == "none" else net.scaled(value, 0.0 if work == "zero" else 0.3)


def test_what_turns_may_be_cut_off_again() -> None:
    """Nothing is left but the token that stays as it is."""

    def turn(net: Net, x: str) -> str:
        token, others = net.op("Split", x, net.ints(1, LENGTH - 1), outputs=2, axis=2)
        both = net.op("Concat", token, rotated(net, others, length=LENGTH - 1), axis=2)
        return net.op("Slice", both, net.ints(0), net.ints(1), net.ints(2))

    assert not is_read(turn)


@pytest.mark.parametrize("most", [1, 2 * HEAD_DIM, 2**20])
@pytest.mark.parametrize(
    ("last", "wanted"),
    [(ROTATION, True), ((0.5, -0.5, 0.5, 0.5), False), ((1.0, 1.0, 1.0, 1.0), False), ((-1.0, 1.0, -1.0, -1.0), False)],
    ids=str,
)
def test_all_tokens_turn_alike_however_many_are_looked_at_together(
    monkeypatch: pytest.MonkeyPatch, last: tuple[float, ...], wanted: bool, most: int
) -> None:
    monkeypatch.setattr(rotation, "MOST_AT_ONCE", most)

    def turn(net: Net, x: str) -> str:
        first, rest = net.op("Split", x, net.ints(3, LENGTH - 3), outputs=2, axis=2)
        parts = rotated(net, first, length=3), rotated(net, rest, factors=last, length=LENGTH - 3)
        return net.op("Concat", *parts, axis=2)

    assert is_read(turn) == wanted


def test_tokens_of_two_layers_that_are_joined_behind() -> None:
    def turn(net: Net, x: str) -> str:
        other = net.split_heads(net.linear("x", HEADS * HEAD_DIM))
        return net.op("Concat", rotated(net, x), rotated(net, other), axis=2)

    assert not is_read(turn)


@pytest.mark.parametrize(("most", "wanted"), [(2, False), (100, True)])
def test_how_many_tokens_turn_may_not_depend_on_how_many_there_are(most: int, wanted: bool) -> None:
    """Of two tokens all, of three not."""
    net = Net(opset=OPSET)
    x = net.input("x", BATCH, "length", WIDTH)
    q, k, v = (net.split_heads(net.linear(x, HEADS * HEAD_DIM)) for _ in range(3))
    first, cos, sin = (part(net, each, 0, most) for each in (q, *computed(net, "length")))
    turned = net.op("Concat", rotated(net, first, (cos, sin)), part(net, q, most, 2**31), axis=2)
    net.output(net.merge_heads(net.sdpa(turned, net.swap(k), v)), 3)
    assert (read(net.model()) is not None) == wanted


def part(net: Net, value: str, start: int, end: int) -> str:
    return net.op("Slice", value, net.ints(start), net.ints(end), net.ints(2))


def test_no_tokens_at_all() -> None:
    net = Net(opset=OPSET)
    q, k, v = (net.input(name, BATCH, HEADS, 0, HEAD_DIM) for name in "qkv")
    net.output(net.sdpa(rotated(net, q, length=0), net.swap(k), v))
    assert read(net.model()) is None


def computed(net: Net, length: Any = LENGTH) -> Tables:
    positions = net.input("positions", 1, 1, length, 1)
    found = net.op("Mul", positions, net.const(angles(length=2)[1]))
    return net.op("Cos", found), net.op("Sin", found)


def given(net: Net) -> Tables:
    return net.input("cos", 1, 1, LENGTH, HALF), net.input("sin", 1, 1, LENGTH, HALF)


def looked_up(net: Net, length: int = LENGTH) -> Tables:
    positions = net.input("positions", BATCH, 1, length, dtype=np.int64)
    both = (net.const(function(angles(length=64))) for function in (np.cos, np.sin))
    cos, sin = (net.op("Gather", table, positions, axis=0) for table in both)
    return cos, sin


def behind_a_token(net: Net) -> Tables:
    """Rows that are looked up, behind one for a class token, which is turned by nothing."""
    rows = looked_up(net, LENGTH - 1)
    cos, sin = (
        net.op("Concat", net.const(np.full((BATCH, 1, 1, HALF), value)), table, axis=2)
        for value, table in zip((1.0, 0.0), rows, strict=True)
    )
    return cos, sin


def zeros(net: Net) -> Tables:
    return net.const(np.zeros((1, 1, LENGTH, HALF))), net.const(np.zeros((1, 1, LENGTH, HALF)))


@pytest.mark.parametrize(
    ("cosines", "sines", "wanted"),
    [
        (stored, stored, True),
        (computed, computed, True),
        (given, given, True),
        (looked_up, looked_up, True),
        (behind_a_token, behind_a_token, True),
        (behind_a_token, stored, True),
        (computed, given, False),
        (given, computed, False),
        (looked_up, stored, False),
        (stored, looked_up, False),
        (zeros, zeros, False),
    ],
)
def test_tables_have_to_be_of_one_angle_as_far_as_the_graph_tells(cosines: Any, sines: Any, wanted: bool) -> None:
    def turn(net: Net, x: str) -> str:
        first = cosines(net)
        return rotated(net, x, (first[0], first[1] if sines is cosines else sines(net)[1]))

    assert is_read(turn) == wanted
