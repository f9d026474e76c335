"""What the ONNX standard itself asks of each form. Every runtime's table begins with these rows."""

from __future__ import annotations

from onnx_attn.targets.editions import EVERY
from onnx_attn.targets.rows import Below, Documented, Measured, Row, examples

CHECKED = Measured("onnx 1.23.2")
"""By its checker."""

STANDARD = (
    Row(
        "attention-opset",
        EVERY,
        ("attention",),
        {"opset": Below(23)},
        "rejected",
        CHECKED,
        "the standard has the Attention operator from opset 23 on",
        "raise the model's opset",
        code="opset-too-low",
        examples=examples("attention", of=({"opset": 22}, {"opset": 17})),
    ),
    Row(
        "function-opset",
        EVERY,
        ("function",),
        {"opset": Below(15)},
        "rejected",
        CHECKED,
        "the function's body needs CastLike, of opset 15",
        "raise the model's opset, or choose --form primitives",
        code="opset-too-low",
        examples=examples("function", of=({"opset": 14},)),
    ),
    Row(
        "primitives-opset",
        EVERY,
        ("primitives",),
        {"opset": Below(13)},
        "unwritable",
        Documented("https://github.com/onnx/onnx/blob/main/docs/Changelog.md#Split-13"),
        "what is written needs Split with its sizes as an input, of opset 13",
        "raise the model's opset",
        code="opset-too-low",
    ),
)
