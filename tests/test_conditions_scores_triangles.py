"""Triangles that mask a site: which are causality by position, whatever the lengths are, and which are numbers like others."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from checks import feeds, fused
from graphs import HEAD_DIM, HEADS, Net, heads_in
from onnx import TensorProto, helper

LENGTH = 5


def size(net: Net, tensor: str, axis: int = -2) -> str:
    return net.op("Shape", tensor, start=axis, end=axis + 1)


def triangular(net: Net, q: str, kt: str, v: str, sizes: str) -> str:
    """Attention whose mask is a lower triangle of ones of these sizes."""
    lower = net.op("Trilu", net.op("Expand", net.const(1.0), sizes), upper=0, name="triangle")
    mask = net.op("Cast", lower, to=TensorProto.BOOL)
    return net.sdpa(q, kt, v, lambda s: net.op("Where", mask, net.scaled(s), net.const(-np.inf)))


def plain(net: Net, *shape: int | str) -> tuple[str, str, str]:
    return net.input("q", *shape), net.input("k", *shape), net.input("v", *shape)


def by_lengths(net: Net) -> None:
    q, k, v = plain(net, 2, HEADS, "length", HEAD_DIM)
    net.output(triangular(net, q, net.swap(k), v, net.op("Concat", size(net, q), size(net, k), axis=0)))


def of_a_scaled_query(net: Net) -> None:
    q, k, v = plain(net, 2, HEADS, "length", HEAD_DIM)
    sizes = net.op("Concat", size(net, q), size(net, k), axis=0)
    net.output(triangular(net, net.scaled(q, 0.5), net.swap(k), v, sizes))


def by_stored_sizes(net: Net) -> None:
    q, k, v = plain(net, 2, HEADS, LENGTH, HEAD_DIM)
    net.output(triangular(net, q, net.swap(k), v, net.ints(LENGTH, LENGTH)))


def by_one_stored_size(net: Net) -> None:
    q, k, v = plain(net, 2, HEADS, LENGTH, HEAD_DIM)
    net.output(triangular(net, q, net.swap(k), v, net.op("Concat", net.ints(LENGTH), size(net, k), axis=0)))


def by_three_sizes(net: Net) -> None:
    """A column of ones for each head, of which there are as many as queries."""
    q, k, v = plain(net, 2, LENGTH, LENGTH, HEAD_DIM)
    sizes = net.op("Concat", size(net, q), size(net, k), net.ints(1), axis=0)
    net.output(triangular(net, q, net.swap(k), v, sizes))


def by_a_stored_triangle(net: Net) -> None:
    q, kt, v = heads_in(net)
    mask = net.const(np.tri(LENGTH, dtype=bool), bool)
    net.output(net.sdpa(q, kt, v, lambda s: net.op("Where", mask, net.scaled(s), net.const(-np.inf))))


def by_a_key_that_is_given_turned(net: Net) -> None:
    q, kt = net.input("q", 2, HEADS, LENGTH, HEAD_DIM), net.input("kt", 2, HEADS, HEAD_DIM, LENGTH)
    v = net.input("v", 2, HEADS, LENGTH, HEAD_DIM)
    net.output(triangular(net, q, kt, v, net.op("Concat", size(net, q), size(net, v), axis=0)))


def by_heads_for_queries(net: Net) -> None:
    """One row, in which each query keeps the first key alone."""
    q, k, v = plain(net, 2, 1, "length", HEAD_DIM)
    net.output(triangular(net, q, net.swap(k), v, net.op("Concat", size(net, q, -3), size(net, k), axis=0)))


def by_heads_of_a_key_turned_another_way(net: Net) -> None:
    """One column of ones, which blocks nothing."""
    q, v = net.input("q", 2, 1, "length", HEAD_DIM), net.input("v", 2, 1, "length", HEAD_DIM)
    k = net.input("k", 2, "length", 1, HEAD_DIM)
    net.output(triangular(net, q, net.turn(k, 0, 2, 3, 1), v, net.op("Concat", size(net, q), size(net, k), axis=0)))


TRIANGLES: dict[Callable[[Net], None], bool] = {
    by_lengths: True,
    of_a_scaled_query: True,
    by_stored_sizes: False,
    by_one_stored_size: False,
    by_three_sizes: False,
    by_a_stored_triangle: False,
    by_a_key_that_is_given_turned: False,
    by_heads_for_queries: False,
    by_heads_of_a_key_turned_another_way: False,
}


@pytest.mark.parametrize("write", TRIANGLES, ids=lambda write: write.__name__)
def test_a_triangle_is_causal_by_position_where_both_lengths_make_it(write: Callable[[Net], None]) -> None:
    net = Net(18)
    write(net)
    model = net.model()
    _, candidate = fused(model, feeds(model, {"length": 7}))
    assert (candidate["masks"] == []) == TRIANGLES[write]


def test_another_domain_s_triangle_is_none() -> None:
    net = Net(18)
    q, k, v = plain(net, 2, HEADS, LENGTH, HEAD_DIM)
    net.output(triangular(net, q, net.swap(k), v, net.op("Concat", size(net, q), size(net, k), axis=0)))
    (triangle,) = (node for node in net.nodes if node.name == "triangle")
    triangle.domain = "my"
    model = net.model(my=1)
    model.graph.value_info.append(
        helper.make_tensor_value_info(triangle.output[0], TensorProto.FLOAT, [LENGTH, LENGTH])
    )
    ops, candidate = fused(model, compare=False)
    assert "Trilu" in ops and len(candidate["masks"]) == 1
