"""What TensorRT takes: how a site fares in each form, by what the compiler said when it was asked.

Only TensorRT for RTX compiles without a GPU, so only it was asked; what full TensorRT shares with it is presumed, and what
NVIDIA documents of its versions is in tensorrt_versions.py.
"""

from __future__ import annotations

from collections.abc import Mapping

from onnx_attn.targets.editions import RTX, TRT_10_0, TRT_10_14, TRT_11
from onnx_attn.targets.facts import Value
from onnx_attn.targets.rows import (
    Above,
    AnyOf,
    Below,
    Condition,
    Is,
    Isnt,
    Measured,
    NotMultiple,
    Row,
    examples,
)

ASKED = Measured("tensorrt_rtx 1.7.1")
SPELLED = ("function", "primitives")
SITE_FORMS = ("attention", *SPELLED)
HALF = AnyOf(("float16", "bfloat16"))
WIDE = AnyOf(("float32", "float64"))

Given = Mapping[str, Value]

ADDITIVE: Given = {
    "mask": "additive",
    "mask_type": "query",
    "mask_rank": 4,
    "mask_queries": "all",
    "mask_keys": "all",
}
BOOLEAN: Given = {**ADDITIVE, "mask": "boolean", "mask_type": "none"}
WIDE_INPUTS: Given = {"rank": 3, "split": True}
"""Three-dimensional Q, K and V, which the operator splits into heads itself."""
ONE_QUERY: Given = {"query_length": 1}
ONE_MATRIX: Given = {"heads": 1, "kv_heads": 1}
MHA: Given = {"operator": "MultiHeadAttention", "rank": 3}

ISLAND = "fuse with --precision fp16, which puts a half-precision island around the site"
TO_HALF = f"{ISLAND}; or convert the model to float16 or bfloat16"
SPELL_OUT = "fuse the model, which spells the operator out inside a function"


def _lands(
    name: str, forms: tuple[str, ...], when: Mapping[str, Condition], *given: Given, presumed: bool = True
) -> Row:
    later = () if not presumed else (TRT_10_14, TRT_11) if forms == ("attention",) else (TRT_10_0, TRT_10_14, TRT_11)
    tried = examples(*forms[:-1], of=given[:3]) + examples(forms[-1], of=given)
    return Row(name, (RTX,), forms, when, "lands", ASKED, presumed=later, examples=tried)


LANDS = (
    _lands(
        "attention-half",
        ("attention",),
        {"code": Is("none"), "dtype": HALF},
        {},
        {"dtype": "bfloat16"},
        *({"head_dim": size} for size in (16, 256)),
        {"key_length": 100},
        {"key_length": 1},
        {"kv_heads": 2},
        {"kv_heads": 1},
        {"causal": True},
        {"opset": 25},
        *({**ADDITIVE, "mask_rank": rank} for rank in (4, 3, 2)),
        {**ADDITIVE, "mask_queries": "one"},
        {**ADDITIVE, "mask_rank": 1, "mask_queries": "one"},
        {"batch": 2, **ONE_MATRIX},
        WIDE_INPUTS,
    ),
    _lands(
        "spelled-half",
        SPELLED,
        {"code": Is("none"), "dtype": HALF, "narrow": Isnt(True)},
        {},
        {"opset": 17},
        {"dtype": "bfloat16"},
        *({"head_dim": size} for size in (9, 100, 256)),
        {"kv_heads": 2},
        {"causal": True},
        ADDITIVE,
        {**ADDITIVE, "mask_type": "other"},
        BOOLEAN,
        {"scale": "negative"},
        {"query_length": 1, "heads": 3, "kv_heads": 3},
    ),
    _lands(
        "single-query",
        SITE_FORMS,
        {
            "code": Is("none"),
            "single_query": Is(True),
            "narrow": Isnt(True),
            "dtype": AnyOf(("float16", "bfloat16", "float32")),
        },
        ONE_QUERY,
        {**ONE_QUERY, "head_dim": 8},
        {**ONE_QUERY, "dtype": "float32"},
        presumed=False,
    ),
    _lands(
        "refused-half",
        ("primitives",),
        {
            "code": AnyOf(
                (
                    "scale-not-constant",
                    "scores-changed",
                    "probabilities-changed",
                )
            ),
            "dtype": HALF,
        },
        {"code": "scale-not-constant"},
        {"code": "scores-changed"},
        {"code": "probabilities-changed"},
        presumed=False,
    ),
    _lands(
        "microsoft-half",
        ("contrib",),
        {"operator": Is("MultiHeadAttention"), "dtype": HALF},
        MHA,
        {**MHA, **ADDITIVE},
        {**MHA, "opset": 17},
        presumed=False,
    ),
)

