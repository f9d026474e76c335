"""K's bias is dropped where softmax cannot see it, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from checks import assert_same
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net
from onnx import TensorProto
from pre_norm import MIXED, ROOT, PreNorm, assert_applied, assert_sound, assert_stays, biases

import onnx_attn

KEY = "key-bias"
INF = float("inf")
LOWEST = float(np.finfo(np.float32).min)


def masked(net: Net, fill: float, keep: bool = True) -> Callable[[str], str]:
    """Scores, scaled and then replaced by `fill` at random places, chosen at run time."""
    allowed = net.input("allowed", 2, 1, 5, 5, dtype=bool)

    def step(scores: str) -> str:
        scores, other = net.scaled(scores), net.const(fill)
        return net.op("Where", allowed, *((scores, other) if keep else (other, scores)))

    return step


def test_bias_is_dropped() -> None:
    block = PreNorm()
    fused = assert_applied(block.model(block.block()), *MIXED)
    assert biases(fused) == [True, False, False]


def test_bias_of_keys_alone_leaves_none() -> None:
    block = PreNorm()
    fused = assert_applied(block.model(block.block(biases="k")), KEY, "scale")
    assert biases(fused) == [False, False, False]


def test_nothing_to_drop_is_no_identity_applied() -> None:
    block = PreNorm()
    assert_applied(block.model(block.block(biases="qv")), "value-bias", "scale")


@pytest.mark.parametrize("fill", [-INF, LOWEST], ids=["-inf", "lowest"])
@pytest.mark.parametrize("keep", [True, False])
def test_scores_replaced_by_what_has_no_probability(fill: float, keep: bool) -> None:
    block = PreNorm()
    fused = assert_applied(block.model(block.block(scores=masked(block.net, fill, keep))), *MIXED)
    assert biases(fused)[1] is False


@pytest.mark.parametrize("fill", [0.0, -1e4, -65504.0, -1e9, 5.0, INF], ids=str)
@pytest.mark.parametrize("keep", [True, False])
def test_scores_replaced_by_what_may_have_a_probability(fill: float, keep: bool) -> None:
    """The bias decides how much of the row goes to the replaced scores."""
    block = PreNorm()
    model = block.model(block.block(scores=masked(block.net, fill, keep)))
    assert biases(assert_stays(model, KEY, "may have a probability"))[1]


def test_of_two_masks_the_milder_decides() -> None:
    block = PreNorm()
    net, first = block.net, masked(block.net, LOWEST)
    again = net.input("again", 2, 1, 1, 5, dtype=bool)
    model = block.model(block.block(scores=lambda s: net.op("Where", again, first(s), net.const(-1.0))))
    assert_stays(model, KEY, "replaced by -1,")


@pytest.mark.parametrize(("fill", "applied"), [(-65504.0, True), (-65472.0, False), (-INF, True)])
def test_lowest_is_that_of_the_scores_type(fill: float, applied: bool) -> None:
    block = PreNorm(dtype=np.float16)
    result = onnx_attn.fuse(block.model(block.block(scores=masked(block.net, fill))))
    (candidate,) = result.report["candidates"]
    assert (candidate["status"], KEY in candidate["algebra"]) == ("site", applied)


@pytest.mark.parametrize(("fill", "applied"), [(-65504.0, False), (LOWEST, True)])
def test_lowest_is_that_of_scores_that_were_cast(fill: float, applied: bool) -> None:
    """Half a model, whose softmax runs in float32."""
    block = PreNorm(dtype=np.float16)
    net = block.net
    allowed = net.input("allowed", 2, 1, 5, 5, dtype=bool)

    def scores(value: str) -> str:
        wide = net.op("Cast", net.scaled(value), to=TensorProto.FLOAT)
        return net.op("Where", allowed, wide, net.const(fill, np.float32))

    def back(value: str) -> str:
        return net.op("Cast", value, to=TensorProto.FLOAT16)

    (candidate,) = onnx_attn.fuse(block.model(block.block(scores=scores, probabilities=back))).report["candidates"]
    assert (candidate["status"], KEY in candidate["algebra"]) == ("site", applied)


@pytest.mark.parametrize("guard", [False, True])
def test_added_masks_do_not_matter(guard: bool) -> None:
    block = PreNorm()
    net = block.net
    mask = net.input("mask", 2, HEADS, 5, 5)

    def cleared(p: str) -> str:
        return net.op("Where", net.op("IsNaN", p), net.const(0.0), p) if guard else p

    model = block.model(block.block(scores=lambda s: net.op("Add", net.scaled(s), mask), probabilities=cleared))
    rows = np.random.default_rng(2).standard_normal((2, HEADS, 5, 5)).astype(np.float32)
    rows[0, 0, 1], rows[1, :, :, 3] = -np.inf, -np.inf
    given = {"x": np.random.default_rng(3).standard_normal((2, 5, WIDTH)).astype(np.float32), "mask": rows}
    assert KEY in onnx_attn.fuse(model).report["candidates"][0]["algebra"]
    assert_same(model, onnx_attn.fuse(model).model, given)


def foreign(block: PreNorm, keys: str, how: str) -> tuple[str, str, str]:
    """Q, K and V of `keys`, to which keys are added that no layer made."""
    net = block.net
    q, k, v = block.heads(keys)
    if how == "pad":
        sizes = net.ints(0, 0, 0, 0, 0, 0, 1, 0)
        return q, net.op("Pad", k, sizes), net.op("Pad", v, sizes)
    if how == "past":
        return q, *(
            net.op("Concat", net.input(f"past_{n}", 2, HEADS, 3, HEAD_DIM), t, axis=2)
            for n, t in zip("kv", (k, v), strict=True)
        )
    zeros = np.zeros((2, HEADS, 1, HEAD_DIM))
    rows = [zeros, zeros] if how == "add_zero_attn" else [net.rng.standard_normal(zeros.shape) for _ in range(2)]
    return q, net.op("Concat", k, net.const(rows[0]), axis=2), net.op("Concat", v, net.const(rows[1]), axis=2)


@pytest.mark.parametrize("how", ["pad", "past", "add_zero_attn", "bias_k"])
def test_keys_of_another_origin(how: str) -> None:
    block = PreNorm()
    model = block.model(block.out(block.attend(*foreign(block, block.x, how))))
    assert_stays(model, KEY)
    assert_stays(model, "value-bias")


@pytest.mark.parametrize("how", ["pad", "zeros"])
def test_keys_of_another_origin_before_the_head_split(how: str) -> None:
    """What a MatMul without bias and its Add in another place would make of it."""
    block = PreNorm()
    net = block.net
    q = net.split_heads(block.layer(block.x))
    added = (
        net.op("Pad", block.layer(block.x), net.ints(0, 0, 0, 0, 1, 0))
        if how == "pad"
        else net.op("Concat", block.layer(block.x), net.const(np.zeros((2, 1, CHANNELS))), axis=1)
    )
    v = net.op("Pad", block.layer(block.x), net.ints(0, 0, 0, 0, 1, 0))
    assert_stays(block.model(block.out(block.attend(q, net.split_heads(added), net.split_heads(v)))), KEY)


def test_keys_joined_before_the_projection_all_have_the_bias() -> None:
    """As a Transformer-XL's memory is: `K = [memory; x]·W + b`."""
    block = PreNorm()
    net = block.net
    joined = net.op("Concat", net.input("memory", 2, 3, WIDTH), block.x, axis=1)
    q = net.split_heads(block.layer(block.x))
    k, v = (net.split_heads(block.layer(joined)) for _ in range(2))
    assert_applied(block.model(block.out(block.attend(q, k, v))), *MIXED)


