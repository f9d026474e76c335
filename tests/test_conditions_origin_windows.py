"""What is a window, place by place: many lines and small maps are tried, and what is read says what was given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product

import numpy as np
import onnx
import pytest
from graphs import WIDTH, Net, self_attention
from onnx import TensorProto, helper
from windows import Block, windows

from onnx_attn.recognize.partition import Line, each_once, read_line, read_partition


def spelled(line: Line, size: int) -> list[int]:
    """The places of one axis of a map of this size, in the order of its windows."""
    places = np.arange(size)
    places = np.roll(places, -line.shift) if line.rolled_first else places
    places = np.pad(places, line.padding, constant_values=-1)
    return (places if line.rolled_first else np.roll(places, -line.shift)).tolist()


def cut(lines: Sequence[Sequence[int]], sizes: Sequence[int], windows: Sequence[int], kind: str) -> np.ndarray:
    """The groups of a map whose axes are in these orders."""
    frames = []
    for line, window in zip(lines, windows, strict=True):
        places = np.asarray(line)
        frames.append(places.reshape(-1, window) if kind == "window" else places.reshape(window, -1).T)
    grid, rank = [len(frame) for frame in frames], len(sizes)
    whole, real = np.zeros((*grid, *windows), np.int64), np.ones((*grid, *windows), bool)
    for axis, frame in enumerate(frames):
        along = frame.reshape([n if at % rank == axis else 1 for at, n in enumerate((*grid, *windows))])
        whole, real = whole * sizes[axis] + along, real & (along >= 0)
    return np.where(real, whole, -1).reshape(int(np.prod(grid)), -1)


def lines(size: int, length: int) -> Iterator[list[int]]:
    """All of a roll and of padding, in either order, and all others of which the places alone are rolled."""
    for at, shift in product(combinations(range(length), size), range(size)):
        line = np.full(length, -1)
        line[list(at)] = np.roll(np.arange(size), -shift)
        yield line.tolist()


@pytest.mark.parametrize(("size", "length"), [(size, length) for size in (1, 2, 3, 4) for length in range(size, 9)])
def test_a_line_is_what_is_rolled_and_padded_in_either_order(size: int, length: int) -> None:
    ways = [((front, length - size - front), shift) for front in range(length - size + 1) for shift in range(length)]
    possible = [spelled(Line(shift, padding, False), size) for padding, shift in ways]
    possible += [spelled(Line(shift, padding, True), size) for padding, shift in ways if shift < size]
    for line in lines(size, length):
        read = read_line(np.array(line), size)
        assert (read is not None) == (line in possible), line
        if read is not None:
            assert spelled(read, size) == line
            # An axis that is not both rolled and padded has no say in which came first.
            assert not read.rolled_first or (read.shift and any(read.padding))


def test_places_in_another_order_are_no_line() -> None:
    assert read_line(np.array([0, 2, 1]), 3) is None
    assert read_line(np.array([0, 1, -1]), 3) is None
    assert read_line(np.array([0, 1, 1, 2]), 3) is None


@pytest.mark.parametrize("kind", ["window", "grid"])
@pytest.mark.parametrize(
    ("sizes", "size"), [((4,), (2,)), ((6,), (3,)), ((4, 6), (2, 3)), ((3, 5), (2, 2)), ((2, 4, 4), (2, 2, 2))], ids=str
)
def test_maps_of_any_number_of_axes(sizes: tuple[int, ...], size: tuple[int, ...], kind: str) -> None:
    totals = [-(-total // each) * each for total, each in zip(sizes, size, strict=True)]
    for shifts in product(range(2), repeat=len(sizes)):
        given = [
            spelled(Line(shift, (0, padded - total), False), total)
            for shift, total, padded in zip(shifts, sizes, totals, strict=True)
        ]
        read = read_partition(cut(given, sizes, size, kind), sizes)
        assert read is not None and (read.kind, read.size) == (kind, size)
        assert [spelled(line, total) for line, total in zip(read.lines, sizes, strict=True)] == given


def test_windows_of_one_token_are_none() -> None:
    assert read_partition(np.arange(4)[:, None], (4,)) is None
    assert read_partition(np.arange(16).reshape(4, 4), (4, 4)) is None


def test_one_place_beside_padding_may_be_windows_of_two_sizes() -> None:
    """As 2 × 3 or 3 × 2."""
    assert read_partition(np.array([[0, -1, -1, -1, -1, -1]]), (1, 1)) is None


def test_places_beyond_the_map_are_not_of_it() -> None:
    assert each_once(np.array([[0, 1], [2, -1]]), 3)
    assert not each_once(np.array([[0, 1], [2, 3]]), 3)
    assert not each_once(np.array([[0, 1], [2, 2]]), 3)
    assert not each_once(np.array([[0, 1], [2, -1]]), 4)


def kind_of(groups: Sequence[Sequence[int]], sizes: tuple[int, ...]) -> str | None:
    read = read_partition(np.array(groups), sizes)
    return read.kind if read is not None else None


def test_of_all_ways_to_cut_a_map_in_two_blocks_alone_are_units() -> None:
    """Places backwards, which is no order of a window."""
    for first in combinations(range(8), 4):
        second = tuple(place for place in range(8) if place not in first)
        blocks = {first, second} == {(0, 1, 4, 5), (2, 3, 6, 7)}
        assert (kind_of([first[::-1], second[::-1]], (2, 4)) == "unit") == blocks, first
    assert kind_of([[0, 1, 4, 5], [2, 3, 6, 7]], (2, 4)) == "window"


def test_a_whole_map_in_an_order_of_its_own_is_no_unit() -> None:
    assert kind_of([[3, 1, 2, 0]], (2, 2)) is None


def test_units_are_all_blocks_and_not_the_first_alone() -> None:
    """The last two lie within one another, in the right half of a map of 4 × 4."""
    blocks = [[5, 1, 4, 0], [13, 9, 12, 8]]
    assert kind_of([*blocks, [7, 3, 6, 2], [15, 11, 14, 10]], (4, 4)) == "unit"
    assert kind_of([*blocks, [2, 7, 10, 15], [3, 6, 11, 14]], (4, 4)) is None


MOVED = ["sorted by themselves", "of another domain", "a sum"]


def two_layers(between: str) -> onnx.ModelProto:
    """A map is cut once, and two layers work on the rows, which stand windows first."""
    net, value = Block(batch=2).start()
    rows = net.reshape(Block().cut_map(net, value), 2, 4, 16, WIDTH)
    flat = net.reshape(rows, -1, 16, WIDTH)
    out = net.reshape(self_attention(net, flat, name="first"), 2, 4, 16, WIDTH)
    if between == "sorted by themselves":
        order = net.op("Cast", net.op("Clip", out, net.const(0.0), net.const(15.0)), to=TensorProto.INT64)
        rows = net.op("GatherElements", rows, order, axis=2)
    else:
        rows = net.op("Add", rows, out, domain="mine" if between == "of another domain" else "")
    net.output(self_attention(net, net.reshape(rows, -1, 16, WIDTH), name="second"), 3)
    model = net.model(mine=1)
    model.graph.value_info.append(helper.make_tensor_value_info(rows, TensorProto.FLOAT, (2, 4, 16, WIDTH)))
    return model


@pytest.mark.parametrize("between", MOVED)
def test_places_are_known_behind_a_sum_and_behind_nothing_else(between: str) -> None:
    window = {"size": [4, 4], "shift": [0, 0], "grid": [2, 2]}
    assert windows(two_layers(between)) == [window, window if between == "a sum" else None]


def test_what_is_added_to_every_entry_of_a_batch_is_not_the_map() -> None:
    """Positions of a video, from outside, stand in front of it."""
    net = Net()
    video, positions = net.input("video", 3, 2, 8, 8, WIDTH), net.input("positions", 2, 8, 8, WIDTH)
    value = net.op("Add", positions, video)
    apart = net.reshape(value, 3, 1, 2, 2, 4, 2, 4, WIDTH)
    rows = net.reshape(net.turn(apart, 0, 1, 3, 5, 2, 4, 6, 7), 3, 4, 32, WIDTH)
    for name in ("first", "second"):
        out = self_attention(net, net.reshape(rows, -1, 32, WIDTH), name=name)
        rows = net.op("Add", rows, net.reshape(out, 3, 4, 32, WIDTH))
    net.output(rows)
    assert windows(net.model()) == [{"size": [2, 4, 4], "shift": [0, 0, 0], "grid": [1, 2, 2]}] * 2
