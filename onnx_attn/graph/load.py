"""Read a model file, or say in one line why it cannot be read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import defs, shape_inference

from onnx_attn.domain import MICROSOFT
from onnx_attn.errors import InputError, one_line
from onnx_attn.graph.external import locate
from onnx_attn.graph.opset import opset_of
from onnx_attn.graph.slim import slim_copy
from onnx_attn.graph.unchecked import unreadable
from onnx_attn.graph.weights import bring_in, is_apart
from onnx_attn.progress import stage, step


@dataclass(frozen=True)
class Loaded:
    """A checked model in memory.

    data_files: where its file keeps the larger weights, if not in itself; there they stay until they are asked for
    (`graph.weights`). made: a file for weights that are made for it, so that these need not be held either.
    """

    proto: onnx.ModelProto
    name: str
    data_files: tuple[Path, ...] = ()
    made: Path | None = None

    @property
    def external(self) -> bool:
        return bool(self.data_files)

    def copy(self) -> Loaded:
        """The same with a model of its own, which may be changed."""
        return replace(self, proto=copied(self.proto))

    def whole(self) -> Loaded:
        """The same with all weights in memory."""
        bring_in(self.proto.graph.initializer)
        return self


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


def load(path: str | Path) -> Loaded:
    """Load and check a model.

    Raises:
        InputError: missing file, directory, not ONNX, external data that is not there in full or lies elsewhere, refused by
            onnx.checker, or types that do not fit together.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file; pass the path of an ONNX model")
    if path.is_dir():
        raise InputError(f"{path}: is a directory; pass the path of the .onnx file in it")
    if not path.is_file():
        raise InputError(
            f"{path}: is a pipe or a device, which could be read only once, or for ever; save it to a file first"
        )
    with stage("load"):
        step(0, 0, str(path))
        return _loaded(path)


def _loaded(path: Path) -> Loaded:
    try:
        proto = onnx.load(str(path), load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path}: is not an ONNX model ({one_line(error)}); export it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise InputError(f"{path}: is not an ONNX model (no graph or no opset in it); export it again")
    data_files = locate(proto, path)
    check(proto, str(path), path if data_files else None)
    return Loaded(proto, str(path), data_files)


def check(proto: onnx.ModelProto, name: str, path: Path | None = None) -> None:
    """Raise InputError unless onnx.checker accepts the model and the types at every node fit together.

    A model with external data is checked from its file (`path`), since it may be past protobuf's 2 GB; one in memory that has
    weights in files, without these.
    """
    proto, foreign = _with_foreign_marked(proto)
    apart = path is None and any(map(is_apart, proto.graph.initializer))
    try:
        onnx.checker.check_model(str(path) if path and not foreign else slim_copy(proto) if apart else proto)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise InputError(f"{name}: onnx.checker refuses the model: {one_line(error)}; export it again") from error
    if (reason := unreadable(proto)) is not None:
        raise InputError(f"{name}: the model cannot be read: {reason}; export it again")
    try:
        shape_inference.infer_shapes(slim_copy(proto), check_type=True, strict_mode=False)
    except (shape_inference.InferenceError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{name}: types or shapes do not fit together, no runtime will load it: {one_line(error)}; "
            f"export it again (a half-precision export with a float32 mask is a usual cause)"
        ) from error


MOST_OPSETS = 2**31 - 1
"""What onnx can count."""

FOREIGN = ("SimplifiedLayerNormalization", "LayerNormalization")
"""Operators that ONNX Runtime takes as the standard's at any opset, and its optimizers write, though the standard has them at
some or at none."""


def _with_foreign_marked(proto: onnx.ModelProto) -> tuple[onnx.ModelProto, bool]:
    """The model to check, and whether it is a copy in which such operators are in a domain of their own, which nobody checks."""
    opset = opset_of(proto)

    def is_foreign(node: onnx.NodeProto) -> bool:
        own = node.op_type in FOREIGN and node.domain in ("", "ai.onnx")
        return own and not defs.has(node.op_type, opset, "")

    if not 0 < opset <= MOST_OPSETS or not any(map(is_foreign, proto.graph.node)):
        return proto, False
    copy = slim_copy(proto)
    for node in filter(is_foreign, copy.graph.node):
        node.domain = MICROSOFT
    if all(entry.domain != MICROSOFT for entry in copy.opset_import):
        copy.opset_import.add(domain=MICROSOFT, version=1)
    return copy, True
