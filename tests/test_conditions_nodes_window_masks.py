"""Kinds of masks, and masks by window held against the roll: with padding, subtracted, without a roll, along one axis alone."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import CHANNELS, HEAD_DIM, HEADS, Net
from onnx import helper
from windows import Block, kinds, read

import onnx_attn

S = 16


def site(block: Block, *masks: tuple[str, np.ndarray]) -> onnx.ModelProto:
    """Windows of a map, and scores `(B·nW, N, S, S)` that meet masks `(B, nW, N, S, S)`, each by an operator."""
    net, value = block.start()
    q, k, v = (net.split_heads(net.linear(block.cut_map(net, value), CHANNELS)) for _ in range(3))

    def scores(found: str) -> str:
        found = net.scaled(found)
        for op, mask in masks:
            apart = net.reshape(found, -1, *(mask.shape[1:2] if mask.shape[1] > 1 else (1,)), HEADS, S, S)
            found = net.reshape(net.op(op, apart, net.const(mask)), -1, HEADS, S, S)
        return found

    net.output(net.sdpa(q, net.swap(k), v, scores))
    return net.model()


def cut(places: np.ndarray) -> np.ndarray:
    """What lies in each window of 4 × 4, `(nW, S)`."""
    rows, columns = (size // 4 for size in places.shape)
    return places.reshape(rows, 4, columns, 4).transpose(0, 2, 1, 3).reshape(-1, S)


def moved(block: Block, values: np.ndarray, fill: float) -> np.ndarray:
    """Numbers of a map, rolled and padded as the block is."""
    top, bottom, left, right = block.pads
    for pads in (block.pad_first, not block.pad_first):
        if pads:
            values = np.pad(values, ((top, bottom), (left, right)), constant_values=fill)
        else:
            values = np.roll(values, [-shift for shift in block.shift], (0, 1))
    return values


def shift_mask(block: Block, among_padding: float = 0.0) -> np.ndarray:
    """`(1, nW, 1, S, S)`: −100 between places that the roll brings together from two ends of the map (of the padded one, where
    that is what is rolled), and some number wherever padding is."""
    top, bottom, left, right = block.pads
    whole = [edge + sum(pads) for edge, pads in zip(block.edges, ((top, bottom), (left, right)), strict=True)]
    if not block.pad_first:
        whole = list(block.edges)
    own = cut(moved(block, np.ones(block.edges), 0.0)) == 1
    ends = [np.arange(edge) < by for edge, by in zip(whole, block.shift, strict=True)]
    regions = ends[0][:, None] * 2 + ends[1][None]
    if block.pad_first:
        brought = cut(np.roll(regions, [-shift for shift in block.shift], (0, 1)))
    else:
        brought = cut(moved(block, regions, 0))
    apart = np.where(brought[:, :, None] == brought[:, None], 0.0, -100.0)
    return np.where(own[:, :, None] & own[:, None], apart, among_padding)[None, :, None]


PADDED = {"edges": (5, 6), "pads": (0, 3, 0, 2), "shift": (2, 1), "batch": 1}
BLOCKS = {
    "whole": Block(shift=(2, 2), batch=1),
    "one axis": Block(shift=(2, 0), batch=1),
    "padded, then rolled": Block(**PADDED),  # type: ignore[arg-type]
    "rolled, then padded": Block(**PADDED, pad_first=False),  # type: ignore[arg-type]
    "rolled, then padded along one axis": Block(
        edges=(5, 8), pads=(0, 3, 0, 0), shift=(2, 2), pad_first=False, batch=1
    ),
}


@pytest.mark.parametrize("among_padding", [0.0, -100.0])
@pytest.mark.parametrize("name", BLOCKS)
def test_a_mask_that_agrees_with_the_roll(name: str, among_padding: float) -> None:
    """Whatever it says of padding."""
    block = BLOCKS[name]
    model = site(block, ("Add", shift_mask(block, among_padding)))
    found = read(model)
    assert found is not None and found["shift"] == list(block.shift)
    assert kinds(model) == [["window"]]


@pytest.mark.parametrize("name", [name for name in BLOCKS if name.startswith("rolled")])
def test_a_mask_that_keeps_the_last_places_of_the_padded_map_apart(name: str) -> None:
    """As timm makes it, which rolls a map before it is padded, and masks it as if that were the other way round."""
    block = BLOCKS[name]
    top, bottom, left, right = block.pads
    whole = [edge + pads for edge, pads in zip(block.edges, (top + bottom, left + right), strict=True)]
    ends = [np.arange(edge) >= edge - by for edge, by in zip(whole, block.shift, strict=True)]
    regions = cut(ends[0][:, None] * 2 + ends[1][None])
    mask = np.where(regions[:, :, None] == regions[:, None], 0.0, -100.0)[None, :, None]
    found = read(site(block, ("Add", mask)))
    assert found is not None and found["shift"] == list(block.shift)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "rolled, then padded along one axis"])
def test_a_mask_for_another_roll(name: str) -> None:
    """(Where one window holds a single row of the map beside padding, a roll by 1 and timm's mask are the same.)"""
    block = BLOCKS[name]
    other = dataclasses.replace(block, shift=(1, block.shift[1]))
    assert read(site(block, ("Add", shift_mask(other)))) is None


def test_a_mask_that_is_subtracted_is_the_other_way_round() -> None:
    block = BLOCKS["whole"]
    assert read(site(block, ("Sub", -shift_mask(block)))) is not None
    assert read(site(block, ("Sub", shift_mask(block)))) is None


def test_a_map_that_is_not_rolled_may_have_any_mask() -> None:
    """Such as one that blocks what is padding."""
    block = Block(batch=1)
    mask = shift_mask(BLOCKS["whole"])
    model = site(block, ("Add", mask))
    assert read(model) is not None
    assert kinds(model) == [["window"]]


def test_a_bias_of_two_numbers_by_head_is_not_held_against_the_roll() -> None:
    """As many heads as windows, so that there are as many numbers in it."""
    block = Block(edges=(8, 4), shift=(2, 0), batch=1)
    bias = np.zeros((1, 1, HEADS, S, S))
    bias[0, 0, 1, :, 3] = -1.0
    model = site(block, ("Add", bias))
    assert read(model) is not None
    assert kinds(model) == [["relative_bias"]]


# --- kinds -------------------------------------------------------------------------------------------------------------------


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape)


