"""Which axes are heads, queries and keys: orders that read alike, and sites that no order of axes can be found for.

Each test is of a condition in `recognize/site_axes.py` or `assemble.py` that no other test tells from its opposite.
"""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_refused
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net, same
from onnx import TensorProto, helper

from onnx_attn.graph.view import GraphView
from onnx_attn.recognize.candidates import recognize
from onnx_attn.site import engine_name
from onnx_attn.targets.reading import facts_of


def einsum(net: Net, equation: str, *operands: str) -> str:
    found: str = net.op("Einsum", *operands, equation=equation)
    return found


def joined_rows(alone: str) -> onnx.ModelProto:
    """Of these operands `b · w` entries stand on one axis, the others are shared; scores are cut into b and w for a mask."""
    net = Net()
    of_all, mask = net.input("of_all", "b", "w", 5, HEAD_DIM), net.input("mask", "b", "w", 1, 5)
    q, k, v = (
        net.reshape(of_all, -1, 5, HEAD_DIM) if role in alone else net.input(role, 5, HEAD_DIM) for role in "qkv"
    )

    def masked(scores: str) -> str:
        apart = net.op("Add", net.reshape(net.scaled(scores), (mask, 0), (mask, 1), 5, 5), mask)
        return net.reshape(apart, -1, 5, 5)

    net.output(net.sdpa(q, net.swap(k, 3 if "k" in alone else 2), v, masked), 3)
    return net.model()


@pytest.mark.parametrize("alone", ["q", "k", "qkv"])
def test_two_sizes_that_vary_on_one_axis_are_taken_apart_by_no_reshape(alone: str) -> None:
    assert_refused(joined_rows(alone), "shape-unknown")


def pixels(height: int | str, width: int | str) -> onnx.ModelProto:
    """Queries are the pixels of a map, keys the words of a text."""
    net = Net(23, np.float16)
    x, text = net.input("x", 2, height, width, WIDTH), net.input("text", 2, 7, WIDTH)
    q = net.reshape(net.linear(x, CHANNELS), 0, 0, 0, HEADS, HEAD_DIM)
    k, v = (net.reshape(net.linear(text, CHANNELS), 0, 0, HEADS, HEAD_DIM) for _ in range(2))
    scores = net.scaled(einsum(net, "bhwnd,blnd->bnhwl", q, k))
    found = net.op("Softmax", scores, axis=-1, name="softmax")
    net.output(einsum(net, "bnhwl,blnd->bhwnd", found, v), 5)
    return net.model()


def test_height_and_width_of_queries_are_one_axis() -> None:
    """Four axes, as the operator wants them."""
    fused = assert_fused(pixels(3, 4), asked_form="attention", heads=HEADS, rtol=2e-3)
    assert [node.op_type for node in fused.graph.node].count("Attention") == 1


def test_height_and_width_that_vary_are_not_taken_apart_again() -> None:
    assert_refused(pixels("height", "width"), "shape-unknown")


def test_heads_that_queries_alone_have_are_heads() -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    q = net.reshape(net.linear(x, CHANNELS), 0, 0, HEADS, HEAD_DIM)
    k, v = (net.linear(x, HEAD_DIM) for _ in range(2))
    found = net.op("Softmax", net.scaled(einsum(net, "bsnd,bld->bnsl", q, k)), axis=-1, name="softmax")
    net.output(einsum(net, "bnsl,bld->bsnd", found, v))
    assert_fused(net.model(), heads=HEADS, kv_heads=1)


def test_a_result_in_axes_that_no_exchange_brings_back_is_written_in_them() -> None:
    net = Net()
    q, k, v = (net.input(role, 3, HEADS, length, HEAD_DIM) for role, length in (("q", 5), ("k", 7), ("v", 7)))
    found = net.op("Softmax", net.scaled(net.op("MatMul", q, net.swap(k))), axis=-1, name="softmax")
    net.output(einsum(net, "bnsl,bnld->sbnd", found, v))
    assert_fused(net.model(), heads=HEADS)


def test_scores_in_a_shape_that_mixes_queries_and_keys_are_changed() -> None:
    """(4, 6) as (6, 4) and back, with something added between."""
    net = Net()
    q, k, v = (net.input(role, 2, HEADS, length, HEAD_DIM) for role, length in (("q", 4), ("k", 6), ("v", 6)))

    def mixed(scores: str) -> str:
        other = net.reshape(net.scaled(scores), 2, HEADS, 6, 4)
        return net.reshape(net.op("Add", other, net.weight(6, 4)), 2, HEADS, 4, 6)

    net.output(net.sdpa(q, net.swap(k), v, mixed))
    assert_refused(net.model(), "scores-changed")


def test_a_transpose_that_names_no_order_turns_all_axes_of_the_scores() -> None:
    net = Net()
    q, k, v = (net.input(role, 2, HEADS, length, HEAD_DIM) for role, length in (("q", 5), ("k", 7), ("v", 7)))
    turned = net.op("Transpose", net.scaled(net.op("MatMul", q, net.swap(k))))
    found = net.op("Transpose", net.op("Softmax", turned, axis=0, name="softmax"))
    net.output(net.op("MatMul", found, v))
    assert_fused(net.model(), heads=HEADS)


