"""Statistics of graphs that are small enough to be counted by hand, and what must not be counted."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from commands import NO_ATTENTION, SMALLEST, error_line, run_command
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net, heads_in, self_attention, small_site
from onnx import TensorProto, helper, numpy_helper
from quantised import stored
from runtime_nodes import D, N, P, S, attention, grouped, multi_head

import onnx_attn

HEAD_BYTES = 2 * HEADS * 5 * HEAD_DIM * 4
"""Of Q, K, V or the result of `small_site`: (2, 2, 5, 24) floats."""
SCORE_BYTES = 2 * HEADS * 5 * 5 * 4


def block(**inputs: Any) -> onnx.ModelProto:
    net = Net()
    net.output(self_attention(net, net.input("x", inputs.get("batch", 2), inputs.get("sequence", 5), WIDTH)), 3)
    return net.model()


def test_site_by_hand() -> None:
    """Kᵀ, Q·Kᵀ, scale, softmax, P·V."""
    report = onnx_attn.stats(small_site())
    assert report["nodes"]["by_role"] == {"attention": 5, "projection": 0, "mask": 0, "movement": 0, "other": 0}
    assert report["operations_exposed"] == [5]
    assert report["flops"]["products"] == 2 * (2 * 2 * HEADS * 5 * 5 * HEAD_DIM) == 9600
    assert report["flops"]["elementwise"] == 100 + 5 * 100
    assert report["flops"]["by_role"]["attention"] == 9600
    memory = report["memory"]
    assert memory["inputs"] == 3 * HEAD_BYTES
    assert memory["scores"] == 3 * SCORE_BYTES
    assert memory["materialised"] == {
        "peak": HEAD_BYTES + SCORE_BYTES,
        "peak_at": "MatMul_1",
        "attention_peak": HEAD_BYTES + SCORE_BYTES,
        "intermediates": 2 * HEAD_BYTES + 3 * SCORE_BYTES,
    }
    assert memory["fused"] == {
        "peak": HEAD_BYTES,
        "peak_at": "MatMul_4",
        "attention_peak": 0,
        "intermediates": HEAD_BYTES,
    }


def test_block_by_hand() -> None:
    report = onnx_attn.stats(block())
    nodes = report["nodes"]
    assert nodes["by_role"] == {"attention": 5, "projection": 8, "mask": 0, "movement": 8, "other": 0}
    assert nodes["by_operator"]["MatMul"] == {"projection": 4, "attention": 2}
    assert nodes["by_operator"]["Transpose"] == {"movement": 4, "attention": 1}
    assert report["flops"]["by_role"]["projection"] == 4 * (2 * 2 * 5 * WIDTH * CHANNELS)
    parameters = 3 * (WIDTH * CHANNELS + CHANNELS) + CHANNELS * WIDTH + WIDTH
    assert report["parameters"]["count"] == parameters
    assert report["parameters"]["bytes"] == 4 * parameters


def test_dimensions_that_vary_are_named() -> None:
    report = onnx_attn.stats(small_site(sizes=("batch", "rows", "keys")))
    assert report["sizes"] is None
    assert report["flops"]["products"] == f"{4 * HEADS * HEAD_DIM}*batch*keys*rows"
    assert report["flops"]["elementwise"] == f"{6 * HEADS}*batch*keys*rows"
    memory = report["memory"]
    assert memory["scores"] == f"{3 * HEADS * 4}*batch*keys*rows"
    assert memory["fused"]["intermediates"] == f"{HEADS * HEAD_DIM * 4}*batch*rows"
    assert memory["materialised"]["peak"] is None
    assert "--shapes" in memory["reason"]


def test_shapes_give_the_numbers_of_the_static_model() -> None:
    varying, static = block(batch="b", sequence="s"), block(batch=3, sequence=7)
    report = onnx_attn.stats(varying, shapes={"x": (3, 7, WIDTH)})
    expected = onnx_attn.stats(static)
    assert report["sizes"] == {"b": 3, "s": 7}
    assert {key: report[key] for key in ("flops", "memory", "nodes", "per_site", "parameters")} == {
        key: expected[key] for key in ("flops", "memory", "nodes", "per_site", "parameters")
    }
    symbolic = onnx_attn.stats(varying)["flops"]["products"]
    assert eval(symbolic, {"b": 3, "s": 7}) == expected["flops"]["products"]


def test_what_is_no_polynomial_is_null_with_the_reason() -> None:
    net = Net()
    x = net.input("x", 1, 3, "height", 8)
    net.output(net.op("Conv", x, net.weight(4, 3, 2, 2), strides=[2, 2]))
    flops = onnx_attn.stats(net.model())["flops"]
    assert flops["products"] is None
    assert "polynomial" in flops["reason"]
    assert onnx_attn.stats(net.model(), shapes={"x": (1, 3, 9, 8)})["flops"]["products"] == 2 * 4 * 4 * 4 * 3 * 4


@pytest.mark.parametrize(
    ("write", "flops"),
    [
        (lambda net, x: net.op("MatMul", x, net.weight(6, 7)), 2 * 4 * 5 * 6 * 7),
        (lambda net, x: net.op("Einsum", x, net.weight(7, 6), equation="abc,dc->abd"), 2 * 4 * 5 * 6 * 7),
        (lambda net, x: net.op("Einsum", x, net.weight(7, 6), equation="...c,dc->...d"), 2 * 4 * 5 * 6 * 7),
        (lambda net, x: net.op("Gemm", net.reshape(x, 20, 6), net.weight(7, 6), transB=1), 2 * 20 * 6 * 7),
        (lambda net, x: net.op("Gemm", net.reshape(x, 6, 20), net.weight(6, 7), transA=1), 2 * 20 * 6 * 7),
        (lambda net, x: net.op("Conv", x, net.weight(8, 5, 3)), 2 * 4 * 8 * 4 * 5 * 3),
        (lambda net, x: net.op("Conv", net.reshape(x, 4, 10, 3), net.weight(8, 5, 3), group=2), 2 * 4 * 8 * 1 * 5 * 3),
        (lambda net, x: net.op("ConvTranspose", x, net.weight(5, 8, 3)), 2 * 4 * 5 * 6 * 8 * 3),
    ],
)
def test_products(write: Any, flops: int) -> None:
    net = Net()
    net.output(write(net, net.input("x", 4, 5, 6)), 3)
    assert onnx_attn.stats(net.model())["flops"]["products"] == flops


def test_views_take_no_bytes_and_copies_do() -> None:
    net = Net()
    x = net.op("Relu", net.input("x", 2, 6))
    net.output(net.turn(net.op("Identity", net.reshape(x, 3, 4)), 1, 0), 2)
    memory = onnx_attn.stats(net.model())["memory"]["materialised"]
    assert (memory["intermediates"], memory["peak"]) == (2 * 48, 2 * 48)


def test_tensor_lives_until_its_last_reader() -> None:
    net = Net()
    first = net.op("Relu", net.input("x", 10))
    second = net.op("Exp", first)
    third = net.op("Neg", second)
    net.output(net.op("Add", first, third), 1)
    report = onnx_attn.stats(net.model())["memory"]["materialised"]
    assert report == {"peak": 120, "peak_at": "Neg_2", "attention_peak": 0, "intermediates": 160}


def test_probabilities_that_somebody_else_reads_stay_when_fused() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    net.output(net.sdpa(q, kt, v))
    net.output("Softmax_3_0_out")
    report = onnx_attn.stats(net.model())
    assert report["sites"] == 1
    assert report["memory"]["fused"]["intermediates"] == HEAD_BYTES + SCORE_BYTES
    assert report["memory"]["scores"] == 2 * SCORE_BYTES


def test_shared_weights_count_once() -> None:
    net = Net()
    weight = net.weight(WIDTH, WIDTH)
    x = net.input("x", 5, WIDTH)
    net.output(net.op("MatMul", net.op("MatMul", x, weight), weight), 2)
    assert onnx_attn.stats(net.model())["parameters"]["count"] == WIDTH * WIDTH


def test_int8_weights_take_a_byte_and_sizes_are_no_parameters() -> None:
    net = Net(opset=19)
    x = net.reshape(net.input("x", 5, WIDTH), 5, WIDTH)
    net.output(net.op("MatMul", x, stored(net, net.rng.standard_normal((WIDTH, 8)), 0.1)), 2)
    report = onnx_attn.stats(net.model())
    assert report["parameters"]["by_type"] == {"int8": 8 * WIDTH}
    assert report["parameters"]["bytes"] == 8 * WIDTH
    assert report["memory"]["materialised"]["intermediates"] == 5 * 8 * 4  # What makes the weight is no activation.


def test_default_of_an_input_is_a_parameter_and_computed_with() -> None:
    """Weights that a caller may replace: nothing that is made of them is known before the model runs."""
    net = Net()
    weight = net.weight(WIDTH, 8, name="weight")
    net.output(net.op("MatMul", net.input("x", 5, WIDTH), net.op("Relu", weight)), 2)
    net.inputs.append(helper.make_tensor_value_info("weight", TensorProto.FLOAT, [WIDTH, 8]))
    report = onnx_attn.stats(net.model())
    assert report["parameters"]["count"] == 8 * WIDTH
    assert report["memory"]["inputs"] == 5 * WIDTH * 4
    assert report["memory"]["materialised"]["intermediates"] == (8 * WIDTH + 5 * 8) * 4


def test_products_of_weights_are_told_apart() -> None:
    net = Net()
    weight = net.op("MatMul", net.weight(4, 6), net.weight(6, 8))
    net.output(net.op("MatMul", net.input("x", 5, 4), weight), 2)
    flops = onnx_attn.stats(net.model())["flops"]
    assert (flops["products"], flops["from_weights"]) == (2 * 5 * 4 * 8, 2 * 4 * 6 * 8)


def test_softmaxes_of_one_name() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    for _ in range(2):
        net.output(net.sdpa(q, kt, v, name="softmax"))
    report = onnx_attn.stats(net.model())
    assert [site["flops"]["products"] for site in report["per_site"]] == [9600, 9600]
    assert report["nodes"]["by_role"]["attention"] == 9  # They share Kᵀ.


def test_class_softmax_is_no_attention() -> None:
    report = onnx_attn.stats(NO_ATTENTION)
    assert (report["sites"], report["per_site"], report["operations_exposed"]) == (0, [], [])
    assert report["nodes"]["by_role"]["attention"] == report["nodes"]["by_role"]["mask"] == 0


def test_mask_that_somebody_else_reads_is_no_mask_arithmetic() -> None:
    def model(elsewhere: bool) -> onnx.ModelProto:
        net = Net()
        q, kt, v = heads_in(net)
        bias = net.op("Mul", net.op("Cast", net.input("m", 2, 1, 5, 5, dtype=bool), to=1), net.const(-1e4))
        net.output(net.sdpa(q, kt, v, lambda scores: net.op("Add", net.scaled(scores), bias)))
        if elsewhere:
            net.output(net.op("Neg", bias))
        return net.model()

    assert onnx_attn.stats(model(False))["nodes"]["by_role"]["mask"] == 2
    roles = onnx_attn.stats(model(True))["nodes"]["by_role"]
    assert (roles["mask"], roles["other"]) == (0, 3)


def test_layer_whose_result_goes_elsewhere_too_is_no_projection() -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    layers = [net.linear(x, CHANNELS) for _ in range(3)]
    q, k, v = map(net.split_heads, layers)
    net.output(net.sdpa(q, net.swap(k), v))
    net.output(net.op("Relu", layers[2]), 3)
    assert onnx_attn.stats(net.model())["nodes"]["by_role"]["projection"] == 4


def branch(prefix: str, wide: bool) -> onnx.GraphProto:
    """Attention in a body, on 5 keys or on one."""
    keys = 5 if wide else 1
    info = helper.make_tensor_value_info(f"{prefix}y", TensorProto.FLOAT, None)
    names = [f"{prefix}{part}" for part in ("s", "e", "k", "v", "scores", "p", "y")]
    starts, ends, k, v, scores, p, y = names
    weights = [
        numpy_helper.from_array(np.array(value, np.int64), name) for value, name in (([0], starts), ([keys], ends))
    ]
    axes = numpy_helper.from_array(np.array([3], np.int64), f"{prefix}a")
    rows = numpy_helper.from_array(np.array([2], np.int64), f"{prefix}b")
    nodes = [
        helper.make_node("Slice", ["kt", starts, ends, axes.name], [k]),
        helper.make_node("Slice", ["v", starts, ends, rows.name], [v]),
        helper.make_node("MatMul", ["q", k], [scores]),
        helper.make_node("Softmax", [scores], [p], name=f"{prefix}softmax", axis=-1),
        helper.make_node("MatMul", [p, v], [y]),
    ]
    return helper.make_graph(nodes, prefix, [], [info], [*weights, axes, rows])


def test_branches() -> None:
    """FLOPs and the peak are those of the branch that has more; nodes and intermediates those of both."""
    net = Net()
    net.input("q", 2, HEADS, 5, HEAD_DIM)
    net.input("kt", 2, HEADS, HEAD_DIM, 5)
    net.input("v", 2, HEADS, 5, HEAD_DIM)
    bodies = {"then_branch": branch("then_", True), "else_branch": branch("else_", False)}
    net.output(net.op("If", net.input("flag", dtype=bool), **bodies))
    report = onnx_attn.stats(net.model())
    assert report["sites"] == 2
    assert report["operations_exposed"] == [3, 3]
    assert report["nodes"]["total"] == 11
    assert report["nodes"]["by_role"] == {"attention": 6, "projection": 0, "mask": 0, "movement": 4, "other": 1}
    assert report["flops"]["products"] == 9600
    found = {site["softmax"]: (site["flops"]["products"], site["memory"]["scores"]) for site in report["per_site"]}
    assert found == {"then_softmax": (9600, 2 * SCORE_BYTES), "else_softmax": (1920, 2 * SCORE_BYTES // 5)}


def test_function_of_the_users_counts_as_what_it_calls() -> None:
    net = Net()
    x = net.input("x", 2, 5, WIDTH)
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Exp", ["b"], ["c"])]
    function = helper.make_function("mine", "Twice", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
    net.output(net.op("Twice", net.op("Twice", x, domain="mine"), domain="mine"), 3)
    report = onnx_attn.stats(net.model([function], mine=1))
    assert report["nodes"]["by_operator"] == {"Exp": {"other": 2}, "Relu": {"other": 2}}
    assert report["flops"]["elementwise"] == 4 * 2 * 5 * WIDTH


RUNTIME = {
    "Attention": (attention(), 2 * 2 * S * 24 * 3 * D + 4 * 2 * N * S * S * (D // N)),
    "MultiHeadAttention": (multi_head((2, S, D), (2, S, D), (2, S, D)), 4 * 2 * S * S * D),
    "GroupQueryAttention": (grouped(2, 1, P), 4 * 2 * (P + 1) * D),
}


@pytest.mark.parametrize("name", RUNTIME)
def test_operators_of_onnx_runtime_are_one_operation_and_their_content_is_counted(name: str) -> None:
    case, flops = RUNTIME[name]
    report = onnx_attn.stats(case.model())
    assert report["nodes"]["by_role"]["attention"] == 1
    assert report["operations_exposed"] == [1]
    assert report["per_site"][0]["written_as"] == f"com.microsoft.{name}"
    assert report["nodes"]["in_primitives"]["by_role"]["attention"] > 3
    assert report["flops"]["products"] == flops
    assert report["flops"]["uncounted"] == {}


def test_operator_without_a_formula_is_named() -> None:
    net = Net()
    net.output(net.op("Mine", net.input("x", 2), domain="mine"), 1)
    model = net.model(mine=1)
    model.graph.value_info.extend(helper.make_tensor_value_info(o.name, 1, [2]) for o in model.graph.output)
    assert onnx_attn.stats(model)["flops"]["uncounted"] == {"mine.Mine": 1}


def test_takes_what_the_others_take_and_changes_nothing() -> None:
    proto = onnx.load(SMALLEST)
    before = proto.SerializeToString()
    found = [onnx_attn.stats(model) for model in (SMALLEST, str(SMALLEST), proto)]
    assert proto.SerializeToString() == before
    found.append(onnx_attn.stats(gs.import_onnx(proto)))
    assert all(each["flops"] == found[0]["flops"] and each["memory"] == found[0]["memory"] for each in found)


@pytest.mark.parametrize(
    ("shapes", "mentions"),
    [("nobody:1x2", "nobody"), ("x:1", "dimensions"), ("x:2x5x21", "20"), ("x:axb", "NAME:")],
)
def test_shapes_that_do_not_fit(shapes: str, mentions: str, tmp_path: Any) -> None:
    onnx.save(block(batch="b", sequence="s"), tmp_path / "model.onnx")
    error_line(run_command("stats", tmp_path / "model.onnx", "--shapes", shapes), 2, mentions)


def test_range_of_shapes(tmp_path: Any) -> None:
    onnx.save(block(batch="b", sequence="s"), tmp_path / "model.onnx")
    both = ["--shapes", "x:1x5x20", "--shapes", "x:2x5x20"]
    error_line(run_command("stats", tmp_path / "model.onnx", *both), 2, "one shape")


def test_command_shows_the_figures(tmp_path: Any) -> None:
    onnx.save(block(), tmp_path / "model.onnx")
    outcome = run_command("stats", tmp_path / "model.onnx")
    assert outcome.code == 0
    for text in ("1 attention site, 5 operations exposed", "projection", "4,004", "86,400", "materialised", "fused"):
        assert text in outcome.stdout, text


def test_two_sets_of_sizes_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["onnx_attn.counting.model"], "third_world", lambda *_: None)
    flops = onnx_attn.stats(small_site(sizes=("batch", 5, 5)))["flops"]
    assert flops["products"] is None
    assert "--shapes" in flops["reason"]
