"""The standard `Attention` operator where a size is not known, a type is a strange one, or a mask is as nobody writes it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_fused, assert_refused, feeds, run, same_bytes, verdicts
from graphs import HEAD_DIM, HEADS, Dim, Net
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator

import onnx_attn

PLAIN: tuple[Dim, ...] = (2, HEADS, 5, HEAD_DIM)


def operator(
    q: tuple[Dim, ...] = PLAIN, k: tuple[Dim, ...] = PLAIN, v: tuple[Dim, ...] = PLAIN, *more: str, **attrs: Any
) -> Net:
    """A net in which the one node `softmax` reads graph inputs of these shapes."""
    net = Net(23)
    given = [net.input(name, *dims) for name, dims in zip("qkv", (q, k, v), strict=True)]
    net.output(net.op("Attention", *given, *more, name="softmax", **attrs))
    return net


def masked(mask: Any, *dims: Dim, keys: Dim = 5) -> onnx.ModelProto:
    """The node with a mask of this type and shape from outside."""
    net = operator(k=(2, HEADS, keys, HEAD_DIM), v=(2, HEADS, keys, HEAD_DIM))
    net.nodes[0].input.append(net.input("mask", *dims, dtype=mask))
    return net.model()


# --- sizes -------------------------------------------------------------------------------------------------------------------


def test_a_head_size_of_the_values_that_varies_is_refused() -> None:
    assert_refused(operator(v=(2, HEADS, 5, "size")).model(), "shape-unknown")


def test_as_many_heads_of_each_may_vary_together() -> None:
    many = (2, "heads", 5, HEAD_DIM)
    model = operator(many, many, many).model()
    assert_fused(model, feeds(model, {"heads": 3}), heads=None, kv_heads=None, head_dim=HEAD_DIM)


@pytest.mark.parametrize("kv_heads", ["heads", 0, 3])
def test_heads_of_keys_and_values_have_to_be_known_to_be_shared(kv_heads: Dim) -> None:
    few = (2, kv_heads, 5, HEAD_DIM)
    assert_refused(operator(PLAIN, few, few).model(), "attention-feature")


# --- types -------------------------------------------------------------------------------------------------------------------

NARROWER = [(TensorProto.BFLOAT16, TensorProto.FLOAT16), (TensorProto.FLOAT16, TensorProto.BFLOAT16)]


@pytest.mark.parametrize(("own", "asked"), NARROWER)
def test_of_two_half_precisions_neither_holds_the_other(own: int, asked: int) -> None:
    """float16 has the smaller range, bfloat16 the fewer digits."""
    net = operator(softmax_precision=asked)
    for value in (*net.inputs, *net.outputs):
        value.type.tensor_type.elem_type = own
    assert verdicts(net.model()) == {"softmax": ("refused", "attention-feature")}


# --- masks -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mask", [np.float32, bool])
def test_a_mask_without_axes_is_refused(mask: Any) -> None:
    assert verdicts(masked(mask)) == {"softmax": ("refused", "attention-feature")}


@pytest.mark.parametrize("keys", [5, 7, 9])
def test_a_mask_that_is_as_long_as_the_keys_at_one_size_alone_blocks_those_behind_it(keys: int) -> None:
    """Source: operator specification, Attention-24: a shorter mask is filled up with −inf. ONNX Runtime 1.31.1 cannot."""
    net = Net(24)
    q = net.input("q", "batch", HEADS, 5, HEAD_DIM)
    k, v = (net.input(name, "batch", HEADS, "keys", HEAD_DIM) for name in "kv")
    net.output(net.op("Attention", q, k, v, net.input("mask", 5, 5), name="softmax"))
    model = net.model()
    fused = onnx_attn.fuse(model, target="onnx", form="function", verify=False, expect=1).model
    inputs = feeds(model, {"keys": keys})
    (expected,) = ReferenceEvaluator(model).run(None, inputs)
    np.testing.assert_allclose(run(fused, inputs)[0], expected, rtol=1e-4, atol=1e-5)


# --- further outputs ---------------------------------------------------------------------------------------------------------


def test_an_operator_whose_other_outputs_nobody_reads_stays_as_it_is() -> None:
    net = Net(23)
    given = [net.input(name, *PLAIN) for name in "qkv"]
    net.output(net.op("Attention", *given, outputs=4, name="softmax")[0])
    result = onnx_attn.fuse(net.model(), target="onnx", form="attention", expect=1)
    assert same_bytes(result.model, net.model())