def rotated(net: Net, value: str) -> str:
    first, second = net.op("Split", value, net.ints(HEAD_DIM // 2, HEAD_DIM // 2), outputs=2, axis=-1)
    turned = net.op("Concat", net.op("Neg", second), first, axis=-1)
    angles = np.outer(np.arange(5), np.arange(1, HEAD_DIM + 1))
    return net.op(
        "Add", net.op("Mul", value, net.const(np.cos(angles))), net.op("Mul", turned, net.const(np.sin(angles)))
    )


def test_rotary_between() -> None:
    block = PreNorm()
    q, k, v = block.heads(block.x)
    model = block.model(block.out(block.attend(rotated(block.net, q), rotated(block.net, k), v)))
    assert_stays(model, KEY)
    assert_stays(model, "scale")


def test_normalised_keys() -> None:
    block = PreNorm()
    q, k, v = block.heads(block.x)
    k = block.net.op("LpNormalization", k, axis=-1)
    assert_stays(block.model(block.out(block.attend(q, k, v))), KEY)


@pytest.mark.parametrize("place", ["before the scale", "behind it"])
def test_softcap(place: str) -> None:
    block = PreNorm()
    net = block.net

    def capped(scores: str) -> str:
        scores = net.scaled(scores) if place == "behind it" else scores
        scores = net.op("Mul", net.op("Tanh", net.op("Div", scores, net.const(2.0))), net.const(2.0))
        return scores if place == "behind it" else net.scaled(scores)

    assert_stays(block.model(block.block(scores=capped)), KEY)


@pytest.mark.parametrize("shape", [(5, 5), (1, 1, 1, 5)], ids=str)
def test_scores_multiplied_by_more_than_a_number(shape: tuple[int, ...]) -> None:
    block = PreNorm()
    net = block.net
    model = block.model(block.block(scores=lambda s: net.op("Mul", s, net.weight(*shape))))
    assert_stays(model, KEY)


@pytest.mark.parametrize("behind", ["a mask", "nothing"])
def test_scores_multiplied_by_what_is_the_same_for_all_keys_lose_the_bias(behind: str) -> None:
    """One number a row stays one number a row, whatever it is multiplied with."""
    block = PreNorm()
    net = block.net
    mask = net.input("mask", 2, 1, 5, 5)

    def scores(s: str) -> str:
        if behind == "a mask":
            return net.scaled(net.op("Add", s, mask))
        return net.op("Add", net.op("Mul", s, net.weight(1, HEADS, 1, 1)), mask)

    _, found = assert_sound(block.model(block.block(scores=scores)))
    assert [KEY in candidate["algebra"] for candidate in found] == [True]


USES: dict[str, Callable[[Net, str], None]] = {
    "by a node": lambda net, k: net.output(net.op("Exp", k)),
    "as an output": lambda net, k: net.output(k),
    "by the mean of its rows": lambda net, k: net.output(net.op("ReduceMean", k, axes=[2])),
}


@pytest.mark.parametrize("use", USES)
def test_keys_that_are_read_elsewhere(use: str) -> None:
    block = PreNorm()
    q, k, v = block.heads(block.x)
    USES[use](block.net, k)
    assert_stays(block.model(block.out(block.attend(q, k, v))), KEY)


def test_keys_that_become_an_output_with_a_past() -> None:
    block = PreNorm()
    q, k, v = foreign(block, block.x, "past")
    block.net.output(k)
    block.net.output(v)
    assert_stays(block.model(block.out(block.attend(q, k, v))), KEY)


def test_scores_with_a_term_made_of_the_keys() -> None:
    """As decomposed relative positions are of the queries."""
    block = PreNorm()
    net = block.net
    q, k, v = block.heads(block.x)
    term = net.turn(net.op("MatMul", k, net.weight(HEAD_DIM, 5)), 0, 1, 3, 2)
    model = block.model(block.out(block.attend(q, k, v, scores=lambda s: net.op("Add", net.scaled(s), term))))
    assert_stays(model, KEY)


def test_keys_that_are_a_mask_too() -> None:
    """One node reads them as keys and as what is added to the scores."""
    block = PreNorm(opset=23, lead=(2, HEAD_DIM))
    q, k, v = block.heads(block.x)
    attended = block.net.op("Attention", q, k, v, k, scale=ROOT, name="softmax")
    assert_stays(block.model(block.out(attended)), KEY)


def test_operator_that_returns_the_scores() -> None:
    net = (block := PreNorm(opset=23)).net
    q, k, v = block.heads(block.x)
    attended, _, _, scores = net.op("Attention", q, k, v, outputs=4, scale=ROOT, name="softmax")
    net.nodes[-1].output[1] = net.nodes[-1].output[2] = ""
    net.output(scores)
    assert_stays(block.model(block.out(attended)), KEY)


def test_operator_with_a_softcap() -> None:
    block = PreNorm(opset=23)
    attended = block.net.op("Attention", *block.heads(block.x), scale=ROOT, softcap=2.0, name="softmax")
    assert_stays(block.model(block.out(attended)), KEY)


def test_lowest_number_beside_a_mask_that_is_added() -> None:
    """The added mask may block all other keys of a row, and then the lowest number has a probability."""
    block = PreNorm()
    net = block.net
    mask, replaced = net.input("mask", 2, 1, 5, 5), masked(net, LOWEST)
    model = block.model(block.block(scores=lambda scores: net.op("Add", replaced(scores), mask)))
    assert_stays(model, KEY, "may have a probability")
