"""The domain of our local functions and how their names tell what their bodies do."""

from __future__ import annotations

DOMAIN = "onnx_attn"
VERSION = 1
ATTENTION = "ScaledDotProductAttention"
WINDOW_PARTITION = "WindowPartition"
WINDOW_REVERSE = "WindowReverse"


def is_attention_function(name: str) -> bool:
    return name == ATTENTION or name.startswith(ATTENTION + "_")


def is_window_function(name: str) -> bool:
    return name.startswith((WINDOW_PARTITION + "_", WINDOW_REVERSE + "_"))
