"""What small edits of the tests' own graphs showed once: models that the checker lets pass, and that were read too far."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_refused, assert_same
from graphs import Net, heads_in
from onnx import TensorProto, helper
from runtime_nodes import B, D, N, S, attention, grouped

import onnx_attn
from onnx_attn.errors import InputError
from onnx_attn.graph.view import GraphView


def takes(model: onnx.ModelProto) -> None:
    """Every command takes the model, whatever it makes of it."""
    onnx_attn.inspect(model)
    onnx_attn.stats(model)
    for target in ("tensorrt", "onnxruntime"):
        onnx.checker.check_model(onnx_attn.fuse(model, target=target, verify=False).model)
    onnx.checker.check_model(onnx_attn.expand(model, verify=False).model)


def test_somebody_elses_constant_is_no_weight() -> None:
    """`my.company.Constant` makes what only its runtime knows; a zero is not to be read into it."""
    net = Net()
    q, kt, v = heads_in(net)
    keep, zero = net.input("keep", 2, 1, 5, 5, dtype=bool), net.op("Constant", domain="my.company")
    net.output(net.sdpa(q, kt, v, probabilities=lambda found: net.op("Where", keep, found, zero)))
    model = net.model(**{"my.company": 1})
    assert [each["code"] for each in onnx_attn.inspect(model)["candidates"]] == ["probabilities-changed"]
    takes(model)


def test_sum_of_one_number_is_no_softmax() -> None:
    net = Net()
    x = net.input("x", 2, 3)
    powers = net.op("Exp", net.const(0.5))
    net.output(net.op("Mul", x, net.op("Div", powers, net.op("ReduceSum", powers, net.ints(0), keepdims=1))), 2)
    takes(net.model())


BROKEN: dict[str, tuple[str, dict[str, Any]]] = {
    "fewer heads than none": ("MultiHeadAttention", {"num_heads": -2}),
    "fewer heads than none, and a scale": ("MultiHeadAttention", {"num_heads": -2, "scale": 0.5}),
    "Q less wide than nothing": ("Attention", {"num_heads": N, "qkv_hidden_sizes": [-D, -D, D]}),
    "Q of no width": ("Attention", {"num_heads": N, "qkv_hidden_sizes": [0, 0, D]}),
    "heads in words": ("MultiHeadAttention", {"num_heads": "two"}),
    "a scale in words": ("MultiHeadAttention", {"num_heads": N, "scale": "none"}),
    "widths in words": ("Attention", {"num_heads": N, "qkv_hidden_sizes": ["wide"]}),
    "no widths": ("Attention", {"num_heads": N, "qkv_hidden_sizes": 3}),
    "heads of V in words": ("GroupQueryAttention", {"num_heads": N, "kv_num_heads": "two"}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_attributes_that_no_schema_has_looked_at(name: str) -> None:
    op, attributes = BROKEN[name]
    net = Net()
    q, k, v = (net.input(each, B, S, D) for each in "qkv")
    made = net.op(op, q, k, v, name="softmax", domain="com.microsoft", **attributes)
    net.outputs.append(helper.make_tensor_value_info(made, TensorProto.FLOAT, [B, S, D]))
    model = net.model(com_microsoft=1)
    takes(model)
    for target in ("tensorrt", "onnxruntime") if "fewer" in name else ("tensorrt",):
        assert [each["status"] for each in onnx_attn.inspect(model, target=target)["candidates"]] == ["refused"]


def test_widths_that_are_no_numbers_at_all() -> None:
    model = attention().model()
    none = helper.make_attribute("qkv_hidden_sizes", [], attr_type=onnx.AttributeProto.INTS)
    model.graph.node[0].attribute.append(none)
    takes(model)
    assert onnx_attn.inspect(model, target="onnxruntime")["candidates"][0]["heads"] == N


def test_operator_of_no_inputs_is_refused() -> None:
    net = Net()
    net.output(net.op("MultiHeadAttention", name="softmax", domain="com.microsoft", num_heads=N, scale=0.5), 3)
    model = net.model(com_microsoft=1)
    takes(model)
    for target, code in {"tensorrt": "attention-feature", "onnxruntime": "shape-unknown"}.items():
        assert [each["code"] for each in onnx_attn.inspect(model, target=target)["candidates"]] == [code]


@pytest.mark.parametrize("heads", [1, D])
def test_one_head_and_heads_of_one_channel_are_read(heads: int) -> None:
    net = Net()
    q, k, v = (net.input(each, B, S, D) for each in "qkv")
    net.output(net.op("MultiHeadAttention", q, k, v, name="softmax", domain="com.microsoft", num_heads=heads), 3)
    model = net.model(com_microsoft=1)
    for target in ("tensorrt", "onnxruntime"):
        (candidate,) = onnx_attn.inspect(model, target=target)["candidates"]
        assert (candidate["heads"], candidate["head_dim"]) == (heads, D // heads)
        assert candidate["scale"] == pytest.approx((D // heads) ** -0.5)


@pytest.mark.parametrize("place", [0, 3])
def test_inputs_of_too_few_axes(place: int) -> None:
    model = grouped(B, S, 3).model()
    del model.graph.input[place].type.tensor_type.shape.dim[1:]
    takes(model)


def test_operator_without_its_first_input_stays() -> None:
    model = attention().model()
    model.graph.node[0].input[0] = ""
    assert onnx_attn.fuse(model, verify=False).model == model
    takes(model)


@pytest.mark.parametrize("mask_type", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_mask_of_another_type_than_q(mask_type: int) -> None:
    """The operator takes it; an Add of both does not."""
    dims = [1, 2, 8, 16]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, dims) for name in "qkvy"]
    mask = helper.make_tensor_value_info("mask", mask_type, [1, 2, 8, 8])
    node = helper.make_node("Attention", ["q", "k", "v", "mask"], ["y"], name="softmax")
    graph = helper.make_graph([node], "g", [*values[:3], mask], values[3:])
    assert_refused(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), "type-not-supported"
    )


def test_types_that_the_operators_definition_does_not_fit() -> None:
    """Attention takes V in another type; the standard's definition of it multiplies both."""
    net = Net(23)
    q, k = (net.input(name, 1, 2, 8, 16) for name in "qk")
    net.output(net.op("Attention", q, k, net.input("v", 1, 2, 8, 16, dtype=np.float16), name="softmax"))
    model = net.model()
    assert onnx_attn.expand(model, verify=False).model == model


