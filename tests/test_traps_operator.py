"""Attention operators: the standard one, its features that are not read, and those of a runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_no_attention, assert_refused, feeds
from graphs import HEAD_DIM, HEADS, WIDTH, Net
from onnx import TensorProto

import onnx_attn

ROOT = HEAD_DIM**-0.5


def operator(
    mask: tuple[int, ...] | None = None, mask_dtype: Any = bool, keys: int = 5, dtype: Any = np.float32, **attrs: Any
) -> onnx.ModelProto:
    """One 4-D `Attention` node on graph inputs."""
    net = Net(23, dtype)
    given = [net.input("q", 2, HEADS, 5, HEAD_DIM), *(net.input(name, 2, HEADS, keys, HEAD_DIM) for name in "kv")]
    if mask is not None:
        given.append(net.input("mask", *mask, dtype=mask_dtype))
    net.output(net.op("Attention", *given, name="softmax", **attrs))
    return net.model()


def test_plain_operator_is_fused() -> None:
    assert_fused(operator(), scale=ROOT, heads=HEADS, kv_heads=HEADS, head_dim=HEAD_DIM, causal=False, masks=[])


def test_scale_of_the_operator_is_read() -> None:
    assert_fused(operator(scale=0.3), scale=0.3)


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_operator_of_other_types_computes_the_same(dtype: Any) -> None:
    assert_fused(operator(dtype=dtype), rtol=2e-3 if dtype == np.float16 else 1e-5, asked_form="function")


def test_query_that_is_scaled_already_is_not_scaled_again() -> None:
    net = Net(23)
    q, k, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv")
    net.output(net.op("Attention", net.scaled(q), k, v, scale=1.0, name="softmax"))
    assert_fused(net.model(), scale=ROOT)


def test_root_of_the_scale_on_both_operands_is_one_scale() -> None:
    net = Net(23)
    q, k, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv")
    net.output(net.op("Attention", net.scaled(q, ROOT**0.5), net.scaled(k, ROOT**0.5), v, scale=1.0, name="softmax"))
    assert_fused(net.model(), scale=ROOT)


def test_projections_in_front_of_the_operator_are_packed() -> None:
    net = Net(23)
    x = net.input("x", 2, 5, WIDTH)
    q, k, v = (net.split_heads(net.linear(x, HEADS * HEAD_DIM)) for _ in range(3))
    net.output(net.merge_heads(net.op("Attention", q, k, v, name="softmax")), 3)
    assert_fused(net.model(), packed=True, projection="triplet")


@pytest.mark.parametrize("shape", [(2, 1, 5, 5), (2, HEADS, 5, 5), (1, 1, 5, 5), (5, 5)], ids=str)
def test_boolean_mask_means_attend(shape: tuple[int, ...]) -> None:
    assert_fused(operator(shape), masks=[{"kind": "boolean", "shape": list(shape)}])


def test_row_that_a_boolean_mask_blocks_throughout_answers_zero() -> None:
    model = operator((2, 1, 5, 5))
    inputs = feeds(model)
    inputs["mask"][1, 0, 3] = False
    assert_fused(model, inputs)


@pytest.mark.parametrize("lowest", [-np.inf, float(np.finfo(np.float32).min)])
def test_row_that_a_float_mask_blocks_throughout_answers_as_before(lowest: float) -> None:
    model = operator((2, 1, 5, 5), np.float32)
    inputs = feeds(model)
    inputs["mask"][1, 0, 3] = lowest
    assert_fused(model, inputs, masks=[{"kind": "additive", "shape": [2, 1, 5, 5]}])


@pytest.mark.parametrize("keys", [5, 3, 7])
def test_causal_operator_is_fused(keys: int) -> None:
    assert_fused(operator(keys=keys, is_causal=1), causal=True)


def test_causal_operator_with_a_boolean_mask_is_fused() -> None:
    model = operator((2, 1, 5, 5), is_causal=1)
    inputs = feeds(model)
    inputs["mask"][0, 0, 2] = [False, False, False, True, True]
    assert_fused(model, inputs, causal=True)


def test_output_that_nobody_reads_is_no_feature() -> None:
    net = Net(23)
    given = [net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv"]
    net.output(net.op("Attention", *given, outputs=4, softcap=0.0, name="softmax")[0])
    assert_fused(net.model())


# --- refused -----------------------------------------------------------------------------------------------------------------


def uneven_key_heads(net: Net) -> None:
    given = [net.input("q", 2, "heads", 5, HEAD_DIM), *(net.input(name, 2, 2, 5, HEAD_DIM) for name in "kv")]
    net.output(net.op("Attention", *given, name="softmax"))


def scores_are_read(net: Net) -> None:
    given = [net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv"]
    attended, _, _, scores = net.op("Attention", *given, outputs=4, name="softmax")
    net.output(attended)
    net.output(scores)


@pytest.mark.parametrize("write", [uneven_key_heads, scores_are_read], ids=lambda f: f.__name__)
def test_feature_that_is_not_read_is_refused(write: Callable[[Net], None]) -> None:
    net = Net(23)
    write(net)
    assert_refused(net.model(), "attention-feature")


@pytest.mark.parametrize("attrs", [{"softcap": -2.0}, {"softmax_precision": TensorProto.FLOAT16}], ids=str)
def test_attribute_that_is_not_read_is_refused(attrs: dict[str, Any]) -> None:
    assert_refused(operator(**attrs), "attention-feature")


def test_values_of_another_type_are_refused() -> None:
    net = Net(23)
    given = [
        *(net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qk"),
        net.input("v", 2, HEADS, 5, HEAD_DIM, dtype=np.float16),
    ]
    net.output(net.op("Attention", *given, name="softmax"))
    assert_refused(net.model(), "type-not-supported")


def runtime_operator(op: str) -> onnx.ModelProto:
    net = Net()
    given = [net.input(name, 2, 5, HEADS * HEAD_DIM) for name in "qkv"]
    net.output(net.op(op, *given, domain="com.microsoft", num_heads=HEADS, name="softmax"), 3)
    return net.model(com_microsoft=1)


@pytest.mark.parametrize("op", ["DecoderMaskedSelfAttention", "SparseAttention", "LongformerAttention"])
def test_operator_of_a_runtime_that_nobody_spells_is_refused(op: str) -> None:
    assert_refused(runtime_operator(op), "operator-of-a-runtime")


@pytest.mark.parametrize("op", ["PackedAttention", "PackedMultiHeadAttention"])
def test_operator_that_has_kernels_on_cuda_alone_is_refused(op: str) -> None:
    assert_refused(runtime_operator(op), "unprovable-here")


def test_grouped_attention_without_its_lengths_is_refused() -> None:
    assert_refused(runtime_operator("GroupQueryAttention"), "attention-feature")


def test_operator_of_linear_attention_is_no_attention() -> None:
    net = Net(27)
    given = [net.input(name, 2, 5, HEADS * HEAD_DIM) for name in "qkv"]
    found = net.op(
        "LinearAttention",
        *given,
        outputs=2,
        name="softmax",
        q_num_heads=HEADS,
        kv_num_heads=HEADS,
        update_rule="linear",
    )
    net.output(found[0], 3)
    assert_no_attention(net.model(), "operator-not-supported")


def test_flex_attention_is_reported() -> None:
    net = Net(26)
    given = [net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv"]
    net.output(net.op("FlexAttention", *given, domain="ai.onnx.preview", name="softmax"))
    assert_no_attention(net.model(ai_onnx_preview=1), "operator-not-supported")


def test_linear_attention_of_a_runtime_is_no_attention() -> None:
    net = Net()
    given = [net.input(name, 2, 5, HEADS * HEAD_DIM) for name in "qkv"]
    made = net.op("LinearAttention", *given, outputs=2, domain="com.microsoft", name="softmax", q_num_heads=HEADS)
    net.output(made[0], 3)
    assert_no_attention(net.model(com_microsoft=1), "operator-not-supported")


def test_attention_of_another_domain_is_no_candidate() -> None:
    net = Net()
    net.output(net.op("Attention", net.input("x", 2, 5, WIDTH), domain="somebody"), 3)
    assert onnx_attn.inspect(net.model(somebody=1))["candidates"] == []


def test_boolean_mask_that_is_cast_to_float_is_added() -> None:
    """1 is added where the caller says true; nothing is blocked."""
    net = Net(23)
    given = [net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv"]
    mask = net.op("Cast", net.input("mask", 5, 5, dtype=bool), to=TensorProto.FLOAT)
    net.output(net.op("Attention", *given, mask, name="softmax"))
    assert_fused(net.model(), masks=[{"kind": "additive", "shape": [5, 5]}])


def masked_by_numbers(mask: np.ndarray, **attrs: Any) -> onnx.ModelProto:
    net = Net(23)
    given = [net.input("q", 2, HEADS, 5, HEAD_DIM), *(net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "kv")]
    net.output(net.op("Attention", *given, net.const(mask, mask.dtype), name="softmax", **attrs))
    return net.model()


def functions(model: onnx.ModelProto) -> set[str]:
    return {node.op_type for node in model.graph.node if node.domain == "onnx_attn"}


LOWEST = np.finfo(np.float32).min
LOWER = np.tril(np.ones((5, 5), bool))


@pytest.mark.parametrize("mask", [LOWER, np.where(LOWER, 0, -np.inf).astype(np.float32), np.ones((5, 5), np.float32)])
def test_constant_mask_that_leaves_every_row_something_needs_no_guard(mask: np.ndarray) -> None:
    (name,) = functions(assert_fused(masked_by_numbers(mask)))
    assert "Guard" not in name


@pytest.mark.parametrize("fill", [-np.inf, LOWEST])
def test_constant_mask_with_a_row_masked_throughout_keeps_its_guard(fill: float) -> None:
    mask = np.where(np.tril(LOWER, -1), 0, fill).astype(np.float32)
    (name,) = functions(assert_fused(masked_by_numbers(mask)))
    assert name.endswith("GuardRow")


def test_constant_boolean_mask_with_a_row_masked_throughout_keeps_its_guard() -> None:
    (name,) = functions(assert_fused(masked_by_numbers(np.tril(LOWER, -1))))
    assert name.endswith("GuardNaN")


def test_a_mask_that_only_is_causal_masks_throughout_keeps_its_guard() -> None:
    """Every row of the mask has its last key, which only the last query may see."""
    last = np.zeros((5, 5), bool)
    last[:, -1] = True
    (name,) = functions(assert_fused(masked_by_numbers(last, is_causal=1)))
    assert name.endswith("GuardNaN")


def test_a_mask_that_a_caller_can_replace_keeps_its_guard() -> None:
    model = masked_by_numbers(LOWER)
    mask = model.graph.initializer[0].name
    model.graph.input.append(onnx.helper.make_tensor_value_info(mask, TensorProto.BOOL, [5, 5]))
    blocked = {mask: np.tril(LOWER, -1)}
    (name,) = functions(assert_fused(model, {**feeds(model), **blocked}))
    assert name.endswith("GuardNaN")


def test_a_mask_of_whole_numbers_is_refused() -> None:
    assert_refused(masked_by_numbers(np.ones((5, 5), np.int64)), "type-not-supported")


def test_softmax_in_whole_numbers_is_refused() -> None:
    net = Net(opset=23)
    q, k, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv")
    net.output(net.op("Attention", q, k, v, name="softmax", softmax_precision=TensorProto.INT64))
    report = onnx_attn.inspect(net.model())
    assert [(each["status"], each["code"]) for each in report["candidates"]] == [("refused", "attention-feature")]