COSTS = (
    Row(
        "attention-boolean-mask",
        (RTX,),
        ("attention",),
        {"mask": Is("boolean")},
        "costs",
        ASKED,
        "a boolean mask that is no constant is counted row by row in eight kernels of its own",
        "turn the mask into an additive one, or spell the operator out",
        presumed=(TRT_10_14, TRT_11),
        examples=examples("attention", of=(BOOLEAN, {**BOOLEAN, "mask_rank": 2})),
    ),
    Row(
        "attention-odd-head",
        (RTX,),
        ("attention",),
        {"head_dim": NotMultiple(8)},
        "costs",
        ASKED,
        "the compiler pads heads whose size is no multiple of 8, at the operator's edges, in kernels of their own",
        "spell the operator out",
        presumed=(TRT_10_14, TRT_11),
        examples=examples("attention", of=tuple({"head_dim": size} for size in (9, 100, 250))),
    ),
)


def _unkernelled(name: str, when: Mapping[str, Condition], reason: str, remedy: str, *given: Given) -> tuple[Row, Row]:
    """No kernel exists: spelled out the site runs without one; an `Attention` node stops the build, unless the compiler
    takes it apart first."""
    taken = tuple({**each, **WIDE_INPUTS} for each in given[:1])
    masked = {**given[0], **ADDITIVE, **WIDE_INPUTS}
    runs = Row(
        name,
        (RTX,),
        SITE_FORMS,
        when,
        "runs",
        ASKED,
        reason,
        remedy,
        presumed=(TRT_10_0, TRT_10_14, TRT_11),
        examples=examples("function", of=given[:1])
        + examples("primitives", of=given)
        + examples("attention", of=taken),
    )
    stops = Row(
        f"{name}-attention",
        (RTX,),
        ("attention",),
        {**when, "decomposable": Isnt(True)},
        "rejected",
        ASKED,
        f"{reason}, and TensorRT does not take an Attention node apart",
        f"{remedy}; or {SPELL_OUT}",
        presumed=(TRT_10_14, TRT_11),
        examples=examples("attention", of=(*given, masked)),
    )
    return runs, stops


WITHOUT_KERNEL = (
    *_unkernelled(
        "wide-type",
        {"dtype": WIDE, "single_query": Isnt(True), "narrow": Isnt(True)},
        "no attention kernel exists for float32 or float64",
        TO_HALF,
        {"dtype": "float32"},
        {"dtype": "float64"},
    ),
    *_unkernelled(
        "small-head",
        {"head_dim": Below(9), "single_query": Isnt(True), "narrow": Isnt(True)},
        "no attention kernel exists for heads of 8 elements or fewer",
        "fuse the model, which pads Q, K and V with zeros to heads of 16",
        {"head_dim": 8},
        {"head_dim": 4},
    ),
    *_unkernelled(
        "large-head",
        {"head_dim": Above(256)},
        "no attention kernel exists for heads of more than 256 elements",
        "split the heads, where the model can be trained again",
        {"head_dim": 257},
        {"head_dim": 264},
    ),
    *_unkernelled(
        "one-matrix",
        {"matrices": Is(1), "single_query": Isnt(True)},
        "no attention kernel exists for a single head at batch 1",
        "compile for a larger batch",
        ONE_MATRIX,
    ),
)
