"""Find the attention in an exported ONNX model, rewrite it for fused kernels, and prove that nothing changed.

What stands here is imported when it is first asked for: a process that only compiles, or a tool that looks for plugins, is spared
onnx, graphsurgeon and ONNX Runtime.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnx_attn.apart import expand
    from onnx_attn.api import fuse, inspect, land, stats
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
    from onnx_attn.result import Result
    from onnx_attn.verification import verify

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

_HOMES = {"CODES": "codes", "Result": "result", "expand": "apart", "extract": "cut_out", "verify": "verification"}
_HOMES |= dict.fromkeys(("fuse", "inspect", "land", "stats"), "api")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
