"""Files that are no models, and models that are broken in one way each."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from commands import DEMO, SMALLEST
from onnx import TensorProto, helper, numpy_helper

Maker = Callable[[Path], Path]


def _file(content: bytes) -> Maker:
    def make(folder: Path) -> Path:
        path = folder / "broken.onnx"
        path.write_bytes(content)
        return path

    return make


def _model(model: onnx.ModelProto) -> Maker:
    return _file(model.SerializeToString())


def missing(folder: Path) -> Path:
    return folder / "broken.onnx"


def directory(folder: Path) -> Path:
    path = folder / "broken.onnx"
    path.mkdir()
    return path


def _random_bytes(seed: int) -> Maker:
    return _file(random.Random(seed).randbytes(2000))


def _truncated(part: float) -> Maker:
    whole = DEMO.read_bytes()
    return _file(whole[: int(len(whole) * part)])


def small_graph(*nodes: onnx.NodeProto, elem_type: int = TensorProto.FLOAT) -> onnx.ModelProto:
    """A checkable model `x (2, 3) → y` around the given nodes, with an initializer `w` of one number."""
    graph = helper.make_graph(
        nodes,
        "broken",
        [helper.make_tensor_value_info("x", elem_type, [2, 3])],
        [helper.make_tensor_value_info("y", elem_type, [2, 3])],
        [numpy_helper.from_array(np.ones(1, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _node(op: str, inputs: list[str], outputs: list[str], **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op, inputs, outputs, name=f"node_{op}", **attributes)


def float16_plus_float32() -> onnx.ModelProto:
    """onnx.checker accepts it; no runtime loads it."""
    return small_graph(_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16), _node("Add", ["half", "x"], ["y"]))


def no_opset() -> onnx.ModelProto:
    model = small_graph(_node("Relu", ["x"], ["y"]))
    del model.opset_import[:]
    return model


UNREADABLE: dict[str, Maker] = {
    "missing": missing,
    "directory": directory,
    "empty": _file(b""),
    "text": _file(b"This is not a model.\n" * 20),
    "json": _file(b'{"format": "onnx", "nodes": []}'),
    "zip": _file(b"PK\x03\x04" + bytes(200)),
    "zeros": _file(bytes(500)),
    "truncated to a tenth": _truncated(0.1),
    "truncated to a half": _truncated(0.5),
    "truncated by a hair": _truncated(0.999),
    "no opset": _model(no_opset()),
    **{f"random bytes {seed}": _random_bytes(seed) for seed in range(6)},
}

REFUSED: dict[str, tuple[Maker, str]] = {
    "dangling input": (_model(small_graph(_node("Add", ["x", "nowhere"], ["y"]))), "nowhere"),
    "unsorted": (_model(small_graph(_node("Relu", ["later"], ["y"]), _node("Exp", ["x"], ["later"]))), "node_Relu"),
    "cycle": (
        _model(small_graph(_node("Add", ["x", "b"], ["a"]), _node("Exp", ["a"], ["b"]), _node("Relu", ["a"], ["y"]))),
        "node_Add",
    ),
    "missing attribute": (_model(small_graph(_node("Cast", ["x"], ["y"]))), "node_Cast"),
    "unknown attribute": (_model(small_graph(_node("Relu", ["x"], ["y"], alpha=1.0))), "node_Relu"),
    "value made twice": (_model(small_graph(_node("Relu", ["x"], ["y"]), _node("Exp", ["x"], ["y"]))), "'y'"),
    "unknown operator": (_model(small_graph(_node("Frobnicate", ["x"], ["y"]))), "Frobnicate"),
    "too many inputs": (_model(small_graph(_node("Relu", ["x", "w"], ["y"]))), "node_Relu"),
    "output from nowhere": (_model(small_graph(_node("Relu", ["x"], ["z"]))), "'y'"),
    "types do not fit": (_model(float16_plus_float32()), "node_Add"),
}


def _external(folder: Path, name: str = "broken.onnx") -> Path:
    model = onnx.load(DEMO)
    path = folder / name
    onnx.save_model(model, path, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    return path


def external_missing(folder: Path) -> Path:
    path = _external(folder)
    (folder / "weights.bin").unlink()
    return path


def external_short(folder: Path) -> Path:
    path = _external(folder)
    data = (folder / "weights.bin").read_bytes()
    (folder / "weights.bin").write_bytes(data[: len(data) // 2])
    return path


def external_empty(folder: Path) -> Path:
    path = _external(folder)
    (folder / "weights.bin").write_bytes(b"")
    return path


def external_outside(folder: Path) -> Path:
    """Points out of the model's folder, which a reader must not follow."""
    (folder / "inner").mkdir()
    path = _external(folder / "inner")
    (folder / "inner" / "weights.bin").rename(folder / "weights.bin")
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    path.write_bytes(model.SerializeToString())
    return path


def external_directory(folder: Path) -> Path:
    path = _external(folder)
    (folder / "weights.bin").unlink()
    (folder / "weights.bin").mkdir()
    return path


def external_symlink(folder: Path) -> Path:
    """As in the cache of the Hugging Face hub; onnx refuses to follow it, ONNX Runtime does not."""
    path = _external(folder)
    (folder / "weights.bin").rename(folder / "blob")
    (folder / "weights.bin").symlink_to("blob")
    return path


EXTERNAL: dict[str, Maker] = {
    "missing": external_missing,
    "short": external_short,
    "empty": external_empty,
    "outside the folder": external_outside,
    "a directory": external_directory,
    "a symlink": external_symlink,
}


def custom_operator(folder: Path) -> Path:
    """A real site whose result goes through an operator that ONNX Runtime does not know."""
    model = onnx.load(SMALLEST)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["attended" if name == output else name for name in node.output]
    model.graph.node.append(
        helper.make_node("Smudge", ["attended"], [output], name="custom_smudge", domain="my.company")
    )
    model.opset_import.append(helper.make_opsetid("my.company", 1))
    path = folder / "custom.onnx"
    path.write_bytes(model.SerializeToString())
    return path
