"""What is cut into pieces, worked on and joined again still comes from its layer; and what counts as a projection."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net, small_site
from test_conditions_origin import BATCH, LENGTH, annotated, of_layer, read, site

import onnx_attn
from onnx_attn.graph.view import GraphView
from onnx_attn.recognize.candidates import recognize
from onnx_attn.site import AttentionSite


def norms(net: Net, *pieces: str) -> list[str]:
    return [net.op("LayerNormalization", piece, net.weight(HEAD_DIM)) for piece in pieces]


def halves(net: Net, x: str) -> Any:
    return net.op("Split", net.linear(x, CHANNELS), net.ints(HEAD_DIM, HEAD_DIM), outputs=2, axis=-1)


def joined(net: Net, *pieces: str) -> str:
    return of_layer(net, net.op("Concat", *pieces, axis=-1))


def test_each_head_may_have_a_norm_of_its_own() -> None:
    assert read(site(lambda net, x: joined(net, *norms(net, *halves(net, x))))) == (HEADS, "triplet")


@pytest.mark.parametrize("order", ["swapped", "one twice", "one beside", "a sum", "another layer's"])
def test_pieces_that_are_not_put_together_as_they_were(order: str) -> None:
    """Nobody says then where the channels are: heads count as entries of the batch."""

    def make(net: Net, x: str) -> str:
        first, second = halves(net, x)
        one, other = norms(net, first, second)
        third = net.linear(x, HEAD_DIM)
        pieces = {
            "swapped": (other, one),
            "one twice": (one, one),
            "one beside": (one, third),
            "a sum": (one, net.op("Add", second, net.op("Relu", third))),
            "another layer's": (one, norms(net, *halves(net, x))[1]),
        }
        return joined(net, *pieces[order])

    assert read(site(make, keys=make)) == (1, "triplet")


def worked_on(net: Net, x: str, op: str, domain: str = "") -> str:
    """Its first head goes through a node of its own."""
    first, second = halves(net, x)
    inputs = (first, net.const(2, np.int64)) if op == "CumSum" else (first,)
    return joined(net, net.op(op, *inputs, domain=domain), *norms(net, second))


@pytest.mark.parametrize(("op", "domain", "heads"), [("Relu", "", HEADS), ("CumSum", "", 1), ("Relu", "mine", 1)])
def test_pieces_are_followed_through_what_keeps_their_axes(op: str, domain: str, heads: int) -> None:
    def make(net: Net, x: str) -> str:
        return worked_on(net, x, op, domain)

    assert read(annotated(site(make, keys=make), op, BATCH, LENGTH, HEAD_DIM))[0] == heads


def test_an_operator_of_another_domain_joins_nothing() -> None:
    """Though it is called Concat, and has no axis."""

    def make(net: Net, x: str) -> str:
        return of_layer(net, net.op("Concat", *norms(net, *halves(net, x)), domain="mine"))

    assert read(annotated(site(make), "Concat", BATCH, LENGTH, CHANNELS)) == (HEADS, "none")


def test_pieces_that_are_joined_along_another_axis() -> None:
    """Heads stand behind one another then, and channels are no heads."""

    def make(net: Net, x: str) -> str:
        layer = net.reshape(net.linear(x, CHANNELS), BATCH, LENGTH, HEADS, HEAD_DIM)
        pieces = norms(net, *net.op("Split", layer, net.ints(1, 1), outputs=2, axis=2))
        return net.turn(net.reshape(net.op("Concat", *pieces, axis=1), 0, HEADS, LENGTH, HEAD_DIM), 0, 1, 2, 3)

    assert read(site(make))[0] == HEADS


def test_a_part_that_is_computed_from_what_is_stored() -> None:
    def make(net: Net, x: str) -> str:
        first, _ = halves(net, x)
        return joined(net, *norms(net, first), net.op("Neg", net.weight(BATCH, LENGTH, HEAD_DIM)))

    assert read(site(make))[0] == HEADS


def test_pieces_of_what_nobody_knows_the_shape_of() -> None:
    def make(net: Net, x: str) -> str:
        unknown = net.op("Anything", x, domain="mine")
        pieces = net.op("Split", unknown, net.ints(HEAD_DIM, HEAD_DIM), outputs=2, axis=-1)
        return net.split_heads(net.op("Reshape", net.op("Concat", *pieces, axis=0), net.ints(BATCH, LENGTH, CHANNELS)))

    assert read(annotated(site(make), "Reshape", BATCH, LENGTH, CHANNELS))[1] == "none"


def projection_of(model: onnx.ModelProto) -> Any:
    (found,) = recognize(GraphView(model))
    assert isinstance(found, AttentionSite)
    return found.projection


def test_without_any_layer_there_is_no_projection() -> None:
    """As with one layer there is, of no kind."""
    assert projection_of(small_site()) is None

    def given(net: Net, x: str) -> str:
        return net.input(f"in_{len(net.inputs)}", BATCH, HEADS, LENGTH, HEAD_DIM)

    assert projection_of(site(given, keys=given)).kind == "none"


def test_keys_of_all_entries_of_a_batch_do_not_become_queries() -> None:
    """Where sizes vary, K and V are re-arranged flat rows of their layers, and Q is not: the two are packed, and Q stays."""
    net = Net(opset=18)
    x = net.input("x", "batch", "sequence", WIDTH)
    flat = net.reshape(x, -1, WIDTH)
    layers = [net.op("Gemm", flat, net.weight(WIDTH, CHANNELS), net.weight(CHANNELS)) for _ in range(3)]
    q = net.turn(net.reshape(layers[0], (x, 0), (x, 1), HEADS, HEAD_DIM), 0, 2, 1, 3)
    k, v = (net.turn(net.reshape(layer, 1, -1, HEADS, HEAD_DIM), 0, 2, 1, 3) for layer in layers[1:])
    net.output(net.sdpa(q, net.swap(k), v))
    model = net.model()
    result = onnx_attn.fuse(model)
    assert result.report["fused"] == 1 and result.report["candidates"][0]["packed"]
    assert_same(model, result.model)