@pytest.mark.parametrize("batch", [3, 1])
def test_queries_that_all_of_a_batch_share(batch: int) -> None:
    """Without an axis for the batch: that of the keys is no axis of keys. One entry is an axis all the same."""
    net = Net()
    q = net.input("q", HEADS, 5, HEAD_DIM)
    k, v = (net.input(role, batch, HEADS, 7, HEAD_DIM) for role in "kv")
    net.output(net.sdpa(q, net.swap(k), v))
    assert_fused(net.model(), heads=HEADS)


@pytest.mark.parametrize(("keys", "heads"), [(7, HEADS), (1, HEADS), (1, 1)])
def test_a_softmax_over_the_one_query_too_is_over_the_keys(keys: int, heads: int) -> None:
    """Of K·Qᵀ; of one key as well, which no size tells from the query."""
    net = Net(13)
    q, k, v = (net.input(role, 2, heads, length, HEAD_DIM) for role, length in (("q", 1), ("k", keys), ("v", keys)))
    powers = net.op("Exp", net.scaled(net.op("MatMul", k, net.swap(q))))
    total = net.op("ReduceSum", powers, net.ints(2, 3) if heads > 1 else net.ints(1, 2, 3))
    net.output(net.op("MatMul", net.swap(net.op("Div", powers, total, name="softmax")), v))
    assert_fused(net.model(), heads=heads)


def test_heads_between_other_things_on_one_axis_are_heads() -> None:
    """Entries, heads and rows on the first axis: each row of a map attends to itself."""
    net = Net()
    x = net.input("x", 2, 3, 5, WIDTH)

    def rows(value: str) -> str:
        apart = net.turn(net.reshape(value, 2, 3, 5, HEADS, HEAD_DIM), 0, 3, 1, 2, 4)
        return net.reshape(apart, 2 * HEADS * 3, 5, HEAD_DIM)

    q, k, v = (rows(net.linear(x, CHANNELS)) for _ in range(3))
    net.output(net.sdpa(q, net.swap(k, 3), v), 3)
    assert_fused(net.model(), heads=HEADS, kv_heads=HEADS)


def decided(net: Net, value: str, other: str) -> str:
    """`value`, by way of an If that is decided: where its branches differ in type, onnx's inference tells none."""
    sides = {}
    for branch, each in (("then_branch", value), ("else_branch", other)):
        made = onnx.ValueInfoProto()
        made.name = f"{branch}_{len(net.nodes)}"
        made.type.tensor_type.elem_type = next(v for v in net.inputs if v.name == each).type.tensor_type.elem_type
        sides[branch] = helper.make_graph([helper.make_node("Identity", [each], [made.name])], branch, [], [made])
    found: str = net.op("If", net.const(True, bool), **sides)
    return found


@pytest.mark.parametrize("types", ["float16 float32 float32", "float32 float16 float32", "int32 int32 int32"])
def test_operands_of_types_that_no_product_takes_are_refused(types: str) -> None:
    """Though the graph says what the products make."""
    net = Net()
    other = net.input("other", 2, dtype=np.float64)
    q, k, v = (
        decided(net, net.input(role, 2, HEADS, 5, HEAD_DIM, dtype=np.dtype(dtype)), other)
        for role, dtype in zip("qkv", types.split(), strict=True)
    )
    result = net.sdpa(q, net.swap(k), v, scores=same)
    net.output(net.op("Identity", result))
    model = net.model()
    for node in model.graph.node[-4:-1]:
        shape = (2, HEADS, 5, HEAD_DIM if node.output[0] == result else 5)
        model.graph.value_info.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, shape))
    assert_refused(model, "type-not-supported")


TURNED = {
    "plain": False,
    "joined": False,
    "keys before queries": True,
    "values from the left": True,
    "transposed": True,
    "transposed and joined": True,
}


@pytest.mark.parametrize("spelling", TURNED)
def test_what_is_turned_in_the_graph_is_known(spelling: str) -> None:
    """TensorRT has no kernel for it as it stands: the softmax is over another axis than the last, or V stands on the left."""
    net = Net()
    q, k, v = (net.input(role, 2, HEADS, length, HEAD_DIM) for role, length in (("q", 5), ("k", 7), ("v", 7)))
    if spelling == "keys before queries":
        found = net.op("Softmax", net.scaled(net.op("MatMul", k, net.swap(q))), axis=2, name="softmax")
        result = einsum(net, "bnls,bnlh->bnsh", found, v)
    else:
        found = net.op("Softmax", net.scaled(net.op("MatMul", q, net.swap(k))), axis=3, name="softmax")
        found = net.swap(found) if "transposed" in spelling else found
        found, v = (
            net.reshape(each, 2 * HEADS, *sizes) if "joined" in spelling else each
            for each, sizes in ((found, (7, 5) if "transposed" in spelling else (5, 7)), (v, (7, HEAD_DIM)))
        )
        if spelling == "values from the left":
            result = einsum(net, "bnlh,bnsl->bnsh", v, found)
        else:
            rows, entries = ("ls" if "transposed" in spelling else "sl"), ("b" if "joined" in spelling else "bn")
            result = einsum(net, f"{entries}{rows},{entries}lh->{entries}sh", found, v)
    net.output(result, 3 if "joined" in spelling else 4)
    model = net.model()
    assert_fused(model, heads=HEADS)
    view = GraphView(model)
    (site,) = recognize(view)
    assert facts_of(view, site).turned == TURNED[spelling]


