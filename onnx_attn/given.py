"""What callers give, and what they get back: paths, messages and graphsurgeon's graphs."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import onnx
import onnx_graphsurgeon as gs

from onnx_attn.errors import InputError, UsageError, one_line, printable
from onnx_attn.graph.everywhere import all_tensors
from onnx_attn.graph.load import Loaded, check, load
from onnx_attn.graph.weights import is_apart

Model: TypeAlias = "str | PathLike[str] | onnx.ModelProto | gs.Graph"


class Result:
    """What `fuse` gives back: `model`, `report` and `plan`.

    model: a gs.Graph for a gs.Graph, else a ModelProto; where the result was saved, it is read from the file when asked
    for, so that a large model is not held in memory for nobody. report: a dict as the JSON interface documents it.
    plan: what was decided for each site, to be edited and given to `fuse` again.
    """

    def __init__(
        self,
        report: dict[str, Any],
        plan: dict[str, Any],
        model: onnx.ModelProto | gs.Graph | None,
        path: Path | None = None,
    ):
        self.report = report
        self.plan = plan
        self._model = model
        self._path = path

    @property
    def model(self) -> onnx.ModelProto | gs.Graph:
        if self._model is None:
            assert self._path is not None
            self._model = onnx.load(str(self._path))
        return self._model


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
    else:
        raise UsageError(f"a {type(model).__name__} is no model; pass a path, an onnx.ModelProto or a gs.Graph")
    name = proto.graph.name or "model"
    apart = next(filter(is_apart, all_tensors(proto)), None)
    if apart is not None:
        raise InputError(
            f"{name}: weight '{printable(apart.name)}' lies in a file that a model in memory cannot be beside; load it with its "
            f"external data, or pass the path"
        )
    check(proto, name)
    return Loaded(proto, name)