def plain(mask: np.ndarray, batch: int = 2, length: int = 5) -> onnx.ModelProto:
    """Heads from graph inputs, and one constant mask."""
    net = Net()
    q, k, v = (net.input(name, batch, HEADS, length, HEAD_DIM) for name in "qkv")
    net.output(net.sdpa(q, net.swap(k), v, lambda found: net.op("Add", net.scaled(found), net.const(mask))))
    return net.model()


KINDS: list[tuple[np.ndarray, int, str]] = [
    (numbers(HEADS, 5, 5), 5, "relative_bias"),
    (numbers(1, HEADS, 5, 5), 5, "relative_bias"),
    (numbers(HEADS, 2, 2), 2, "relative_bias"),
    (np.ones((HEADS, 5, 5)), 5, "additive"),
    (numbers(1, 5, 5), 5, "additive"),
    (numbers(5, 5), 5, "additive"),
    (numbers(HEADS, 5, 1), 5, "additive"),
    (numbers(HEADS, 1, 5), 5, "additive"),
    (numbers(2, HEADS, 5, 5), 5, "additive"),
]


@pytest.mark.parametrize(("mask", "length", "kind"), KINDS)
def test_a_constant_table_for_each_head_is_a_bias_by_place(mask: np.ndarray, length: int, kind: str) -> None:
    assert kinds(plain(mask, length=length)) == [[kind]]


def test_a_table_for_each_entry_of_a_batch_without_heads_is_no_bias_by_head() -> None:
    net = Net()
    q, k, v = (net.input(name, 4, 5, HEAD_DIM) for name in "qkv")
    mask = net.const(numbers(4, 5, 5))
    net.output(net.sdpa(q, net.swap(k, 3), v, lambda found: net.op("Add", net.scaled(found), mask)), 3)
    assert kinds(net.model()) == [["additive"]]


def test_a_table_for_each_window_of_each_entry_is_no_mask_by_window() -> None:
    block = Block(batch=2)
    net, value = block.start()
    q, k, v = (net.split_heads(net.linear(block.cut_map(net, value), CHANNELS)) for _ in range(3))
    mask = net.const(numbers(8, 1, S, S))
    net.output(net.sdpa(q, net.swap(k), v, lambda found: net.op("Add", net.scaled(found), mask)))
    assert read(net.model()) is not None
    assert kinds(net.model()) == [["additive"]]


@pytest.mark.parametrize("per_head", [False, True])
def test_a_table_for_each_window_is_a_mask_by_window(per_head: bool) -> None:
    model = site(Block(batch=2), ("Add", numbers(1, 4, HEADS if per_head else 1, S, S)))
    assert kinds(model) == [["window"]]


def test_a_mask_of_unknown_shape_that_a_call_of_ours_reads_is_additive() -> None:
    net = Net()
    given = [net.input(name, 2, HEADS, 5, HEAD_DIM) for name in ("q", "k", "v", "m")]
    given[3] = net.op("Smudge", given[3], domain="somebody")
    net.output(net.op("ScaledDotProductAttention_Mask", *given, domain="onnx_attn", name="softmax"))
    body: list[tuple[str, list[str], dict[str, Any]]] = [
        ("Transpose", ["k"], {"perm": [0, 1, 3, 2]}),
        ("MatMul", ["q", "0"], {}),
        ("Add", ["1", "m"], {}),
        ("Softmax", ["2"], {}),
        ("MatMul", ["3", "v"], {}),
    ]
    nodes = [helper.make_node(op, inputs, [str(place)], **attrs) for place, (op, inputs, attrs) in enumerate(body)]
    opsets = [helper.make_opsetid("", 17)]
    name = "ScaledDotProductAttention_Mask"
    function = helper.make_function("onnx_attn", name, ["q", "k", "v", "m"], ["4"], nodes, opsets)
    model = net.model([function], somebody=1)
    model.opset_import.add(domain="onnx_attn", version=1)
    (candidate,) = onnx_attn.inspect(model)["candidates"]
    assert (candidate["status"], [mask["kind"] for mask in candidate["masks"]]) == ("site", ["additive"])
