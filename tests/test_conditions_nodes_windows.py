"""Windows where the map, its batch or what is cut is as hardly any model has it: read as what it is, or not at all."""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
from graphs import CHANNELS, HEADS, WIDTH, Net, self_attention
from windows import Block, attend_units, expected, read, unit_rows, windows

import onnx_attn
from onnx_attn.recognize import window as window_module

FOUR = expected((4, 4), (0, 0), (2, 2))


def batch_of_two(**knobs: object) -> Block:
    return Block(batch=2, **knobs)  # type: ignore[arg-type]


def entry(net: Net, value: str, number: int, first: int = 0, last: int = 8) -> str:
    """Some rows of one entry of the batch."""
    starts, ends = net.ints(number, first), net.ints(number + 1, last)
    return net.op("Slice", value, starts, ends, net.ints(0, 1))


def attended(net: Net, rows: str) -> onnx.ModelProto:
    net.output(self_attention(net, rows), 3)
    return net.model()


# --- the batch ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, "batch"])
def test_windows_of_any_batch(batch: int | str) -> None:
    assert read(Block(batch=batch).model()) == FOUR


def test_windows_of_all_entries_may_stand_one_kind_after_the_other() -> None:
    """`(nW, B, S, E)`: the batch lies inside."""
    block = Block()
    net, value = block.start()
    apart = net.reshape(value, -1, 2, 4, 2, 4, WIDTH)
    rows = net.reshape(net.turn(apart, 1, 3, 0, 2, 4, 5), -1, 16, WIDTH)
    assert read(attended(net, rows)) == FOUR


def in_reverse(net: Net, value: str) -> str:
    """The last entry first."""
    return net.op("Gather", value, net.ints(1, 0), axis=0)


def second_entry_rolled(net: Net, value: str) -> str:
    first, second = (entry(net, value, number) for number in range(2))
    below, above = (net.op("Slice", second, net.ints(a), net.ints(b), net.ints(1)) for a, b in ((2, 8), (0, 2)))
    return net.op("Concat", first, net.op("Concat", below, above, axis=1), axis=0)


def second_entry_has_rows_of_the_first(net: Net, value: str) -> str:
    mixed = net.op("Concat", entry(net, value, 0, 0, 2), entry(net, value, 1, 2, 8), axis=1)
    return net.op("Concat", entry(net, value, 0), mixed, axis=0)


def first_entry_has_rows_of_the_second(net: Net, value: str) -> str:
    mixed = net.op("Concat", entry(net, value, 1, 0, 2), entry(net, value, 0, 2, 8), axis=1)
    return net.op("Concat", mixed, entry(net, value, 1), axis=0)


MIXED: list[Callable[[Net, str], str]] = [
    in_reverse,
    second_entry_rolled,
    second_entry_has_rows_of_the_first,
    first_entry_has_rows_of_the_second,
]


@pytest.mark.parametrize("mix", MIXED, ids=lambda mix: mix.__name__)
def test_entries_that_are_not_cut_alike_have_no_window(mix: Callable[[Net, str], str]) -> None:
    block = batch_of_two()
    net, value = block.start()
    assert read(attended(net, block.cut(net, mix(net, value)))) is None


def test_a_roll_by_the_size_of_the_batch_is_no_roll_that_could_be_told() -> None:
    block = Block()
    net, value = block.start()
    size = net.op("Slice", net.op("Shape", value), net.ints(0), net.ints(1))
    first = net.op("Slice", value, size, net.ints(8), net.ints(1))
    last = net.op("Slice", value, net.ints(0), size, net.ints(1))
    assert read(attended(net, block.cut(net, net.op("Concat", first, last, axis=1)))) is None


# --- the map -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edges", "window", "grid"), [((4, 8), (4, 4), (1, 2)), ((2, 8), (2, 4), (1, 2)), ((8, 2), (2, 2), (4, 1))]
)
def test_a_map_of_two_windows_or_of_two_rows(
    edges: tuple[int, int], window: tuple[int, int], grid: tuple[int, int]
) -> None:
    assert read(Block(edges=edges, window=window).model()) == expected(window, (0, 0), grid)


