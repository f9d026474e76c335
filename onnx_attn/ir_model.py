"""Models of onnx_ir, and torch's programs, which hold one: read as a message, and given back as what they were.

Neither package is needed here: who has such a model has imported it. Weights that onnx_ir leaves in a file stay there, and what a
result holds unchanged is the very tensor of the model that was given, be it torch's, a file's or numpy's: no copy is kept.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

from onnx_attn.errors import InputError, one_line
from onnx_attn.graph.external import locate
from onnx_attn.graph.load import Loaded, check, copied
from onnx_attn.graph.weights import PROTOBUF_LIMIT, is_apart, place_of


def ir_model_of(model: object) -> Any | None:
    """The onnx_ir.Model that this is, or that torch's program holds; None for anything else."""
    ir = sys.modules.get("onnx_ir")
    if ir is None:
        return None
    held = model.model if _is_program(model) else model  # type: ignore[attr-defined]
    return held if isinstance(held, ir.Model) else None


def _is_program(model: object) -> bool:
    program = getattr(sys.modules.get("torch.onnx"), "ONNXProgram", None)
    return program is not None and isinstance(model, program)


def load_ir(model: Any) -> Loaded:
    """The model as a message of its own, whose weights stay in the files that they lie in.

    Raises InputError for what onnx_ir cannot write, what is past protobuf's 2 GB, and what `graph.load` refuses.
    """
    name = str(model.graph.name or "model")
    inner = (value.const_value for value in model.graph.initializers.values())
    held = sum(tensor.nbytes for tensor in inner if tensor is not None and not _is_external(tensor))
    if held > PROTOBUF_LIMIT:
        raise InputError(f"{name}: holds more than 2 GB of weights; save it with external data, and pass the path")
    folders = _folders(model, name)
    try:
        proto = sys.modules["onnx_ir"].to_proto(model)
    except Exception as error:  # Whatever a tensor's own class raises, wrapped several times.
        raise InputError(f"{name}: onnx_ir cannot write the model: {one_line(_root(error))}; mend it first") from error
    data_files = locate(proto, Path(os.path.abspath(name)), name, folders)
    check(proto, name)
    return Loaded(proto, name, data_files)


def give_back(proto: onnx.ModelProto, given: Any) -> Any:
    """What was made of `given`, an onnx_ir.Model or a program of torch's, as the same kind. `proto` is taken apart."""
    made = _to_ir(proto, ir_model_of(given))
    # A program of its own: it opens a session of its own when it is called, and leaves that of the one that was given alone.
    return type(given)(made, given.exported_program) if _is_program(given) else made


def _to_ir(proto: onnx.ModelProto, original: Any) -> Any:
    """The message as an onnx_ir.Model with the original's tensors where their numbers are still the same."""
    tensors = list(proto.graph.initializer)
    del proto.graph.initializer[:]
    light, kept = copied(proto), {}
    known = {name: value.const_value for name, value in original.graph.initializers.items()}
    external = {_place(tensor): tensor for tensor in known.values() if _is_external(tensor)}
    for tensor in tensors:
        same = known.get(tensor.name)
        if is_apart(tensor):  # In the very place it was in, if under another name.
            same = external[place_of(tensor)]
            kept[tensor.name] = same if same.name == tensor.name else _renamed(same, tensor.name)
        elif same is not None and _is_same(same, tensor):
            kept[tensor.name] = same
        else:
            light.graph.initializer.append(tensor)
            continue
        light.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
    model = sys.modules["onnx_ir"].from_proto(light)
    for name, tensor in kept.items():
        model.graph.initializers[name].const_value = tensor
    return model


def _is_same(tensor: Any, proto: onnx.TensorProto) -> bool:
    like = tensor.dtype == proto.data_type and tuple(tensor.shape.numpy()) == tuple(proto.dims)
    return like and proto.HasField("raw_data") and bool(tensor.tobytes() == proto.raw_data)


def _renamed(tensor: Any, name: str) -> Any:
    return type(tensor)(
        tensor.location,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=tensor.shape,
        name=name,
        base_dir=tensor.base_dir,
    )


def _place(tensor: Any) -> tuple[Path, int, int]:
    """As `graph.weights.place_of` says it."""
    folder = Path(os.path.abspath(tensor.base_dir or "."))
    return folder / tensor.location, tensor.offset or 0, tensor.nbytes


def _folders(model: Any, name: str) -> dict[str, Path]:
    """For each location that a tensor names, the folder that it is in."""
    folders: dict[str, Path] = {}
    for tensor in filter(_is_external, _tensors(model)):
        location, folder = os.fspath(tensor.location), Path(os.path.abspath(tensor.base_dir or "."))
        if folders.setdefault(location, folder) != folder:
            raise InputError(
                f"{name}: weights lie in two files that are called '{location}', in different folders; save the model, "
                f"and pass the path"
            )
    return folders


def _tensors(model: Any) -> Iterator[Any]:
    """Every tensor of a model, wherever: in bodies, functions and attributes too."""
    for outer in (model.graph, *model.functions.values()):
        for graph in (outer, *outer.subgraphs()):
            initializers = getattr(graph, "initializers", {})  # A function has none.
            yield from (value.const_value for value in initializers.values() if value.const_value is not None)
        for node in outer.all_nodes():
            for attribute in node.attributes.values():
                if not attribute.is_ref() and attribute.type.name in ("TENSOR", "TENSORS"):
                    yield from [attribute.value] if attribute.type.name == "TENSOR" else attribute.value


def _is_external(tensor: Any) -> bool:
    return isinstance(tensor, sys.modules["onnx_ir"].ExternalTensor)


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error
