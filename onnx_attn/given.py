"""What callers give, and what they get back: paths, messages, graphs of graphsurgeon, models of onnx_ir, torch's programs."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import onnx
import onnx_graphsurgeon as gs

from onnx_attn.deliver import fuse_file, fuse_proto
from onnx_attn.errors import InputError, UsageError, one_line, printable
from onnx_attn.graph.everywhere import all_tensors
from onnx_attn.graph.load import Loaded, check, load
from onnx_attn.graph.weights import is_apart
from onnx_attn.ir_model import give_back, ir_model_of, load_ir
from onnx_attn.options import Options

if TYPE_CHECKING:
    import onnx_ir
    import torch.onnx

Model: TypeAlias = "str | PathLike[str] | onnx.ModelProto | gs.Graph | onnx_ir.Model | torch.onnx.ONNXProgram"


class Result:
    """What `fuse` and `expand` give back: `model`, `report` and `plan`.

    model: of the kind that was given (a ModelProto for a path); where the result was saved, it is read from the file when asked
    for, so that a large model is not held in memory for nobody. report: a dict as the JSON interface documents it.
    plan: what was decided for each site, to be edited and given to `fuse` again.
    """

    def __init__(
        self,
        report: dict[str, Any],
        plan: dict[str, Any],
        given: Model,
        made: onnx.ModelProto | Path,
    ):
        """given: what the result was made of. made: the message, or the file that it was saved to."""
        self.report = report
        self.plan = plan
        self._given, self._made = given, made
        self._model: Any = None

    @property
    def model(self) -> Any:
        if self._model is None:
            proto = onnx.load(str(self._made)) if isinstance(self._made, Path) else self._made
            self._model = _of_kind(proto, self._given)
        return self._model


def rewritten(model: Model, output: str | PathLike[str] | None, options: Options) -> Result:
    """The model as `options` want it, in memory or saved."""
    if output is not None:
        source = Path(model) if isinstance(model, str | PathLike) else loaded_from(model)
        return Result(*fuse_file(source, Path(output), options), model, Path(output))
    loaded = loaded_from(model)
    if isinstance(model, str | PathLike):
        loaded.whole()
    report, plan, proto = fuse_proto(loaded, options)
    return Result(report, plan, model, proto)


def _of_kind(proto: onnx.ModelProto, given: Model) -> Any:
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
