"""What callers give, and are given back: paths, messages, graphs of graphsurgeon, models of onnx_ir, torch's programs."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx
import onnx_graphsurgeon as gs

from onnx_attn.errors import InputError, UsageError, one_line, printable
from onnx_attn.graph.everywhere import all_tensors
from onnx_attn.graph.load import Loaded, check, load
from onnx_attn.graph.weights import is_apart
from onnx_attn.ir_model import give_back, ir_model_of, load_ir

if TYPE_CHECKING:
    import onnx_ir
    import torch.onnx

Model: TypeAlias = "str | PathLike[str] | onnx.ModelProto | gs.Graph | onnx_ir.Model | torch.onnx.ONNXProgram"


def of_kind(proto: onnx.ModelProto, given: Model) -> Any:
    """A message, which may be taken apart for it, as the kind of what was given."""
    if isinstance(given, gs.Graph):
        return gs.import_onnx(proto)
    return give_back(proto, given) if ir_model_of(given) is not None else proto


def own_copy(model: Model) -> Loaded:
    """A loaded model that may be changed: the caller's own stays as it is."""
    loaded = loaded_from(model)
    return loaded.copy() if isinstance(model, onnx.ModelProto) else loaded


def loaded_from(model: Model) -> Loaded:
    if isinstance(model, str | PathLike):
        return load(Path(model))
    if isinstance(model, gs.Graph):
        try:
            proto = gs.export_onnx(model)
        except Exception as error:
            raise InputError(f"graph: onnx-graphsurgeon cannot export it: {one_line(error)}") from error
    elif isinstance(model, onnx.ModelProto):
        proto = model
    elif (held := ir_model_of(model)) is not None:
        return load_ir(held)
    else:
        raise UsageError(
            f"a {type(model).__name__} is no model; pass a path, an onnx.ModelProto, a gs.Graph, an onnx_ir.Model or a "
            f"torch.onnx.ONNXProgram"
        )
    name = proto.graph.name or "model"
    apart = next(filter(is_apart, all_tensors(proto)), None)
    if apart is not None:
        raise InputError(
            f"{name}: weight '{printable(apart.name)}' lies in a file that a model in memory cannot be beside; load it with its "
            f"external data, or pass the path"
        )
    check(proto, name)
    return Loaded(proto, name)
