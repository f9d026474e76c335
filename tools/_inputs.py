"""What two models are compared on: checked values of the caller, or seeded ones at the shapes that were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_attn.engine.profiles import Profile, fitted, read_shapes, sizes_at
from onnx_attn.errors import InputError, printable
from onnx_attn.graph.inference import Inference
from onnx_attn.graph.sizes import worlds_of
from onnx_attn.graph.world import World
from onnx_attn.prove.inputs import model_inputs
from onnx_attn.prove.values import check_values, read_values
from onnx_attn.runtime import SEED

Values = dict[str, np.ndarray]


def check_alike(first: onnx.ModelProto, second: onnx.ModelProto, name: Path) -> None:
    """Raise InputError unless both have the same inputs and outputs."""
    for kind in ("input", "output"):
        a, b = (
            {(value.name, value.type.tensor_type.elem_type) for value in getattr(proto.graph, kind)}
            - {(tensor.name, tensor.data_type) for tensor in proto.graph.initializer}
            for proto in (first, second)
        )
        if a != b:
            odd = sorted(a ^ b)[0][0]
            raise InputError(
                f"{name}: {kind} '{odd}' is in one model only or of two types; give two models of one export"
            )


def cases_of(proto: onnx.ModelProto, options: Any) -> list[Values]:
    """The sets of inputs, seed after seed."""
    if options.inputs is not None:
        return [check_values(proto, read_values(options.inputs), str(options.inputs))]
    worlds = _asked(proto, options) if options.shapes else worlds_of(proto)
    first = SEED if options.seed is None else options.seed
    return [model_inputs(proto, world, first + more) for more in range(options.iterations) for world in worlds]


def _asked(proto: onnx.ModelProto, options: Any) -> list[World]:
    """A world for each of the smallest, usual and largest shapes."""
    profile = fitted(proto, read_shapes(options.shapes), str(options.original))
    every = [sizes_at(proto, profile, place) for place in range(3)]
    inference = Inference(proto)
    return [inference.run(sizes) for at, sizes in enumerate(every) if sizes not in every[:at]]


def ranges(proto: onnx.ModelProto, cases: list[Values]) -> Profile:
    """For each input that varies the range of its shapes, the last one as the usual."""
    found = {}
    for value in proto.graph.input:
        if value.name in cases[0] and not all(dim.HasField("dim_value") for dim in value.type.tensor_type.shape.dim):
            shapes = [case[value.name].shape for case in cases]
            smallest, largest = (tuple(of(sizes) for sizes in zip(*shapes, strict=True)) for of in (min, max))
            found[value.name] = (smallest, shapes[-1], largest)
    return found


def sizes(case: Values) -> str:
    return ", ".join(f"{printable(name)} {'x'.join(map(str, value.shape))}" for name, value in case.items())