@pytest.mark.parametrize("packed", [True, False])
def test_scale_of_zero_is_not_said_with_operators_that_read_it_as_none(packed: bool) -> None:
    """com.microsoft's operators take 0 for 1/√H, and ONNX Runtime no `Attention` with it."""
    net = Net()
    q, kt, v = heads_in(net)
    net.output(net.sdpa(q, kt, v, lambda scores: net.scaled(scores, 0.0)))
    model = net.model()
    for form in ("auto", "contrib"):
        fused = onnx_attn.fuse(model, target="onnxruntime", form=form, pack=packed, verify=False).model
        assert_same(model, fused)
    assert_fused(model, scale=0.0)


def test_rotation_that_is_interleaved_twice_over_stays() -> None:
    """0 and 1 are all that the specification knows."""
    net = Net(23)
    x = net.input("x", 2, 2, 5, 8)
    cos, sin = (net.const(np.ones((2, 5, 4), np.float32)) for _ in range(2))
    net.output(net.op("RotaryEmbedding", x, cos, sin, interleaved=2))
    model = net.model()
    assert onnx_attn.fuse(model, verify=False).model == model


@pytest.mark.parametrize(
    "shapes", [((24, 2, 5, 24), (2, 2, 5, 24)), ((2, 2, 5, 16), (2, 2, 5, 24)), ((2, 2, 5, 8), (2, 2, 4, 8))]
)
def test_operands_of_an_operator_that_do_not_fit_together(shapes: tuple[tuple[int, ...], ...]) -> None:
    """No runtime takes the model; onnx's checker does."""
    net = Net(23)
    q, k = net.input("q", *shapes[0]), net.input("k", *shapes[1])
    net.output(net.op("Attention", q, k, net.input("v", 2, 2, 5, shapes[1][3]), name="softmax"))
    model = net.model()
    assert [each["code"] for each in onnx_attn.inspect(model)["candidates"]] == ["shape-unknown"]
    takes(model)


