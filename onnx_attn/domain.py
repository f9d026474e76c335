"""The domain of our local functions and how their names tell what their bodies do."""

from __future__ import annotations

DOMAIN = "onnx_attn"
VERSION = 1
ATTENTION = "ScaledDotProductAttention"
WINDOW_PARTITION = "WindowPartition"
WINDOW_REVERSE = "WindowReverse"


def is_attention_function(name: str) -> bool:
    return name == ATTENTION or name.startswith(ATTENTION + "_")
