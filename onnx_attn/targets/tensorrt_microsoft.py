"""com.microsoft operators in TensorRT: the parser of TensorRT for RTX takes one of them, measured; of full TensorRT nothing is
known."""

from __future__ import annotations

from onnx_attn.targets.rows import Below, Is
from onnx_attn.targets.tensorrt import MHA
from onnx_attn.targets.tensorrt_refused import row

MICROSOFT = ("contrib",)

ROWS = (
    row(
        "rejected",
        "microsoft-attention",
        MICROSOFT,
        {"operator": Is("Attention")},
        "com.microsoft.Attention is not taken",
        "fuse the model: the operator is said in plain nodes then",
        {"operator": "Attention", "rank": 3},
    ),
    row(
        "rejected",
        "microsoft-bias",
        MICROSOFT,
        {"operator": Is("MultiHeadAttention"), "fused_bias": Is(True)},
        "com.microsoft.MultiHeadAttention is not taken with the projection's bias",
        "fuse the model: the operator is said in plain nodes then",
        {**MHA, "fused_bias": True},
    ),
    row(
        "rejected",
        "microsoft-packed",
        MICROSOFT,
        {"operator": Is("MultiHeadAttention"), "packed": Is(True)},
        "com.microsoft.MultiHeadAttention is taken with 3-D query, key and value only",
        "fuse the model: the operator is said in plain nodes then",
        {**MHA, "packed": True},
    ),
    row(
        "rejected",
        "microsoft-value-head",
        MICROSOFT,
        {"operator": Is("MultiHeadAttention"), "value_head": Is("other")},
        "com.microsoft.MultiHeadAttention is taken with values of the same head size as the keys only",
        "fuse the model: the operator is said in plain nodes then",
        {**MHA, "value_head": "other"},
    ),
    row(
        "runs",
        "microsoft-wide-type",
        MICROSOFT,
        {"operator": Is("MultiHeadAttention"), "dtype": Is("float32")},
        "no attention kernel exists for float32",
        "convert the model to float16 or bfloat16",
        {**MHA, "dtype": "float32"},
    ),
    row(
        "runs",
        "microsoft-small-head",
        MICROSOFT,
        {"operator": Is("MultiHeadAttention"), "head_dim": Below(9)},
        "no attention kernel exists for heads of 8 elements or fewer",
        None,
        {**MHA, "head_dim": 8},
    ),
)
