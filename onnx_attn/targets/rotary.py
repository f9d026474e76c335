"""Whether a target takes RotaryEmbedding operators, and whether they are worth writing."""

from __future__ import annotations

from onnx_attn.targets.editions import Target

OPSET = 23
"""The first with the standard operator."""
SINCE = (10, 15)


def takes_rotary(target: Target, opset: int, domain: str = "") -> bool:
    return target.name == "onnxruntime" if domain == "com.microsoft" else opset >= OPSET and target.is_since(SINCE)
