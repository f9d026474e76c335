"""The window of a site is read by moving numbered places, whatever nodes spell the movement; what is no partition is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import CHANNELS, HEADS, WIDTH, Net, self_attention
from support import EXPORTS

import onnx_attn

Window = dict[str, Any] | None
SHIFTED = [{"size": [4, 4], "shift": [shift, shift], "grid": [2, 2]} for shift in (0, 2)]
WIDER = [each | {"grid": [4, 4]} for each in SHIFTED]


def windows(model: onnx.ModelProto | Any) -> list[Window]:
    """By site, the keys that the interface promises."""
    found = [candidate["window"] for candidate in onnx_attn.inspect(model)["candidates"]]
    return [window and {key: window[key] for key in ("size", "shift", "grid")} for window in found]


def kinds(model: onnx.ModelProto | Any) -> list[list[str]]:
    return [[mask["kind"] for mask in site["masks"]] for site in onnx_attn.inspect(model)["candidates"]]


@pytest.mark.parametrize(
    ("name", "expected"),
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
def test_exports(name: str, expected: list[Window] | None) -> None:
    found = windows(EXPORTS / f"{name}.onnx")
    assert found == (expected or [None] * len(found))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("swin_t.dynamo.18.static.half", [["relative_bias"], ["relative_bias", "window"]]),
        ("swin_v2_t.torchscript.17.dynamic", [["relative_bias"], ["relative_bias", "window"]]),
        ("swinv2_tiny_window8.dynamo.18.dynamic", [["relative_bias"], ["relative_bias", "window"]]),
        # The exporter added both and one copy for each window.
        ("swin_tiny.dynamo.23.static.half", [["relative_bias"], ["window"]]),
        ("t5_encoder.dynamo.18.static.eager.half", [["relative_bias", "additive"]] * 2),
    ],
)
def test_kinds_of_masks(name: str, expected: list[list[str]]) -> None:
    assert kinds(EXPORTS / f"{name}.onnx") == expected


def test_fuse_reports_the_window_too(tmp_path: Any) -> None:
    report = onnx_attn.fuse(EXPORTS / "swin_tiny.torchscript.17.dynamic.onnx", tmp_path / "fused.onnx").report
    assert [candidate["window"]["shift"] for candidate in report["candidates"]] == [[0, 0], [2, 2]]


Roll = Callable[[Net, str, int, int, int], str]


def by_slices(net: Net, value: str, axis: int, shift: int, size: int) -> str:
    """`value` rolled by −shift."""
    first = net.op("Slice", value, net.ints(shift), net.ints(2**31), net.ints(axis))
    last = net.op("Slice", value, net.ints(0), net.ints(shift), net.ints(axis))
    return net.op("Concat", first, last, axis=axis)


def by_split(net: Net, value: str, axis: int, shift: int, size: int) -> str:
    parts = net.op("Split", value, net.ints(shift, size - shift), axis=axis, outputs=2)
    return net.op("Concat", parts[1], parts[0], axis=axis)


def by_indices(net: Net, value: str, axis: int, shift: int, size: int) -> str:
    return net.op("Gather", value, net.ints(*np.roll(np.arange(size), -shift)), axis=axis)


ROLLS: dict[str, Roll] = {"Slice": by_slices, "Split": by_split, "Gather": by_indices}


@dataclass
class Block:
    """A map `(B, H, W, E)` that is normed, rolled, padded, cut into windows `(B·nW, Wh·Ww, E)` and attended to."""

    edges: tuple[int, int] = (8, 8)
    window: tuple[int, int] = (4, 4)
    shift: tuple[int, int] = (0, 0)
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)
    roll: Roll = by_slices
    strided: bool = False
    pad_first: bool = True
    channels_first: bool = False
    batch: int | str = "batch"

    def start(self) -> tuple[Net, str]:
        net = Net()
        if self.channels_first:
            picture = net.input("picture", self.batch, WIDTH, *self.edges)
            return net, net.turn(picture, 0, 2, 3, 1)
        picture = net.input("picture", self.batch, *self.edges, WIDTH)
        return net, net.op("LayerNormalization", picture, net.weight(WIDTH), net.weight(WIDTH), axis=-1)

    def padded(self, net: Net, value: str) -> str:
        top, bottom, left, right = self.pads
        return net.op("Pad", value, net.ints(0, top, left, 0, 0, bottom, right, 0)) if any(self.pads) else value

    def rolled(self, net: Net, value: str) -> str:
        top, bottom, left, right = self.pads if self.pad_first else (0, 0, 0, 0)
        sizes = (self.edges[0] + top + bottom, self.edges[1] + left + right)
        for axis, (shift, size) in enumerate(zip(self.shift, sizes, strict=True), 1):
            value = self.roll(net, value, axis, shift, size) if shift else value
        return value

    def cut(self, net: Net, value: str) -> str:
        top, bottom, left, right = self.pads
        sizes = (self.edges[0] + top + bottom, self.edges[1] + left + right)
        grid = [size // edge for size, edge in zip(sizes, self.window, strict=True)]
        edges = list(zip(self.window, grid, strict=True) if self.strided else zip(grid, self.window, strict=True))
        apart = net.reshape(value, -1, *edges[0], *edges[1], WIDTH)
        turned = net.turn(apart, 0, 2, 4, 1, 3, 5) if self.strided else net.turn(apart, 0, 1, 3, 2, 4, 5)
        return net.reshape(turned, -1, self.window[0] * self.window[1], WIDTH)

    def cut_map(self, net: Net, value: str) -> str:
        steps = [self.padded, self.rolled] if self.pad_first else [self.rolled, self.padded]
        for step in (*steps, self.cut):
            value = step(net, value)
        return value

    def model(self) -> onnx.ModelProto:
        net, value = self.start()
        net.output(self_attention(net, self.cut_map(net, value)), 3)
        return net.model()


def read(model: onnx.ModelProto) -> Window:
    (candidate,) = onnx_attn.inspect(model)["candidates"]
    assert candidate["status"] == "site", candidate
    return candidate["window"]


def expected(size: Sequence[int], shift: Sequence[int], grid: Sequence[int], kind: str = "window") -> dict[str, Any]:
    return {"size": list(size), "shift": list(shift), "grid": list(grid), "kind": kind, "padding": [[0, 0], [0, 0]]}


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


def shift_mask(edges: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> np.ndarray:
    """`(nW, S, S)`: −100 between places that the roll brings together from two ends of the map."""
    ends = [np.arange(edge) >= edge - by for edge, by in zip(edges, shift, strict=True)]
    regions = ends[0][:, None] * 2 + ends[1][None]
    grid = [edge // size for edge, size in zip(edges, window, strict=True)]
    cut = (
        regions.reshape(grid[0], window[0], grid[1], window[1]).transpose(0, 2, 1, 3).reshape(-1, window[0] * window[1])
    )
    return np.where(cut[:, :, None] == cut[:, None], 0.0, -100.0)


def masked(mask: np.ndarray, batch: int = 1) -> onnx.ModelProto:
    block = Block(shift=(2, 2), batch=batch)
    net, value = block.start()
    q, k, v = (net.split_heads(net.linear(block.cut_map(net, value), CHANNELS)) for _ in range(3))
    bias = net.weight(HEADS, 16, 16)

    def scores(logits: str) -> str:
        biased = net.reshape(net.op("Add", net.scaled(logits), bias), batch, 4, HEADS, 16, 16)
        return net.reshape(net.op("Add", biased, net.const(mask[None, :, None])), -1, HEADS, 16, 16)

    net.output(net.sdpa(q, net.swap(k), v, scores))
    return net.model()


def test_a_mask_that_agrees_with_the_roll() -> None:
    model = masked(shift_mask((8, 8), (4, 4), (2, 2)), batch=2)
    assert read(model) == expected((4, 4), (2, 2), (2, 2))
    assert kinds(model) == [["relative_bias", "window"]]


@pytest.mark.parametrize("shift", [(1, 1), (2, 0), (3, 2)])
def test_a_mask_for_another_roll(shift: tuple[int, int]) -> None:
    assert read(masked(shift_mask((8, 8), (4, 4), shift), batch=2)) is None


def test_the_same_number_for_all_windows_is_no_mask_by_window() -> None:
    assert kinds(masked(np.ones((4, 16, 16)), batch=2)) == [["relative_bias", "additive"]]


def test_a_bias_that_is_given_is_not_constant() -> None:
    net, value = Block().start()
    rows = Block().cut_map(net, value)
    q, k, v = (net.split_heads(net.linear(rows, CHANNELS)) for _ in range(3))
    bias = net.input("bias", HEADS, 16, 16)
    net.output(net.sdpa(q, net.swap(k), v, lambda logits: net.op("Add", net.scaled(logits), bias)))
    assert kinds(net.model()) == [["additive"]]
