"""Features of the standard `Attention` operator: each read, spelled plainly and fused, and the same as ONNX Runtime has it."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from checks import SIZES, assert_same
from graphs import HEAD_DIM, HEADS, WIDTH, Net

import onnx_attn

SIZES |= {"past": 4, "keys": 6}
TYPES = [np.float32, np.float16]


class Case:
    """One `Attention` node on model inputs; `batch`, `past` and `sequence` vary where `varies`."""

    def __init__(
        self, dtype: Any = np.float32, varies: bool = False, wide: bool = False, opset: int = 24, keys: int = 5
    ):
        self.net = Net(opset, dtype=dtype)
        self.batch, self.queries, self.past = ("batch", "sequence", "past") if varies else (2, 5, 3)
        self.keys = "sequence" if varies and keys == 5 else "keys" if varies else keys
        self.wide, self.rtol = wide, 1e-5 if dtype == np.float32 else 2e-3
        self.given = [self._heads("q", self.queries, HEADS), *(self._heads(name, self.keys, 1) for name in "kv")]
        self.given += [""] * 4

    def _heads(self, name: str, length: Any, heads: int) -> str:
        if self.wide:
            return self.net.input(name, self.batch, length, heads * HEAD_DIM)
        return self.net.input(name, self.batch, heads, length, HEAD_DIM)

    def mask(self, *dims: Any, dtype: Any = None) -> None:
        self.given[3] = self.net.input("mask", *dims, dtype=dtype)

    def cache(self) -> None:
        for place, name in ((4, "past_key"), (5, "past_value")):
            self.given[place] = self.net.input(name, self.batch, 1, self.past, HEAD_DIM)

    def valid_keys(self) -> None:
        self.given[6] = self.net.input("valid", self.batch, dtype=np.int64)

    def model(self, presents: bool = False, **attrs: Any) -> onnx.ModelProto:
        if self.wide:
            attrs |= {"q_num_heads": HEADS, "kv_num_heads": 1}
        while not self.given[-1]:
            self.given.pop()
        outputs = 3 if presents else 1
        made = self.net.op("Attention", *self.given, outputs=outputs, name="softmax", **attrs)
        self.net.output(made[0] if presents else made, 3 if self.wide else 4)
        for name in made[1:] if presents else ():
            self.net.output(name)
        return self.net.model()


def inputs_of(model: onnx.ModelProto, fill: float | None = None, seed: int = 3) -> dict[str, np.ndarray]:
    """Random values; of a mask some are blocked by `fill` (booleans by False), and one row throughout."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for value in model.graph.input:
        shape = [dim.dim_value or SIZES[dim.dim_param] for dim in value.type.tensor_type.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if value.name == "valid":
            found[value.name] = np.asarray([3, 5, 4][: shape[0]], np.int64)
        elif value.name == "mask":
            open_ = rng.random(shape) < 0.7
            open_.reshape(-1, shape[-1])[1] = False
            found[value.name] = (
                open_
                if dtype is np.bool_ or dtype == np.dtype(bool)
                else np.where(open_, rng.standard_normal(shape), fill).astype(dtype)
            )
        else:
            found[value.name] = rng.standard_normal(shape).astype(dtype)
    return found


def assert_same_as_runtime(
    case: Case, model: onnx.ModelProto, fills: tuple[float, ...] = (-np.inf,), **options: Any
) -> Any:
    result = onnx_attn.fuse(model, **options)
    (candidate,) = result.report["candidates"]
    assert (candidate["status"], candidate["softmax"]) == ("site", "softmax"), candidate["reason"]
    assert result.model.graph.output == model.graph.output
    for fill in fills:
        assert_same(model, result.model, inputs_of(model, fill), rtol=case.rtol)
    return result


def lowest(dtype: Any) -> float:
    return float(np.finfo(dtype).min)


@pytest.mark.parametrize("form", ["function", "primitives"])
@pytest.mark.parametrize("varies", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("wide", [False, True], ids=["4-D", "3-D"])
def test_a_cache_is_joined_in_front_and_given_back(wide: bool, dtype: Any, varies: bool, form: str) -> None:
    case = Case(dtype, varies, wide)
    case.cache()
    result = assert_same_as_runtime(case, case.model(presents=True), form=form)
    assert "past_key" not in {
        name for node in result.model.graph.node if node.op_type == "Attention" for name in node.input
    }


@pytest.mark.parametrize("varies", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("mask", [None, bool, "own"])
@pytest.mark.parametrize("dtype", TYPES)
def test_causality_counts_from_the_past(dtype: Any, mask: Any, varies: bool) -> None:
    case = Case(dtype, varies)
    case.cache()
    total = "past + sequence" if varies else 8
    if mask is not None:
        SIZES[str(total)] = SIZES["past"] + SIZES["sequence"]
        case.mask(case.queries, total, dtype=bool if mask is bool else None)
    fills = (-np.inf, lowest(dtype)) if mask == "own" else (-np.inf,)
    assert_same_as_runtime(case, case.model(presents=True, is_causal=1), fills)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("keys", [5, 7])
def test_causal_and_a_float_mask_block_together(keys: int, dtype: Any) -> None:
    case = Case(dtype, keys=keys)
    case.mask(2, 1, 5, keys)
    model = case.model(is_causal=1)
    assert_same_as_runtime(case, model, (-np.inf, lowest(dtype), -3.0))


def test_a_row_that_only_both_together_block_answers_zero() -> None:
    """The mask leaves the first query its last key, which it may not see yet."""
    case = Case()
    case.mask(5, 5)
    model = case.model(is_causal=1)
    fused = onnx_attn.fuse(model).model
    for fill in (-np.inf, lowest(np.float32)):
        inputs = inputs_of(model, 0.0)
        inputs["mask"][:] = 0
        inputs["mask"][0, :4] = fill
        assert_same(model, fused, inputs)


@pytest.mark.parametrize("wide", [False, True], ids=["4-D", "3-D"])
@pytest.mark.parametrize("varies", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("causal", [0, 1])
@pytest.mark.parametrize("mask", [None, bool, "own"])
def test_keys_that_are_padding_are_blocked(mask: Any, causal: int, varies: bool, wide: bool) -> None:
    case = Case(varies=varies, wide=wide)
    case.valid_keys()
    if mask is not None:
        case.mask(case.queries, case.keys, dtype=bool if mask is bool else None)
    assert_same_as_runtime(
        case, case.model(is_causal=causal), (-np.inf, lowest(np.float32)) if mask == "own" else (0.0,)
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("mask", [None, bool, "own"])
@pytest.mark.parametrize("causal", [0, 1])
def test_a_softcap_stands_before_the_mask(causal: int, mask: Any, dtype: Any) -> None:
    case = Case(dtype)
    if mask is not None:
        case.mask(2, 1, 5, 5, dtype=bool if mask is bool else None)
    model = case.model(softcap=0.7, is_causal=causal)
    assert_same_as_runtime(case, model, (-np.inf, lowest(dtype)) if mask == "own" else (0.0,))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("mask", [None, bool, "own"])
@pytest.mark.parametrize("precision", [onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE])
def test_the_softmax_has_a_precision_of_its_own(precision: int, mask: Any, dtype: Any) -> None:
    case = Case(dtype)
    if mask is not None:
        case.mask(2, 1, 5, 5, dtype=bool if mask is bool else None)
    model = case.model(softmax_precision=precision)
    assert_same_as_runtime(case, model, (-np.inf, lowest(dtype)) if mask == "own" else (0.0,))


@pytest.mark.parametrize("varies", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("dtype", TYPES)
def test_three_axes_are_split_into_heads(dtype: Any, varies: bool) -> None:
    case = Case(dtype, varies, wide=True)
    result = assert_same_as_runtime(case, case.model())
    (candidate,) = result.report["candidates"]
    assert (candidate["heads"], candidate["head_dim"]) == (HEADS, HEAD_DIM)


def test_three_axes_behind_projections_are_packed() -> None:
    net = Net(23)
    x = net.input("x", 2, 5, WIDTH)
    q, k, v = (net.linear(x, HEADS * HEAD_DIM) for _ in range(3))
    made = net.op("Attention", q, k, v, q_num_heads=HEADS, kv_num_heads=HEADS, name="softmax")
    net.output(net.linear(made, WIDTH, width=HEADS * HEAD_DIM), 3)
    result = onnx_attn.fuse(net.model())
    (candidate,) = result.report["candidates"]
    assert candidate["packed"] and "value-bias" in candidate["algebra"]
    assert_same(net.model(), result.model)


def test_presents_without_a_past_are_keys_and_values() -> None:
    case = Case()
    assert_same_as_runtime(case, case.model(presents=True))


@pytest.mark.parametrize("form", ["attention", "function"])
@pytest.mark.parametrize("feature", ["past", "causal mask", "valid keys", "wide", "softcap", "precision", "float32"])
def test_what_tensorrt_does_not_take_builds_when_it_is_spelled_out(feature: str, form: str) -> None:
    pytest.importorskip("tensorrt_rtx")
    case = Case(np.float32 if feature == "float32" else np.float16, wide=feature == "wide")
    attrs: dict[str, Any] = {"softcap": {"softcap": 9.0}, "precision": {"softmax_precision": 1}}.get(feature, {})
    if feature == "past":
        case.cache()
    if feature == "valid keys":
        case.valid_keys()
    if feature == "causal mask":
        case.mask(5, 5)
        attrs = {"is_causal": 1}
    model = case.model(presents=feature == "past", **attrs)
    result = onnx_attn.fuse(model, form=form)
    if form == "attention" and feature in ("softcap", "precision", "float32"):
        assert result.report["refused"] == 1
        return
    landed = onnx_attn.land(result.model)
    assert landed["built"], landed["errors"]
    assert landed["landed"] == (feature not in ("softcap", "float32"))
    if feature not in ("wide", "valid keys"):
        assert not onnx_attn.land(model)["built"]


def test_a_node_that_stays_refused_is_left_as_it_is() -> None:
    """Two nodes, one of which gives its scores away: only the other one is spelled out."""
    case = Case(wide=True)
    plain = case.net.op("Attention", *case.given[:3], q_num_heads=HEADS, kv_num_heads=1, name="softmax")
    given = [case.net.input(name, 2, HEADS, 5, HEAD_DIM) for name in ("a", "b", "c")]
    other, _, _, scores = case.net.op("Attention", *given, outputs=4, name="scored")
    for value, rank in ((plain, 3), (other, 4), (scores, 4)):
        case.net.output(value, rank)
    model = case.net.model()
    result = onnx_attn.fuse(model)
    assert {c["softmax"]: c["status"] for c in result.report["candidates"]} == {"softmax": "site", "scored": "refused"}
    left = [node for node in result.model.graph.node if node.op_type == "Attention"]
    assert left == [node for node in model.graph.node if node.name == "scored"]
