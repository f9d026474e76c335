"""com.microsoft's attention operators are sites: said in plain nodes that do the same, proved, or left for a reason."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_refused, assert_same, run
from graphs import Net
from runtime_nodes import (
    ATTENTION_CASES,
    OTHER,
    QUERY,
    B,
    Case,
    D,
    E,
    H,
    L,
    N,
    S,
    attention,
    grouped,
    multi_head,
)

import onnx_attn
from onnx_attn.errors import InputError


def microsoft(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node if node.domain == "com.microsoft"]


@pytest.mark.parametrize("name", ATTENTION_CASES)
def test_operator_is_fused_and_computes_the_same(name: str) -> None:
    case = ATTENTION_CASES[name]
    model = case.model()
    result = onnx_attn.fuse(model, target="onnx", expect=1)
    (candidate,) = result.report["candidates"]
    assert candidate["softmax"] == "softmax"
    assert candidate["heads"] == N
    assert result.report["spelled"] == {"operators": {f"com.microsoft.{case.op}": 1}, "left": []}
    assert microsoft(result.model) == []
    onnx.checker.check_model(result.model, full_check=True)
    assert_same(model, result.model, case.feeds())


@pytest.mark.parametrize("name", ["attention, causal and masked", "multi-head, mask and bias", "grouped, rotary, step"])
@pytest.mark.parametrize("opset", [13, 14, 18, 21, 23])
def test_operator_is_fused_at_every_opset(name: str, opset: int) -> None:
    case = ATTENTION_CASES[name]
    model = case.model(opset)
    assert_same(model, onnx_attn.fuse(model, target="onnx", expect=1).model, case.feeds())


@pytest.mark.parametrize("name", ["attention, keys masked", "multi-head, past", "grouped, rotary, step"])
def test_operator_of_half_precision_is_fused(name: str) -> None:
    case = ATTENTION_CASES[name]
    model = case.model(dtype=np.float16)
    fused = onnx_attn.fuse(model, target="onnx", expect=1).model
    assert_same(model, fused, case.feeds(np.float16), rtol=2e-3)


def test_below_opset_13_the_opset_is_raised() -> None:
    case = ATTENTION_CASES["attention, causal and masked"]
    model = case.model(11)
    result = onnx_attn.fuse(model, target="tensorrt", expect=1)
    assert result.report["opset_raised"] == [11, 13]
    assert_same(model, result.model, case.feeds())
    assert onnx_attn.inspect(model)["candidates"][0]["status"] == "site"


NOT_SAID: dict[str, Case] = {
    "rotary tables of its own": attention(do_rotary=1),
    "keys of another sequence, causal": multi_head(QUERY, *OTHER, unidirectional=1),
    "scores are an output": Case("MultiHeadAttention", [QUERY, *OTHER], {"num_heads": N}, (3, 0, 0, 4)),
    "a bias beside packed values": multi_head((B, S, N, 3, H), None, None, (3 * D,)),
    "a smooth softmax": grouped(2, 5, 0, smooth_softmax=1),
    "sinks": grouped(2, 5, 0, None, None, None, None, (N,)),
    "scores as an output": Case(**{**grouped(2, 5, 0, qk_output=1).__dict__, "ranks": (3, 4, 4, 4)}),
    "a buffer with a bias": grouped(2, 1, 6, None, None, None, (1, N, 1, 7), room=16),
    "heads that are not shared evenly": grouped(2, 5, 0, num_heads=3),
}


@pytest.mark.parametrize("name", NOT_SAID)
def test_feature_that_is_not_said_is_refused(name: str) -> None:
    assert_refused(NOT_SAID[name].model(), "attention-feature")


@pytest.mark.parametrize("count", [2, 3], ids=["K and V", "all three"])
def test_packed_by_head_has_no_kernel_here_and_is_written_unproved_on_request(count: int) -> None:
    packed = (B, S, N, count, H)
    model = Case("MultiHeadAttention", [QUERY, packed] if count == 2 else [packed], {"num_heads": N}).model()
    refused = onnx_attn.fuse(model).report["candidates"][0]
    assert (refused["code"], refused["status"]) == ("unprovable-here", "refused")
    assert "not implemented for CPU" in refused["reason"]
    fused = onnx_attn.fuse(model, verify=False, expect=1).model
    values = np.random.default_rng(0).standard_normal(packed).astype(np.float32)
    query = np.random.default_rng(1).standard_normal(QUERY).astype(np.float32)
    apart = [values[:, :, :, number].reshape(B, S, D) for number in range(count)]
    wide = dict(zip(("i0", "i1", "i2"), [query, *apart] if count == 2 else apart, strict=True))
    (expected,) = run(multi_head(QUERY, QUERY, QUERY).model(), wide)
    (found,) = run(fused, {"i0": query, "i1": values} if count == 2 else {"i0": values})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)


def test_attention_without_a_bias_is_not_run() -> None:
    """ONNX Runtime 1.31.1 dies of it."""
    model = Case("Attention", [(B, S, E), (E, 3 * D)], {"num_heads": N}).model()
    with pytest.raises(InputError, match=r"'softmax'.*without a bias.*--no-verify"):
        onnx_attn.fuse(model)
    assert microsoft(onnx_attn.fuse(model, verify=False, expect=1).model) == []


@pytest.mark.parametrize("form", ["auto", "contrib"])
def test_for_onnx_runtime_it_stays(form: str) -> None:
    case = ATTENTION_CASES["multi-head, mask and bias"]
    model = case.model()
    result = onnx_attn.fuse(model, target="onnxruntime", form=form, expect=1)
    assert result.model == model
    (candidate,) = result.report["candidates"]
    assert (candidate["form"], candidate["heads"], candidate["head_dim"], candidate["scale"]) == ("contrib", N, H, 0.25)
    assert [(each["kind"], each["shape"]) for each in candidate["masks"]] == [
        ("boolean", [B, L]),
        ("additive", [B, 1, S, L]),
    ]


def test_for_onnx_runtime_another_form_is_written_where_it_is_asked_for() -> None:
    case = ATTENTION_CASES["multi-head, other keys, narrow values"]
    model = case.model(23)
    fused = onnx_attn.fuse(model, target="onnxruntime", form="attention", expect=1).model
    assert [node.op_type for node in fused.graph.node].count("Attention") == 1
    assert_same(model, fused, case.feeds())


def test_a_spelling_that_is_not_the_same_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_attn.operators.microsoft import table

    right = table.SPELLINGS["com.microsoft", "MultiHeadAttention"]

    def wrong(call: Any) -> None:
        object.__setattr__(call, "attributes", {**call.attributes, "scale": 0.5})
        right(call)

    monkeypatch.setitem(table.SPELLINGS, ("com.microsoft", "MultiHeadAttention"), wrong)
    assert_left_for(ATTENTION_CASES["multi-head"].model(), "proof-failed")


def assert_left_for(model: onnx.ModelProto, code: str) -> None:
    result = onnx_attn.fuse(model)
    assert result.report["candidates"][0]["code"] == code
    assert result.report["spelled"]["left"][0]["node"] == "softmax"
    assert result.model == model


def test_equal_nodes_are_proved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_attn.prove import spelled

    opened = []
    monkeypatch.setattr(spelled, "Session", lambda *args, wrapped=spelled.Session: opened.append(1) or wrapped(*args))
    net = Net()
    x = net.input("x", B, S, D)
    for _ in range(4):
        x = net.op("MultiHeadAttention", x, x, x, domain="com.microsoft", num_heads=N)
    net.output(x, 3)
    assert onnx_attn.fuse(net.model(com_microsoft=1), expect=4).report["proof"]["ok"]
    assert len(opened) == 2


@pytest.mark.parametrize("op", ["MultiHeadAttention", "GroupQueryAttention"])
def test_sizes_may_vary(op: str) -> None:
    net = Net()
    wide = [net.input(name, "batch", "length", size * H) for name, size in (("q", N), ("k", 2), ("v", 2))]
    past = [net.input(name, "batch", 2, "past", H) for name in ("pk", "pv")]
    if op == "MultiHeadAttention":
        heads, given = 2, [wide[1], *wide[1:], "", "", "", *past]
        attrs = {"num_heads": heads, "unidirectional": 1}
        net.inputs.pop(0)
    else:
        seen = net.input("attention_mask", "batch", "total", dtype=np.int64)
        counts = net.op("ReduceSum", seen, net.ints(1), keepdims=0)
        ends = net.op("Cast", net.op("Sub", counts, net.ints(1)), to=onnx.TensorProto.INT32)
        total = net.op("Gather", net.op("Shape", seen), net.const(1, np.int64), axis=0)
        total = net.op("Cast", total, to=onnx.TensorProto.INT32)
        tables = [net.weight(64, H // 2), net.weight(64, H // 2)]
        given, attrs = [*wide, *past, ends, total, *tables], {"num_heads": N, "kv_num_heads": 2, "do_rotary": 1}
    made = net.op(op, *given, outputs=3, domain="com.microsoft", name="softmax", **attrs)
    for name, rank in zip(made, (3, 4, 4), strict=True):
        net.output(name, rank)
    model = net.model(com_microsoft=1)
    fused = onnx_attn.fuse(model, target="onnx", expect=1).model
    rng = np.random.default_rng(1)
    for batch, new, before in ((2, 5, 0), (3, 1, 9), (1, 4, 6)):
        sizes = {"batch": batch, "length": new, "past": before, "total": new + before}
        feeds = {}
        for value in model.graph.input:
            shape = [d.dim_value or sizes[d.dim_param] for d in value.type.tensor_type.shape.dim]
            feeds[value.name] = rng.standard_normal(shape).astype(np.float32)
        if "attention_mask" in feeds:
            feeds["attention_mask"] = np.ones((batch, new + before), np.int64)
            if new == 1:
                feeds["attention_mask"][1, 4:] = 0
        assert_same(model, fused, feeds)


def test_in_a_body_it_is_spelled_too() -> None:
    case = ATTENTION_CASES["multi-head"]
    net = Net()
    names = [net.input(f"i{place}", *QUERY) for place in range(3)]
    body = case.model().graph
    del body.input[:]
    flag = net.input("flag", dtype=np.bool_)
    other = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [names[0]], ["same"])],
        "other",
        [],
        [onnx.helper.make_tensor_value_info("same", onnx.TensorProto.FLOAT, [None] * 3)],
    )
    net.output(net.op("If", flag, then_branch=body, else_branch=other, name="choice"), 3)
    model = net.model(com_microsoft=1)
    fused = onnx_attn.fuse(model, target="onnx", expect=1).model
    for value in (True, False):
        assert_same(model, fused, {**case.feeds(), "flag": np.array(value)})
