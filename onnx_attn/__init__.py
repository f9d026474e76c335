"""Find the attention in an exported ONNX model, rewrite it for fused kernels, and prove that nothing changed."""

from onnx_attn.api import Result, fuse, inspect, land, stats, verify
from onnx_attn.codes import CODES
from onnx_attn.errors import (
    DifferenceError,
    ExpectationError,
    InputError,
    OnnxAttnError,
    OutputError,
    UsageError,
)

__version__ = "0.1.0"

__all__ = [
    "CODES",
    "DifferenceError",
    "ExpectationError",
    "InputError",
    "OnnxAttnError",
    "OutputError",
    "Result",
    "UsageError",
    "__version__",
    "fuse",
    "inspect",
    "land",
    "stats",
    "verify",
]
