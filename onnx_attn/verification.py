"""Two models on the same inputs: what `verify` does."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_attn.engine.profiles import as_range, fitted, sizes_at
from onnx_attn.errors import InputError, UsageError
from onnx_attn.given import Model, loaded_from
from onnx_attn.graph.inference import Inference
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.sizes import worlds_of
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import World
from onnx_attn.json_file import read_json
from onnx_attn.progress import stage
from onnx_attn.prove.decoder_calls import decoder_calls
from onnx_attn.prove.inputs import flags_off, model_inputs
from onnx_attn.prove.recheck import recheck
from onnx_attn.prove.values import check_values, read_values
from onnx_attn.prove.whole import Model as Runnable
from onnx_attn.prove.whole import compare_models, rtol_between
from onnx_attn.report.document import verification
from onnx_attn.runtime import refuse_crash


def verify(
    a: Model,
    b: Model,
    *,
    shapes: dict[str, tuple[int, ...]] | None = None,
    inputs: dict[str, np.ndarray] | str | PathLike[str] | None = None,
    rtol: float | None = None,
    atol: float = 0.0,
    certificate: dict[str, Any] | str | PathLike[str] | None = None,
) -> dict[str, Any]:
    """Run two models on the same inputs and compare every output. `report["ok"]` is the verdict.

    inputs: one set of values by input name, or the .npz file that holds them; else seeded ones at `shapes`, or at sizes
        of the tool's choice.
    rtol: largest max|a − b| / max|a|; by default 1e-5; 2e-3 where a model holds float16, or `b` computes parts in it.
    certificate: the report of the `fuse` that made `b` of `a` (its file or itself): each site's certificate is checked again.
    """
    first, second = loaded_from(a), loaded_from(b)
    wanted = _signature(first.proto)
    if wanted != _signature(second.proto):
        raise InputError(
            f"{second.name}: has other inputs than {first.name}; only models of one signature can be compared"
        )
    if (rtol is not None and not rtol >= 0.0) or not atol >= 0.0:
        raise UsageError("rtol and atol are bounds: numbers that are not negative")
    cases = _cases(first, shapes, inputs)
    limit = rtol_between(first.proto, second.proto) if rtol is None else rtol
    names = [output.name for output in first.proto.graph.output]
    missing = set(names) ^ {output.name for output in second.proto.graph.output}
    if missing:
        raise InputError(f"{second.name}: output '{sorted(missing)[0]}' is only in one of the models")
    for each in (first, second):
        refuse_crash(each.proto, each.name)
    also = flags_off(cases) if inputs is None else ()
    with stage("run"):
        found = compare_models(_runnable(a, first), _runnable(b, second), cases, limit, atol, also=also)
    checked = None
    if certificate is not None:
        told = (
            certificate if isinstance(certificate, dict) else read_json(Path(certificate), "a report of `fuse --json`")
        )
        name = "certificate" if isinstance(certificate, dict) else str(certificate)
        with stage("check certificates"):
            checked = recheck(GraphView(first.proto), GraphView(second.proto), told, name)
    return verification(first.name, second.name, found, cases, checked)


def _runnable(model: Model, loaded: Loaded) -> tuple[Runnable, str]:
    """What ONNX Runtime is to open, a file where there is one, and its name for messages."""
    return Path(model) if isinstance(model, str | PathLike) else loaded.proto, loaded.name


def _cases(
    model: Loaded,
    shapes: dict[str, tuple[int, ...]] | None,
    inputs: dict[str, np.ndarray] | str | PathLike[str] | None,
) -> list[dict[str, np.ndarray]]:
    """What two models are run on, for `verify`."""
    if inputs is not None and shapes is not None:
        raise UsageError("inputs have their own shapes; leave out shapes, or inputs")
    if inputs is not None:
        given = inputs if isinstance(inputs, dict) else read_values(Path(inputs))
        return [check_values(model.proto, given, "inputs" if isinstance(inputs, dict) else str(inputs))]
    if shapes is not None:
        if not isinstance(shapes, dict):
            raise UsageError("shapes is a dict: the name of an input, and its shape")
        return [model_inputs(model.proto, _world_of(model.proto, shapes))]
    calls = decoder_calls(GraphView(model.proto))
    return calls or [model_inputs(model.proto, world) for world in worlds_of(model.proto)]


def _signature(proto: onnx.ModelProto) -> set[tuple[str, int]]:
    weights = {tensor.name for tensor in proto.graph.initializer}
    return {(v.name, v.type.tensor_type.elem_type) for v in proto.graph.input if v.name not in weights}


def _world_of(proto: onnx.ModelProto, shapes: dict[str, tuple[int, ...]]) -> World:
    """The world in which the inputs have the given shapes."""
    profile = fitted(proto, {name: as_range(name, [shape]) for name, shape in shapes.items()}, "the model")
    return Inference(proto).run(sizes_at(proto, profile, 0))