def test_an_axis_of_one_in_front_of_the_map_is_not_part_of_it() -> None:
    """As pictures of a film of one."""
    block = Block()
    net = Net()
    film = net.input("film", "batch", 1, 8, 8, WIDTH)
    assert read(attended(net, block.cut(net, net.reshape(film, -1, 8, 8, WIDTH)))) == FOUR


def test_a_map_that_is_cropped_out_of_a_picture_of_any_size() -> None:
    block = Block()
    net = Net()
    picture = net.input("picture", "batch", "height", "width", WIDTH)
    crop = net.op("Slice", picture, net.ints(0, 0), net.ints(8, 8), net.ints(1, 2))
    assert read(attended(net, block.cut(net, crop))) == FOUR


def test_a_padded_window_may_hold_the_first_place_of_the_map_alone() -> None:
    block = Block(edges=(5, 5), pads=(3, 0, 3, 0))
    assert read(block.model()) == FOUR | {"padding": [[3, 0], [3, 0]]}


def test_a_window_of_padding_alone_is_none() -> None:
    assert read(Block(edges=(4, 8), pads=(0, 4, 0, 0)).model()) is None


@pytest.mark.parametrize("shape", [(2, 0, 8, WIDTH), (2, 8, 0, WIDTH), (0, 8, 8, WIDTH)], ids=str)
def test_a_map_without_places_has_no_window(shape: tuple[int, ...]) -> None:
    net = Net()
    value = net.input("x", *shape)
    heads = net.turn(net.reshape(value, *shape[:3], 2, WIDTH // 2), 0, 1, 3, 2, 4)
    net.output(net.sdpa(heads, net.swap(heads, 5), heads), 5)
    assert read(net.model()) is None


@pytest.mark.parametrize(("most", "wanted"), [(2 * 8 * 8 * WIDTH, FOUR), (2 * 8 * 8 * WIDTH - 1, None)])
def test_places_of_a_map_are_counted_up_to_a_limit(most: int, wanted: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "MOST_POSITIONS", most)
    assert read(batch_of_two().model()) == wanted


# --- Q, K and V --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rolled", ["q", "k", "v"])
def test_operands_of_different_rows_have_no_window(rolled: str) -> None:
    net, value = Block().start()
    shifts = [(2, 0) if name == rolled else (0, 0) for name in "qkv"]
    q, k, v = (net.split_heads(net.linear(Block(shift=shift).cut_map(net, value), CHANNELS)) for shift in shifts)
    net.output(net.sdpa(q, net.swap(k), v))
    assert read(net.model()) is None


def test_one_window_and_one_head_without_an_axis_of_either() -> None:
    """`(1, 16, E)`: three axes, of which the first is as good as heads."""
    net = Net()
    value = net.input("picture", 1, 4, 4, WIDTH)
    cut = net.turn(net.reshape(value, 1, 1, 4, 1, 4, WIDTH), 0, 1, 3, 2, 4, 5)
    rows = net.reshape(cut, 1, 16, WIDTH)
    net.output(net.sdpa(rows, net.swap(rows, 3), rows), 3)
    assert read(net.model()) == expected((4, 4), (0, 0), (1, 1))


def test_an_operator_of_a_runtime_has_no_window() -> None:
    """Its operands have no axis of heads, and the windows' would be taken for it."""
    net = Net()
    value = net.input("picture", 1, 4, 4, CHANNELS)
    cut = net.turn(net.reshape(value, 1, 1, 4, 1, 4, CHANNELS), 0, 1, 3, 2, 4, 5)
    rows = net.reshape(cut, 1, 16, CHANNELS)
    net.output(
        net.op("MultiHeadAttention", rows, rows, rows, domain="com.microsoft", num_heads=HEADS, name="softmax"), 3
    )
    model = net.model(com_microsoft=1)
    (kept,) = onnx_attn.fuse(model, target="onnxruntime").report["candidates"]
    assert (kept["form"], kept["window"]) == ("contrib", None)


# --- pooling -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keepdims", [0, 1])
def test_units_behind_a_pooling_that_keeps_its_axis_or_does_not(keepdims: int) -> None:
    net, value = Block().start()
    rows = attend_units(net, unit_rows(net, value), 64, "first")
    smaller = net.op("ReduceMax", net.reshape(rows, -1, 4, 16, WIDTH), axes=[1], keepdims=keepdims)
    net.output(attend_units(net, net.reshape(smaller, -1, 16, WIDTH), 16, "second"), 3)
    assert windows(net.model())[1] == {"size": [2, 2], "shift": [0, 0], "grid": [2, 2]}


def pooled(change: Callable[[Net, str], str]) -> onnx.ModelProto:
    """Two entries of 8 × 8 rows `(2, 64, E)`, changed and pooled over blocks of 2 × 2, and windows of 2 × 2 of what they are
    pooled to. No tensor on the way has the axes of a map."""
    net, value = batch_of_two().start()
    changed = change(net, net.reshape(value, 2, 64, WIDTH))
    smaller = net.op("ReduceMean", net.reshape(changed, 2, 4, 2, 4, 2, WIDTH), axes=[2, 4])
    apart = net.turn(net.reshape(smaller, 2, 2, 2, 2, 2, WIDTH), 0, 1, 3, 2, 4, 5)
    return attended(net, net.reshape(apart, -1, 4, WIDTH))


def joined(net: Net, value: str, axis: int, *spans: tuple[int, int]) -> str:
    """Spans of a value, one behind the other."""
    parts = [net.op("Slice", value, net.ints(first), net.ints(last), net.ints(axis)) for first, last in spans]
    return net.op("Concat", *parts, axis=axis)


def of_other_entries(net: Net, rows: str) -> str:
    """Every other column is of the other entry."""
    own, other = (net.reshape(each, 2, 32, 2, WIDTH) for each in (rows, joined(net, rows, 0, (1, 2), (0, 1))))
    columns = net.op("Slice", own, net.ints(0), net.ints(1), net.ints(2))
    others = net.op("Slice", other, net.ints(1), net.ints(2), net.ints(2))
    return net.reshape(net.op("Concat", columns, others, axis=2), 2, 64, WIDTH)


def one_place_further(net: Net, rows: str) -> str:
    return joined(net, rows, 1, (1, 64), (0, 1))


def with_rows_twice(net: Net, rows: str) -> str:
    return joined(net, rows, 1, (0, 32), (0, 32))


def test_windows_of_a_map_that_was_pooled() -> None:
    assert read(pooled(lambda net, rows: rows)) == expected((2, 2), (0, 0), (2, 2))


@pytest.mark.parametrize(
    "change", [of_other_entries, one_place_further, with_rows_twice], ids=lambda change: change.__name__
)
def test_a_pooling_of_what_is_no_block_of_one_entry(change: Callable[[Net, str], str]) -> None:
    assert read(pooled(change)) is None


def test_what_was_pooled_beside_a_part_of_what_it_was_pooled_from() -> None:
    """The part is no padding: only what both were joined to is a map."""
    net, value = Block().start()
    part = net.op("Slice", value, net.ints(0, 0), net.ints(4, 4), net.ints(1, 2))
    smaller = net.op("ReduceMean", net.reshape(value, -1, 4, 2, 4, 2, WIDTH), axes=[2, 4], keepdims=0)
    rows = Block(edges=(4, 8), window=(2, 8)).cut(net, net.op("Concat", smaller, part, axis=2))
    assert read(attended(net, rows)) == expected((2, 8), (0, 0), (2, 1))
