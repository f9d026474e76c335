"""Loaders for polygraphy's Python API: a model with its attention fused, where polygraphy takes a model.

    from onnx_attn.polygraphy import FuseAttention
    from polygraphy.backend.onnx import BytesFromOnnx
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    fused = OnnxrtRunner(SessionFromOnnx(BytesFromOnnx(FuseAttention("model.onnx", expect=12))))

Each is also a function that is evaluated at once, and what cannot be done is logged and raised as PolygraphyException, both as
polygraphy has it. (Its decorator makes such functions only for options that are listed one by one, which `fuse` does already.)
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import onnx

from onnx_attn.api import fuse
from onnx_attn.errors import OnnxAttnError, printable
from onnx_attn.given import Model
from onnx_attn.result import Result

try:
    from polygraphy import util
    from polygraphy.backend.base import BaseLoader
    from polygraphy.exception import PolygraphyException
    from polygraphy.logger import G_LOGGER
except ImportError as error:
    raise ImportError("polygraphy is not installed; install the extra: pip install 'onnx-attn[tensorrt]'") from error

__all__ = ["FuseAttention", "FuseAttentionToFile", "fuse_attention", "fuse_attention_to_file"]

Source: TypeAlias = "Model | Callable[[], Model]"


class FuseAttention(BaseLoader):
    """Functor that fuses the attention of a model."""

    def __init__(self, model: Source, **options: Any):
        """model: a path, an onnx.ModelProto, or a loader that returns one. options: those of `onnx_attn.fuse`."""
        inspect.signature(fuse).bind(model, None, **options)  # Before any work: are there such options?
        self._model, self._options = model, options

    @util.check_called_by("__call__")
    def call_impl(self) -> onnx.ModelProto:
        """Returns the fused model, as an onnx.ModelProto where a path or one was given."""
        return _fused(self._model, None, self._options).model


class FuseAttentionToFile(BaseLoader):
    """Functor that fuses the attention of a model, of any size, and saves it: whole or not at all."""

    def __init__(self, model: Source, path: str | os.PathLike[str], **options: Any):
        """model, options: as FuseAttention has them. path: where to save it."""
        inspect.signature(fuse).bind(model, path, **options)
        self._model, self._path, self._options = model, path, options

    @util.check_called_by("__call__")
    def call_impl(self) -> str:
        """Returns the path, which is what SessionFromOnnx and NetworkFromOnnxPath take."""
        _fused(self._model, self._path, self._options)
        return os.fspath(self._path)


def fuse_attention(model: Source, **options: Any) -> onnx.ModelProto:
    """Immediately evaluated functional variant of FuseAttention."""
    return FuseAttention(model, **options)()


def fuse_attention_to_file(model: Source, path: str | os.PathLike[str], **options: Any) -> str:
    """Immediately evaluated functional variant of FuseAttentionToFile."""
    return str(FuseAttentionToFile(model, path, **options)())


def _fused(model: Source, output: str | os.PathLike[str] | None, options: dict[str, Any]) -> Result:
    given, is_made = util.invoke_if_callable(model)
    try:
        result = fuse(_typed(given) if is_made and isinstance(given, onnx.ModelProto) else given, output, **options)
    except OnnxAttnError as error:
        message = f"onnx-attn: {printable(str(error))}"
        G_LOGGER.log(message, G_LOGGER.CRITICAL)
        raise PolygraphyException(message) from error
    _tell(result.report)
    return result


def _typed(model: onnx.ModelProto) -> onnx.ModelProto:
    """With types for outputs that have none, as ModifyOutputs leaves those that it marks, and no checker takes them."""
    if all(value.type.WhichOneof("value") for value in model.graph.output):
        return model
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


def _tell(report: dict[str, Any]) -> None:
    """How much of the attention is fused, and why the rest is not."""
    name = printable(report["model"])
    told = f"onnx-attn: {name}: {report['fused']} of {report['sites']} attention sites fused for {report['target']}"
    if report["fused"]:
        G_LOGGER.info(told)
    else:
        G_LOGGER.warning(f"{told}; a comparison with it shows nothing")
    for each in report["candidates"]:
        if each["status"] == "refused":
            line = f"onnx-attn: {each['softmax']} is left alone ({each['code']}): {each['reason']}; {each['remedy']}"
            G_LOGGER.info(printable(line))
