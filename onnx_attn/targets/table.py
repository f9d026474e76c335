"""The whole table: what each runtime takes of an attention site. Rules are data; lookup.py only looks them up."""

from __future__ import annotations

from onnx_attn.targets import onnxruntime, tensorrt, tensorrt_microsoft, tensorrt_quantised, tensorrt_refused
from onnx_attn.targets.rows import Row
from onnx_attn.targets.standard import STANDARD
from onnx_attn.targets.tensorrt_versions import VERSIONS

TABLE: tuple[Row, ...] = (
    *STANDARD,
    *VERSIONS,
    *tensorrt_refused.REJECTED,
    *tensorrt_refused.WRONG,
    *tensorrt_microsoft.ROWS,
    *tensorrt_quantised.ROWS,
    *tensorrt.WITHOUT_KERNEL,
    *tensorrt_refused.WITHOUT_KERNEL,
    *tensorrt.COSTS,
    *tensorrt.LANDS,
    tensorrt_quantised.LANDS,
    *onnxruntime.CPU,
    *onnxruntime.CUDA,
)
