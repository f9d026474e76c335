"""What TensorRT for RTX makes of a tool's result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_attn

_PARSER = "While parsing"
"""How the messages of TensorRT's parser begin, beneath the place in its source."""


def compiled(path: Path, sm: int) -> dict[str, Any]:
    """Whether the model parses and builds, the sites on attention kernels, all kernels, and the bytes that they move."""
    told = onnx_attn.land(str(path), sm=sm)
    if told["built"]:
        return {"parsed": True, "built": True, **{key: told[key] for key in ("landed", "kernels", "moved_bytes")}}
    parsed = not any(_PARSER in error or "parse" in error.lower() for error in told["errors"])
    reasons = [site["reason"] for site in told["per_site"] if site["reason"]] or told["errors"] or ["no reason given"]
    return {"parsed": parsed, "built": False, "why": reasons[0][:300]}
