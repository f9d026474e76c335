"""What ONNX Runtime takes: measured on the CPU, documented for CUDA.

On the CPU no row says that a site lands: which form is fastest depends on the shape (`onnxruntime_speed`).
"""

from __future__ import annotations

from onnx_attn.targets.editions import ORT_CPU, ORT_CUDA
from onnx_attn.targets.rows import AnyOf, Documented, Is, Measured, Row, examples
from onnx_attn.targets.tensorrt import ADDITIVE, BOOLEAN, MHA, SITE_FORMS, WIDE_INPUTS

RAN = Measured("onnxruntime 1.31.1")
KERNELS = Documented(
    "https://github.com/microsoft/onnxruntime/blob/001d12d2623fd411ce0f83d05abb5e82304a3389/docs/OperatorKernels.md"
)
CUDA_ATTENTION = Documented("https://github.com/microsoft/onnxruntime/pull/27542")

ANY_TYPE = ("float16", "float32", "float64")
NO_CPU_KERNEL = "which form is faster on the CPU depends on the shape"

CPU = (
    Row(
        "cpu-attention",
        (ORT_CPU,),
        ("attention",),
        {"dtype": AnyOf(ANY_TYPE)},
        "runs",
        RAN,
        NO_CPU_KERNEL,
        examples=examples(
            "attention",
            of=(
                *({"dtype": dtype} for dtype in ANY_TYPE),
                {"value_head": "other"},
                {"key_length": 100},
                {"kv_heads": 2},
                {"causal": True},
                WIDE_INPUTS,
                {"softcap": True},
                {"precision": True},
                {"past": True, "presents": True},
                {"scores_output": True},
                {"nonpad": True, "opset": 24},
                {"shared": True},
                *({**ADDITIVE, "mask_rank": rank} for rank in (4, 3, 2)),
                BOOLEAN,
                {**BOOLEAN, "causal": True},
            ),
        ),
    ),
    Row(
        "cpu-spelled",
        (ORT_CPU,),
        ("function", "primitives"),
        {"dtype": AnyOf(ANY_TYPE)},
        "runs",
        RAN,
        NO_CPU_KERNEL,
        examples=examples("function", "primitives", of=(*({"dtype": dtype} for dtype in ANY_TYPE), ADDITIVE, BOOLEAN)),
    ),
    Row(
        "cpu-microsoft",
        (ORT_CPU,),
        ("contrib",),
        {"operator": Is("MultiHeadAttention"), "dtype": AnyOf(("float16", "float32"))},
        "runs",
        RAN,
        f"{NO_CPU_KERNEL}; float16 is computed in float32",
        examples=examples("contrib", of=({**MHA, "dtype": "float32"}, MHA)),
    ),
    Row(
        "cpu-bfloat16",
        (ORT_CPU,),
        SITE_FORMS,
        {"dtype": Is("bfloat16")},
        "rejected",
        RAN,
        "ONNX Runtime has no products in bfloat16 on the CPU",
        "use float16 or float32 there",
        examples=examples(*SITE_FORMS, of=({"dtype": "bfloat16"},)),
    ),
    Row(
        "cpu-one-row-mask",
        (ORT_CPU,),
        ("attention",),
        {"mask_queries": Is("one")},
        "rejected",
        RAN,
        "a mask with one row for all queries is not broadcast",
        "expand the mask to a row for each query",
        examples=examples(
            "attention",
            of=(
                {**ADDITIVE, "mask_queries": "one"},
                {**ADDITIVE, "mask_queries": "one", "mask_rank": 2},
                {**ADDITIVE, "mask_queries": "one", "mask_rank": 1},
                {**BOOLEAN, "mask_queries": "one"},
            ),
        ),
    ),
    Row(
        "cpu-short-mask",
        (ORT_CPU,),
        ("attention",),
        {"mask_keys": Is("fewer")},
        "rejected",
        RAN,
        "a mask with fewer columns than there are keys is not taken",
        "pad the mask to the number of keys",
        examples=examples("attention", of=({**ADDITIVE, "mask_keys": "fewer", "opset": 24},)),
    ),
    Row(
        "cpu-negative-scale",
        (ORT_CPU,),
        ("attention",),
        {"scale": Is("negative")},
        "rejected",
        RAN,
        "a negative scale is not taken",
        "negate Q and make the scale positive",
        examples=examples("attention", of=({"scale": "negative"},)),
    ),
    Row(
        "cpu-past-alone",
        (ORT_CPU,),
        ("attention",),
        {"past": Is(True), "presents": Is(False)},
        "rejected",
        RAN,
        "past_key and past_value are taken together with present_key and present_value only",
        "name the two outputs, even if nobody reads them",
        examples=examples("attention", of=({"past": True},)),
    ),
)

CUDA = (
    Row(
        "cuda-attention",
        (ORT_CUDA,),
        ("attention",),
        {"dtype": AnyOf(("float16", "bfloat16")), "value_head": Is("same"), "scores_output": Is(False)},
        "lands",
        CUDA_ATTENTION,
    ),
    *(
        Row(
            f"cuda-{name}",
            (ORT_CUDA,),
            ("attention",),
            {fact: Is(True)},
            "rejected",
            CUDA_ATTENTION,
            f"{name} is supported by no CUDA kernel",
            "spell the operator out",
        )
        for name, fact in (("softcap", "softcap"), ("softmax_precision", "precision"))
    ),
    Row(
        "cuda-float64",
        (ORT_CUDA,),
        ("attention",),
        {"dtype": Is("float64")},
        "rejected",
        KERNELS,
        "the Attention operator has CUDA kernels for bfloat16, float16 and float32",
        "use one of these types",
    ),
)