def test_an_output_that_is_left_out_is_no_input_that_is() -> None:
    """Both are called "": what nobody named of the one is not what the other leaves out."""
    net = Net()
    x, weights = net.input("x", 2, 3, 4), net.const(np.ones(4, np.float32))
    normed, mean = net.op("LayerNormalization", x, weights, outputs=2)
    made = net.op("Dropout", net.const(np.zeros((2, 3, 4), np.float32)), outputs=1)
    net.output(net.op("Add", net.op("Clip", normed, "", net.const(1.0)), made), 3)
    model = net.model()
    model.graph.node[0].output[1] = ""
    view = GraphView(model)
    assert mean and all("" not in world.known for world in view.worlds)


@pytest.mark.parametrize(
    ("target", "form"),
    [
        ("tensorrt", "auto"),
        ("onnx", "attention"),
        ("onnxruntime", "auto"),
        ("onnxruntime", "attention"),
        ("onnxruntime", "contrib"),
    ],
)
def test_values_of_more_heads_than_there_are_probabilities(target: str, form: str) -> None:
    net = Net(23)
    q, k, v = (net.input(name, 2, heads, 5, 8) for name, heads in (("q", 1), ("k", 1), ("v", 4)))
    net.output(net.sdpa(q, net.swap(k), v))
    model = net.model()
    assert_same(model, onnx_attn.fuse(model, target=target, form=form, verify=False).model)


@pytest.mark.parametrize("form", ["auto", "attention", "primitives"])
def test_heads_that_are_copied_inside_and_outside(form: str) -> None:
    """Heads 0 0 1 1 0 0 1 1: the operator would repeat them 0 0 0 0 1 1 1 1."""
    net = Net(23)
    q = net.input("q", 2, 8, 5, 16)

    def copied(name: str) -> str:
        each = net.reshape(net.input(name, 2, 2, 5, 16), 2, 2, 1, 5, 16)
        inside = net.reshape(net.op("Expand", each, net.ints(2, 2, 2, 5, 16)), 2, 4, 5, 16)
        return net.op("Tile", inside, net.ints(1, 2, 1, 1))

    net.output(net.sdpa(q, net.swap(copied("k")), copied("v")))
    model = net.model()
    assert_same(model, onnx_attn.fuse(model, form=form, verify=False).model)


@pytest.mark.parametrize("attribute", ["q_num_heads", "kv_num_heads"])
def test_an_operator_of_no_heads_is_not_run(attribute: str) -> None:
    """ONNX Runtime 1.31.1 divides by their number, and takes the process down with it."""
    net = Net(23)
    q, k, v = (net.input(name, 2, 5, 16) for name in "qkv")
    heads = {"q_num_heads": 2, "kv_num_heads": 2} | {attribute: 0}
    net.output(net.sdpa(*(net.input(name, 2, 2, 5, 8) for name in ("a", "b", "c"))))
    net.output(net.op("Attention", q, k, v, **heads), 3)
    model = net.model()
    with pytest.raises(InputError, match="of no heads"):
        onnx_attn.fuse(model)
    takes(model)


def test_operands_of_an_operator_that_fit_together_at_one_size_alone() -> None:
    """Q of any batch, K and V of two sequences: where the batch is 2 it would run."""
    net = Net(23)
    q, k, v = (net.input(name, batch, 2, 5, 8) for name, batch in (("q", "batch"), ("k", 2), ("v", 2)))
    net.output(net.op("Attention", q, k, v, name="softmax"))
    assert_refused(net.model(), "shape-unknown")


def test_a_call_without_the_number_that_its_function_needs_is_refused() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    net.output(net.sdpa(q, kt, v))
    model = onnx_attn.fuse(net.model()).model
    (call,) = (node for node in model.graph.node if node.op_type == "ScaledDotProductAttention")
    del call.attribute[:]
    for command in (onnx_attn.inspect, onnx_attn.fuse, onnx_attn.expand):
        with pytest.raises(InputError, match="does not say 'scale'"):
            command(model)
