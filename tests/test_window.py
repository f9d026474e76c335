"""The window of a site is read by moving numbered places, whatever nodes spell the movement; what is no partition is none."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import run_command
from graphs import CHANNELS, HEADS, WIDTH, Net, self_attention
from support import EXPORTS
from windows import ROLLS, Block, Window, attend_units, expected, read, unit_rows, windows

import onnx_attn

SHIFTED = [{"size": [4, 4], "shift": [shift, shift], "grid": [2, 2]} for shift in (0, 2)]
WIDER = [each | {"grid": [4, 4]} for each in SHIFTED]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("swin_t.dynamo.18.static.half", SHIFTED),
        ("swin_v2_t.torchscript.17.dynamic", SHIFTED),
        ("swin_tiny.torchscript.17.dynamic", WIDER),
        ("swin_tiny.dynamo.23.static.half", WIDER),
        ("swinv2_tiny_window8.dynamo.18.dynamic", WIDER),
        ("hf_swin.dynamo.18.dynamic.eager", WIDER),
        ("davit_tiny.dynamo.23.dynamic", [WIDER[0], None, SHIFTED[0], None]),
        ("vit_b_16.torchscript.17.static", [None] * 2),
        ("visformer_tiny.torchscript.17.dynamic.eager", [None] * 3),
        ("edgenext_small.dynamo.18.static", [None] * 3),
        ("tnt_s.torchscript.17.static.eager", None),
        ("crossvit_9.dynamo.18.dynamic.eager", [None] * 5),
        ("llama.torchscript.17.dynamic", [None] * 2),
    ],
)
def test_exports(name: str, wanted: list[Window] | None) -> None:
    found = windows(EXPORTS / f"{name}.onnx")
    assert found == (wanted or [None] * len(found))


@pytest.mark.parametrize("form", ["function", "primitives"])
def test_fused_sites_have_the_same_window(form: str, tmp_path: Path) -> None:
    fused = tmp_path / "fused.onnx"
    result = onnx_attn.fuse(EXPORTS / "swin_t.dynamo.18.static.half.onnx", fused, form=form)
    assert [candidate["window"]["shift"] for candidate in result.report["candidates"]] == [[0, 0], [2, 2]]
    assert windows(fused) == SHIFTED


def test_a_terminal_shows_windows_where_there_are_some() -> None:
    shown = run_command("inspect", EXPORTS / "swin_t.dynamo.18.static.half.onnx").stdout
    assert re.search(r"site-0 .* 4×4 +packed", shown) and re.search(r"site-1 .* 4×4 \+2,2 +packed", shown)
    assert "window" not in run_command("inspect", EXPORTS / "vit_b_16.torchscript.17.static.onnx").stdout


@pytest.mark.parametrize("roll", ROLLS)
@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (2, 0), (0, 1), (3, 1)])
def test_a_roll_of_either_axis_by_whatever_nodes(roll: str, shift: tuple[int, int]) -> None:
    assert read(Block(shift=shift, roll=ROLLS[roll]).model()) == expected((4, 4), shift, (2, 2))


@pytest.mark.parametrize("window", [(2, 4), (4, 2), (8, 2)])
@pytest.mark.parametrize("channels_first", [False, True])
def test_windows_of_unequal_edges(window: tuple[int, int], channels_first: bool) -> None:
    grid = (8 // window[0], 12 // window[1])
    block = Block(edges=(8, 12), window=window, shift=(1, 1), channels_first=channels_first)
    assert read(block.model()) == expected(window, (1, 1), grid)


@pytest.mark.parametrize("shift", [(0, 0), (2, 2), (1, 0)])
@pytest.mark.parametrize("pad_first", [True, False])
def test_padding_up_to_a_multiple(shift: tuple[int, int], pad_first: bool) -> None:
    block = Block(edges=(5, 6), shift=shift, pads=(0, 3, 0, 2), pad_first=pad_first)
    assert read(block.model()) == expected((4, 4), shift, (2, 2)) | {"padding": [[0, 3], [0, 2]]}


def test_padding_all_around() -> None:
    block = Block(edges=(5, 6), pads=(1, 2, 1, 1))
    assert read(block.model()) == expected((4, 4), (0, 0), (2, 2)) | {"padding": [[1, 2], [1, 1]]}


def test_padding_by_zeros_that_are_joined() -> None:
    block = Block(edges=(5, 8))
    net, value = block.start()
    joined = net.op("Concat", value, net.const(np.zeros((2, 3, 8, WIDTH))), axis=1)
    block = Block(edges=(8, 8))
    net.inputs[0].type.tensor_type.shape.dim[0].dim_value = 2
    net.output(self_attention(net, block.cut(net, joined)), 3)
    assert read(net.model()) == expected((4, 4), (0, 0), (2, 2)) | {"padding": [[0, 3], [0, 0]]}


def test_tokens_that_lie_apart_are_a_grid() -> None:
    block = Block(edges=(8, 12), window=(4, 2), strided=True)
    assert read(block.model()) == expected((4, 2), (0, 0), (2, 6), "grid")


@pytest.mark.parametrize(("strided", "kind"), [(False, "window"), (True, "grid")])
def test_one_window_that_is_the_whole_map_shows_by_its_being_cut(strided: bool, kind: str) -> None:
    assert read(Block(edges=(4, 4), strided=strided).model()) == expected((4, 4), (0, 0), (1, 1), kind)


def test_a_map_that_is_not_cut_has_no_window() -> None:
    net, value = Block(edges=(4, 4)).start()
    net.output(self_attention(net, net.reshape(value, 0, 16, WIDTH)), 3)
    assert read(net.model()) is None


def test_one_gather_of_the_flat_map() -> None:
    """Roll and partition as one table of places."""
    block = Block(shift=(3, 1))
    net, value = block.start()
    places = np.roll(np.arange(64).reshape(8, 8), (-3, -1), (0, 1)).reshape(2, 4, 2, 4).transpose(0, 2, 1, 3)
    taken = net.op("Gather", net.reshape(value, 0, 64, WIDTH), net.const(places.reshape(4, 16), np.int64), axis=1)
    net.output(self_attention(net, net.reshape(taken, -1, 16, WIDTH)), 3)
    assert read(net.model()) == expected((4, 4), (3, 1), (2, 2))


@pytest.mark.parametrize("order", ["within", "of windows"])
def test_blocks_in_an_order_of_their_own(order: str) -> None:
    net, value = Block().start()
    places = np.arange(64).reshape(2, 4, 2, 4).transpose(0, 2, 1, 3).reshape(4, 16)
    places = places[[0, 3, 1, 2]] if order == "of windows" else places[:, np.random.default_rng(0).permutation(16)]
    taken = net.op("Gather", net.reshape(value, 0, 64, WIDTH), net.const(places, np.int64), axis=1)
    net.output(self_attention(net, net.reshape(taken, -1, 16, WIDTH)), 3)
    assert read(net.model()) == expected((4, 4), (0, 0), (2, 2), "unit")


def gathered(places: np.ndarray) -> onnx.ModelProto:
    net, value = Block().start()
    taken = net.op("Gather", net.reshape(value, 0, 64, WIDTH), net.const(places, np.int64), axis=1)
    net.output(self_attention(net, net.reshape(taken, -1, places.shape[1], WIDTH)), 3)
    return net.model()


def test_a_permutation_that_is_no_partition() -> None:
    assert read(gathered(np.random.default_rng(1).permutation(64).reshape(4, 16))) is None


def test_windows_that_overlap() -> None:
    starts = [(top, left) for top in (0, 2, 4) for left in (0, 2, 4)]
    whole = np.arange(64).reshape(8, 8)
    assert read(gathered(np.stack([whole[a : a + 4, b : b + 4].reshape(-1) for a, b in starts]))) is None


def test_windows_that_leave_part_of_the_map_out() -> None:
    places = np.arange(64).reshape(2, 4, 2, 4).transpose(0, 2, 1, 3).reshape(4, 16)
    assert read(gathered(places[:3])) is None


def test_rows_of_a_map_are_no_windows() -> None:
    """Nothing tells rows that attend within themselves from a sequence beside another axis of the batch."""
    net, value = Block().start()
    net.output(self_attention(net, net.reshape(value, -1, 8, WIDTH)), 3)
    assert read(net.model()) is None


@pytest.mark.parametrize("axis", [0, 1])
def test_queries_that_are_rolled_alone(axis: int) -> None:
    block = Block()
    net, value = block.start()
    shift = (2, 0) if axis == 0 else (0, 2)
    q, k, v = (
        net.split_heads(net.linear(each.cut_map(net, value), CHANNELS)) for each in (Block(shift=shift), block, block)
    )
    net.output(net.sdpa(q, net.swap(k), v))
    assert read(net.model()) is None


@pytest.mark.parametrize("kernel", [2, 4])
def test_keys_from_a_strided_convolution(kernel: int) -> None:
    net = Net()
    picture = net.input("picture", "batch", WIDTH, 8, 8)
    small = net.op("Conv", picture, net.weight(WIDTH, WIDTH, kernel, kernel), strides=[kernel] * 2)
    full, few = (net.turn(net.reshape(each, 0, WIDTH, -1), 0, 2, 1) for each in (picture, small))
    q, k, v = (net.split_heads(net.linear(each, CHANNELS)) for each in (full, few, few))
    net.output(net.sdpa(q, net.swap(k), v))
    assert read(net.model()) is None


@pytest.mark.parametrize("norm", ["decomposed", "none"])
@pytest.mark.parametrize("layer", ["packed", "pointwise"])
def test_through_norms_and_layers_of_other_spellings(norm: str, layer: str) -> None:
    """A LayerNorm of plain operators, and one product for Q, K and V that is cut apart, or a 1 × 1 convolution in front."""
    net = Net()
    value = net.input("picture", "batch", 8, 8, WIDTH)
    if norm == "decomposed":
        centred = net.op("Sub", value, net.op("ReduceMean", value, axes=[-1]))
        spread = net.op("ReduceMean", net.op("Mul", centred, centred), axes=[-1])
        value = net.op("Div", centred, net.op("Sqrt", net.op("Add", spread, net.const(1e-5))))
    if layer == "pointwise":
        value = net.op("Conv", net.turn(value, 0, 3, 1, 2), net.weight(WIDTH, WIDTH, 1, 1))
        value = net.turn(value, 0, 2, 3, 1)
    rows = Block(shift=(2, 2)).cut_map(net, value)
    packed = net.turn(net.reshape(net.linear(rows, 3 * CHANNELS), -1, 16, 3, HEADS, CHANNELS // HEADS), 2, 0, 3, 1, 4)
    q, k, v = (net.op("Gather", packed, net.const(number, np.int64), axis=0) for number in range(3))
    net.output(net.sdpa(q, net.swap(k), v))
    assert read(net.model()) == expected((4, 4), (2, 2), (2, 2))


def test_a_second_layer_on_rows_that_stay_cut() -> None:
    """Windows are cut once, and two layers with residuals work on them: the second still has them."""
    block = Block(shift=(1, 1))
    net, value = block.start()
    rows = net.reshape(block.cut_map(net, value), -1, 4, 16, WIDTH)
    for number in range(2):
        flat = net.reshape(rows, -1, 16, WIDTH)
        out = net.reshape(self_attention(net, flat, name=f"softmax_{number}"), -1, 4, 16, WIDTH)
        rows = net.op("Add", rows, out)
    net.output(rows, 4)
    assert windows(net.model()) == [{"size": [4, 4], "shift": [1, 1], "grid": [2, 2]}] * 2


@pytest.mark.parametrize("pool", ["ReduceMax", "ReduceMean"])
def test_masked_units_before_and_behind_a_pooling(pool: str) -> None:
    net, value = Block().start()
    rows = attend_units(net, attend_units(net, unit_rows(net, value), 64, "first"), 64, "second")
    smaller = net.op(pool, net.reshape(rows, -1, 4, 16, WIDTH), axes=[1], keepdims=0)
    net.output(attend_units(net, smaller, 16, "third"), 3)
    sizes = {"shift": [0, 0], "grid": [2, 2]}
    assert windows(net.model()) == [{"size": [4, 4]} | sizes] * 2 + [{"size": [2, 2]} | sizes]


def test_a_pooling_over_what_is_no_block() -> None:
    net, value = Block().start()
    rows = attend_units(net, unit_rows(net, value), 64, "first")
    strange = net.op("Gather", rows, net.ints(*np.random.default_rng(0).permutation(64)), axis=1)
    smaller = net.op("ReduceMax", net.reshape(strange, -1, 4, 16, WIDTH), axes=[1], keepdims=0)
    net.output(attend_units(net, smaller, 16, "second"), 3)
    assert windows(net.model())[1] is None


def test_places_that_meet_the_mean_of_their_block() -> None:
    """What is pooled is multiplied with what it was pooled from: no row is of one token any more."""
    net, value = Block().start()
    rows = net.reshape(unit_rows(net, value), -1, 1, 4, 16, WIDTH)
    mean = net.op("ReduceMean", rows, axes=[2], keepdims=1)
    net.output(attend_units(net, net.reshape(net.op("Mul", rows, mean), -1, 64, WIDTH), 64, "softmax"), 3)
    assert read(net.model()) is None
