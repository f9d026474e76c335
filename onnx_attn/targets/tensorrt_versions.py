"""What NVIDIA and the parser's authors document of TensorRT's versions, which cannot be asked here."""

from __future__ import annotations

from onnx_attn.targets.editions import TRT_8_6, TRT_10_0, TRT_10_14
from onnx_attn.targets.rows import AnyOf, Below, Documented, Is, Row

CHANGELOG = Documented("https://github.com/onnx/onnx-tensorrt/blob/main/docs/Changelog.md")
OPERATORS = Documented("https://github.com/onnx/onnx-tensorrt/blob/release/10.15-GA/docs/operators.md")

WRITE_4D = "write Q, K, V and the mask with four dimensions each"

VERSIONS = (
    Row(
        "functions",
        (TRT_8_6,),
        ("function",),
        {},
        "rejected",
        CHANGELOG,
        "TensorRT parses local functions from 9.0 on",
        "choose --form primitives",
    ),
    Row(
        "attention-operator",
        (TRT_8_6, TRT_10_0),
        ("attention",),
        {},
        "rejected",
        CHANGELOG,
        "TensorRT parses the Attention operator from 10.14 on",
        "fuse the model, which spells the operator out",
    ),
    Row(
        "attention-3d",
        (TRT_10_14,),
        ("attention",),
        {"rank": Is(3)},
        "rejected",
        OPERATORS,
        "Q, K and V of the Attention operator must be 4-D",
        WRITE_4D,
    ),
    Row(
        "attention-mask-4d",
        (TRT_10_14,),
        ("attention",),
        {"mask": AnyOf(("additive", "boolean")), "mask_rank": Below(4)},
        "rejected",
        OPERATORS,
        "the mask of the Attention operator must be 4-D",
        WRITE_4D,
    ),
    *(
        Row(
            f"attention-{name}-10.14",
            (TRT_10_14,),
            ("attention",),
            {fact: Is(True)},
            "rejected",
            OPERATORS,
            reason,
            remedy,
        )
        for name, fact, reason, remedy in (
            ("softcap", "softcap", "softcap is not supported", "spell the operator out"),
            ("cache", "past", "past_key and past_value are not supported", "concatenate the cache in front of K and V"),
            ("presents", "presents", "present_key and present_value are not supported", "make them outside"),
            ("scores", "scores_output", "qk_matmul_output is not supported", "export without attention weights"),
            ("nonpad", "nonpad", "nonpad_kv_seqlen is not supported", "turn the counts into an additive mask"),
        )
    ),
)