@pytest.mark.parametrize("spelled", [False, True])
def test_an_engine_calls_a_site_by_its_softmax_or_by_the_product_where_that_is_of_many_nodes(spelled: bool) -> None:
    net = Net()
    q, k, v = (net.input(role, 2, HEADS, 5, HEAD_DIM) for role in "qkv")
    scores = net.scaled(net.op("MatMul", q, net.swap(k)))
    if spelled:
        powers = net.op("Exp", scores)
        found = net.op("Div", powers, net.op("ReduceSum", powers, net.ints(-1)), name="softmax")
    else:
        found = net.op("Softmax", scores, axis=-1, name="softmax")
    net.output(net.op("MatMul", found, v, name="weighed"))
    (site,) = recognize(GraphView(net.model()))
    assert engine_name(site) == ("weighed" if spelled else "softmax")


def test_heads_and_their_size_that_vary_are_not_shared() -> None:
    """One head of keys for four of queries, of a size that the model is told when it runs."""
    net = Net()
    q, k, v = (net.input(role, 2, 4 if role == "q" else 1, 5, "size") for role in "qkv")
    net.output(net.sdpa(q, net.swap(k), v))
    assert_refused(net.model(), "shape-unknown")


@pytest.mark.parametrize(
    ("equation", "queries", "values"),
    [
        ("bnsl,bnlh->bnsh", (2, 1), (2, 4, 7)),
        ("bnsl,blnh->bnsh", (2, 1), (2, 7, 4)),
        ("bnsl,bnlh->nbsh", (2, 1), (2, 4, 7)),
        ("bnsl,nblh->bnsh", (1, 1), (4, 1, 7)),
        ("bnsl,nblh->snbh", (1, 1), (3, 2, 7)),
        ("bnsl,nlbh->snbh", (1, HEADS), (HEADS, 7, 3)),
    ],
)
def test_entries_and_heads_that_values_alone_have(
    equation: str, queries: tuple[int, ...], values: tuple[int, ...]
) -> None:
    """All of them are weighed by the same probabilities, wherever they stand in the values and in the result."""
    net = Net()
    q, k = (net.input(role, *queries, length, HEAD_DIM) for role, length in (("q", 5), ("k", 7)))
    found = net.op("Softmax", net.scaled(net.op("MatMul", q, net.swap(k))), axis=-1, name="softmax")
    net.output(einsum(net, equation, found, net.input("v", *values, HEAD_DIM)))
    for form in ("function", "primitives"):
        assert_fused(net.model(), asked_form=form, heads=queries[1])


def test_one_query_whose_probabilities_weigh_several_sets_of_values() -> None:
    net = Net()
    q, k = (net.input(role, 2, HEADS, length, HEAD_DIM) for role, length in (("q", 1), ("k", 7)))
    found = net.op("Softmax", net.scaled(net.op("MatMul", q, net.swap(k))), axis=-1, name="softmax")
    net.output(einsum(net, "bnsl,bnslh->bnsh", found, net.input("v", 2, HEADS, 4, 7, HEAD_DIM)))
    assert_fused(net.model(), heads=HEADS)


def test_one_head_one_query_and_one_key_are_not_reshaped() -> None:
    """A softmax over all three, each of size 1, of which the last alone is the keys'."""
    net = Net(13)
    q, k, v = (net.input(role, 2, 1, 1, HEAD_DIM) for role in "qkv")
    powers = net.op("Exp", net.scaled(net.op("MatMul", q, net.swap(k))))
    found = net.op("Div", powers, net.op("ReduceSum", powers, net.ints(1, 2, 3)), name="softmax")
    net.output(net.op("MatMul", found, v))
    fused = assert_fused(net.model(), asked_form="primitives")
    assert "Reshape" not in {node.op_type for node in fused.graph.node}


def test_one_key_on_the_left_of_the_product_is_no_query() -> None:
    """(Q·Kᵀ)ᵀ, whose softmax runs over an axis of size 1: only the side that has it tells K from Q."""
    net = Net()
    q, k, v = (net.input(name, 2, HEADS, length, HEAD_DIM) for name, length in (("q", 5), ("k", 1), ("v", 1)))
    scores = net.scaled(net.op("MatMul", k, net.swap(q)))
    probabilities = net.op("Softmax", scores, name="softmax", axis=2)
    net.output(net.op("MatMul", net.swap(probabilities), v))
    assert_fused(net.model(), heads=HEADS, kv_heads=HEADS)
