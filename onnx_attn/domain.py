"""The domains of our local functions, and how their names tell what their bodies do, and of ONNX Runtime's operators."""

from __future__ import annotations

DOMAIN = "onnx_attn"
MICROSOFT = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""
VERSION = 1
ATTENTION = "ScaledDotProductAttention"
WINDOW_PARTITION = "WindowPartition"
WINDOW_REVERSE = "WindowReverse"


def is_attention_function(name: str) -> bool:
    return name == ATTENTION or name.startswith(ATTENTION + "_")


def is_window_function(name: str) -> bool:
    return name.startswith((WINDOW_PARTITION + "_", WINDOW_REVERSE + "_"))
