"""What TensorRT does with quantised attention: measured rows.

A quantised kernel multiplies narrow numbers twice: Q·Kᵀ and P·V. So all of Q, K, V and the probabilities have to be rounded, and
nothing in between. Signed and unsigned bytes are taken for one another.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx_attn.targets.editions import RTX, TRT_10_0, TRT_10_14, TRT_11
from onnx_attn.targets.facts import Value
from onnx_attn.targets.rows import Above, Below, Condition, Example, Is, NoneOf, Outcome, Row, examples
from onnx_attn.targets.tensorrt import ADDITIVE, ASKED, BOOLEAN, SITE_FORMS, SPELLED, WIDE, Given

LATER = (TRT_10_0, TRT_10_14, TRT_11)
INT8: Given = {
    "quantized": "int8",
    "probabilities_quantized": "int8",
    "result_quantized": True,
    "dtype": "float32",
}
FP8: Given = {**INT8, "quantized": "fp8", "probabilities_quantized": "fp8"}
FULL: Given = {"dtype": "float16"}
WITHOUT: Given = {"probabilities_quantized": "none"}
OPEN: Given = {"result_quantized": False}
NARROW: Mapping[str, Condition] = {"narrow": Is(True)}
_INT8: Mapping[str, Condition] = {"quantized": Is("int8")}
_FP8: Mapping[str, Condition] = {"quantized": Is("fp8")}


def _given(*parts: Mapping[str, Value]) -> Given:
    return {name: value for part in parts for name, value in part.items()}


def _row(
    outcome: Outcome,
    name: str,
    when: Mapping[str, Condition],
    reason: str,
    remedy: str | None,
    *given: Given,
    forms: tuple[str, ...] = ("primitives",),
    code: str | None = None,
) -> Row:
    tried: tuple[Example, ...] = examples(*forms, of=given)
    return Row(f"quantised-{name}", (RTX,), forms, when, outcome, ASKED, reason, remedy, code, LATER, tried)


ROWS = (
    _row(
        "rejected",
        "calls",
        {"steps_inside": Is(True)},
        "two calls of a function with quantisation steps in it do not build: steps must have names of their own",
        "choose --form primitives",
        INT8,
        FP8,
        forms=("function",),
        code="form-not-taken",
    ),
    _row(
        "rejected",
        "zero-point",
        {"offset": Is(True)},
        "TensorRT takes quantisation steps with a zero point of 0 alone",
        "quantise symmetrically (ActivationSymmetric with ONNX Runtime's quantiser)",
        _given(FULL, {"quantized": "int8", "offset": True}),
        forms=SITE_FORMS,
    ),
    _row(
        "rejected",
        "fp8-ampere",
        {**_FP8, "sm": Below(89)},
        "compute capabilities below 8.9 do not have fp8",
        "quantise to int8 there",
        *(_given(FULL, {"quantized": "fp8", "sm": sm}) for sm in (80, 86)),
        forms=SITE_FORMS,
    ),
    _row(
        "runs",
        "scores",
        {**NARROW, "scores_quantized": Is(True)},
        "no attention kernel rounds the scores between Q·Kᵀ and the softmax",
        "leave the result of Q·Kᵀ as it is (OpTypesToExcludeOutputQuantization with ONNX Runtime's quantiser)",
        _given(INT8, {"scores_quantized": True}),
        _given(INT8, FULL, {"scores_quantized": True}),
        _given(FP8, FULL, {"scores_quantized": True}),
    ),
    _row(
        "runs",
        "probabilities",
        {**NARROW, "probabilities_quantized": Is("none")},
        "Q, K and V are quantised and the probabilities are not: no attention kernel multiplies them",
        "pass --quantize-probabilities, which changes numbers",
        _given(INT8, WITHOUT),
        _given(FP8, WITHOUT),
        _given(INT8, WITHOUT, FULL),
        _given(INT8, WITHOUT, OPEN),
        forms=SPELLED,
    ),
    _row(
        "runs",
        "int8-result",
        {**_INT8, "result_quantized": Is(False)},
        "the int8 kernel rounds its result, and here the result is not quantised",
        "quantise the result of P·V too",
        _given(INT8, OPEN),
        _given(INT8, OPEN, FULL),
    ),
    _row(
        "runs",
        "fp8-result",
        {**_FP8, "dtype": WIDE, "result_quantized": Is(False)},
        "the fp8 kernel has no float32 result, and here the result is not quantised",
        "quantise the result of P·V too, or convert the model to half precision",
        _given(FP8, OPEN),
    ),
    _row(
        "runs",
        "int8-head",
        {**_INT8, "head_dim": NoneOf((16, 32, 64))},
        "int8 attention kernels exist for heads of 16, 32 and 64 elements alone",
        "leave the attention of these layers in half precision, or quantise it to fp8",
        *(_given(INT8, {"head_dim": size}) for size in (8, 24, 48, 80, 128)),
        _given(INT8, FULL, {"head_dim": 48}),
    ),
    _row(
        "runs",
        "int8-length",
        {**_INT8, "key_length": Above(512)},
        "int8 attention kernels exist for up to 512 keys",
        "leave the attention of these layers in half precision, or quantise it to fp8",
        _given(INT8, {"query_length": 513, "key_length": 513}),
        _given(INT8, {"key_length": 513}),
    ),
    _row(
        "runs",
        "fp8-length",
        {**_FP8, "key_length": Below(32)},
        "fp8 attention kernels exist from 32 keys on",
        "leave the attention of these layers in half precision",
        _given(FP8, {"query_length": 16, "key_length": 16}),
        _given(FP8, FULL, {"key_length": 31}),
    ),
    _row(
        "runs",
        "features",
        {"sliced": Is("features")},
        "Q, K or V has a scale for each channel, with which no kernel multiplies",
        "quantise activations with one scale each",
        _given(INT8, {"sliced": "features", "quantized": "some"}),
        _given(INT8, FULL, {"sliced": "features", "quantized": "some"}),
    ),
    _row(
        "runs",
        "in-part",
        {"quantized": Is("some")},
        "a part of Q, K, V and the probabilities is quantised and another is not, or to another type",
        "quantise all of them alike, or none",
        _given(INT8, FULL, WITHOUT, {"quantized": "some"}),
        _given(INT8, WITHOUT, {"quantized": "some"}),
    ),
)

LANDS = Row(
    "spelled-quantised",
    (RTX,),
    ("primitives",),
    {"code": Is("none"), "narrow": Is(True), "query_length": Above(1)},
    "lands",
    ASKED,
    presumed=LATER,
    examples=examples(
        "primitives",
        of=(
            INT8,
            _given(INT8, FULL),
            *(_given(INT8, {"head_dim": size}) for size in (16, 32)),
            *(_given(INT8, {"query_length": size, "key_length": size}) for size in (2, 49, 512)),
            _given(INT8, {"query_length": 2000}),
            _given(INT8, ADDITIVE),
            _given(INT8, BOOLEAN, FULL),
            _given(INT8, {"sm": 80}),
            FP8,
            _given(FP8, FULL, OPEN),
            *(_given(FP8, {"head_dim": size}) for size in (4, 16, 80, 128, 256)),
            *(_given(FP8, {"query_length": size, "key_length": size}) for size in (32, 49, 2048)),
            _given(FP8, ADDITIVE),
            _given(FP8, {"sm": 120}),
        ),
    ),
)
