"""Masks are named by what they are made of, and a shift mask is held against the roll."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from graphs import CHANNELS, HEADS
from support import EXPORTS
from windows import Block, expected, kinds, read


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("swin_t.dynamo.18.static.half", [["relative_bias"], ["relative_bias", "window"]]),
        ("swin_v2_t.torchscript.17.dynamic", [["relative_bias"], ["relative_bias", "window"]]),
        ("swinv2_tiny_window8.dynamo.18.dynamic", [["relative_bias"], ["relative_bias", "window"]]),
        # The exporter added both and one copy for each window.
        ("swin_tiny.dynamo.23.static.half", [["relative_bias"], ["window"]]),
        ("t5_encoder.dynamo.18.static.eager.half", [["relative_bias", "additive"]] * 2),
    ],
)
def test_kinds_of_masks(name: str, wanted: list[list[str]]) -> None:
    assert kinds(EXPORTS / f"{name}.onnx") == wanted


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
