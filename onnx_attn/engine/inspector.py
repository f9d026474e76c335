"""Read an engine from the JSON of full TensorRT's engine inspector: `trtexec --exportLayerInfo`, or
`IEngineInspector.get_engine_information(LayerInformationFormat.JSON)`, of an engine built at DETAILED verbosity.

Sources, documented (this reader has not run on a GPU):
- `Layers`: a list of objects, at LAYER_NAMES_ONLY verbosity of strings. https://docs.nvidia.com/deeplearning/tensorrt/10.16.1/inference-library/engine-tools.html
- 10.x: a tensor's type stands in `Format/Datatype`; 11.x splits it into `Format` and `Datatype`, and `Bindings` becomes
  `I/O Tensors`. https://docs.nvidia.com/deeplearning/tensorrt/11.0.0/api/migration/tensorrt-10x-to-11x-IEngineInspector.html
- `Metadata` (`[ONNX Layer: …]` with U+001E or U+001F between), `wait` and `signal` layers, `[profile N]` names: NVIDIA's
  engine explorer, https://github.com/NVIDIA/TensorRT/blob/main/tools/experimental/trt-engine-explorer/trex/parser.py
"""

from __future__ import annotations

import re
from typing import Any

from onnx_attn.engine.kernels import BITS, EVENTS, Kernel, TensorInfo
from onnx_attn.engine.log import onnx_layers

_LATER_PROFILE = re.compile(r"\[profile [1-9]\d*\]$")
_TYPES = {
    "fp32": "Float",
    "fp16": "Half",
    "bf16": "BFloat16",
    **{name.lower(): name for name in BITS},
}
"""The compiler's type words, as plain words of its kernels and inside the sentences of its older layers."""
_WORD = re.compile(r"[A-Za-z]+\d*")


def parse_inspector(document: Any) -> tuple[Kernel, ...]:
    """The kernels of an inspector's JSON (decoded); events are left out.

    Raises ValueError for what is no such JSON, or where it holds names alone.
    """
    try:
        return _parse(document)
    except (AttributeError, TypeError) as error:
        raise ValueError(f"not the layers of an engine ({error})") from error


def _parse(document: Any) -> tuple[Kernel, ...]:
    layers = document.get("Layers") if isinstance(document, dict) else document
    if not isinstance(layers, list):
        raise ValueError("no list of layers in it; export it with trtexec --exportLayerInfo")
    kernels = []
    for layer in layers:
        if isinstance(layer, str):
            raise ValueError("it holds names alone; build the engine with --profilingVerbosity=detailed")
        if not isinstance(layer, dict) or not isinstance(layer.get("Name"), str):
            raise ValueError(f"not a layer: {str(layer)[:120]!r}")
        if layer.get("LayerType") not in EVENTS and not _LATER_PROFILE.search(layer["Name"]):
            kernels.append(_kernel(layer))
    return tuple(kernels)


def _kernel(layer: dict[str, Any]) -> Kernel:
    return Kernel(
        layer["Name"],
        str(layer.get("LayerType", "")),
        _tensors(layer, "Inputs"),
        _tensors(layer, "Outputs"),
        onnx_layers(layer.get("Metadata")),
        _tensors(layer, "Constants"),
        str(layer.get("TacticName") or ""),
    )


def _tensors(layer: dict[str, Any], key: str) -> tuple[TensorInfo, ...]:
    found = []
    for tensor in layer.get(key) or ():
        if not isinstance(tensor, dict):
            raise ValueError(
                f"{key} of layer {layer['Name']!r} are not described; build with --profilingVerbosity=detailed"
            )
        dims = tensor.get("Dimensions")
        # Without dimensions the size is unknown, as it is for one that varies.
        sizes = tuple(dim if isinstance(dim, int) else -1 for dim in dims) if isinstance(dims, list) else (-1,)
        found.append(TensorInfo(str(tensor.get("Name", "")), sizes, _datatype(tensor)))
    return tuple(found)


def _datatype(tensor: dict[str, Any]) -> str:
    """The type by its name in BITS; what stands there where it is none of them."""
    text = next((tensor[key] for key in ("Datatype", "DataType", "Format/Datatype") if tensor.get(key)), "")
    words = [_TYPES[word.lower()] for word in _WORD.findall(str(text)) if word.lower() in _TYPES]
    return words[0] if words else str(text)
