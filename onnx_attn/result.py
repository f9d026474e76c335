"""What `fuse` and `expand` give back, and how they make it."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import onnx

from onnx_attn.deliver import fuse_file, fuse_proto
from onnx_attn.given import Model, loaded_from, of_kind
from onnx_attn.options import Options


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
            self._model = of_kind(proto, self._given)
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
