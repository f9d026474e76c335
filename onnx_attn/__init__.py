"""Find the attention in an exported ONNX model, rewrite it for fused kernels, and prove that nothing changed."""

from onnx_attn.apart import expand
from onnx_attn.api import fuse, inspect, land, stats, verify
from onnx_attn.codes import CODES
from onnx_attn.cut_out import extract
from onnx_attn.errors import (
    DifferenceError,
    ExpectationError,
    InputError,
    OnnxAttnError,
    OutputError,
    UsageError,
)
from onnx_attn.given import Result

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
    "expand",
    "extract",
    "fuse",
    "inspect",
    "land",
    "stats",
    "verify",
]
