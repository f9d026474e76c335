"""External data that leads elsewhere, or claims what is not there: refused in one line, at once, with hardly any memory."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import SMALLEST, error_line, run_command, says_what_to_do
from onnx import TensorProto, helper, numpy_helper

import onnx_attn
from onnx_attn.errors import InputError
from onnx_attn.graph.load import load

SIZE = 32 * 32 * 4
ROOM = 256 * 2**20
"""Bytes that reading may take beyond what the process has."""

Change = Callable[[Path, TensorProto], None]


def apart(tensor: TensorProto, **entries: object) -> None:
    """Say that the tensor lies in a file, in so many words."""
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def at(location: str, **entries: object) -> Change:
    return lambda _, tensor: apart(tensor, location=location, **{"offset": 0, "length": SIZE, **entries})


def claims(*dims: int, **entries: object) -> Change:
    def change(_: Path, tensor: TensorProto) -> None:
        tensor.dims[:] = dims
        apart(tensor, location="w.bin", **entries)

    return change


def instead(make: Callable[[Path], None]) -> Change:
    """Something else in the data file's place."""

    def change(folder: Path, tensor: TensorProto) -> None:
        (folder / "w.bin").unlink()
        make(folder / "w.bin")
        apart(tensor, location="w.bin")

    return change


def linked_folder(folder: Path, tensor: TensorProto) -> None:
    (folder / "inner").symlink_to(folder.parent, target_is_directory=True)
    apart(tensor, location="inner/secret")


def folder_linked_to_itself(folder: Path, tensor: TensorProto) -> None:
    (folder / "inner").symlink_to(folder, target_is_directory=True)
    apart(tensor, location="inner/w.bin")


def loop(folder: Path, tensor: TensorProto) -> None:
    (folder / "c").symlink_to(folder / "d")
    (folder / "d").symlink_to(folder / "c")
    apart(tensor, location="c/w.bin")


def behind_a_file(_: Path, tensor: TensorProto) -> None:
    apart(tensor, location="w.bin/w.bin")


def twice(_: Path, tensor: TensorProto) -> None:
    apart(tensor, location="w.bin")
    tensor.external_data.add(key="location", value="../secret")


def text(_: Path, tensor: TensorProto) -> None:
    tensor.data_type = TensorProto.STRING
    apart(tensor, location="w.bin")


def unknown_type(_: Path, tensor: TensorProto) -> None:
    tensor.data_type = 77
    apart(tensor, location="w.bin")


def inner_claim(*dims: int) -> Change:
    """Without external data: hardly any bytes, and dimensions for terabytes."""

    def change(_: Path, tensor: TensorProto) -> None:
        tensor.dims[:] = dims

    return change


HOSTILE: dict[str, Change] = {
    "up": at("../secret"),
    "up and down": at("a/../../secret"),
    "up within": at("a/../w.bin"),
    "dots and slashes": at(".//..//./secret"),
    "absolute": at("/etc/passwd"),
    "absolute, twice": at("//etc/passwd"),
    "backslashes": at("..\\secret"),
    "backslash within": at("a\\w.bin"),
    "drive": at("C:\\secret"),
    "drive, relative": at("C:secret"),
    "share": at("\\\\server\\share\\secret"),
    "empty": at(""),
    "the folder itself": at("."),
    "nul": at("w.bin\0"),
    "nul, then up": at("\0/../secret"),
    "newline": at("w.bin\n"),
    "escape sequence": at("\x1b[2Jw.bin"),
    "very long": at("w" * 5000),
    "missing": at("v.bin"),
    "missing folder": at("a/b/w.bin"),
    "behind a file": behind_a_file,
    "a link": instead(lambda path: path.symlink_to(path.parent.parent / "secret")),
    "a link to nothing": instead(lambda path: path.symlink_to("nowhere")),
    "a linked folder": linked_folder,
    "a folder linked to itself": folder_linked_to_itself,
    "links in a circle": loop,
    "a directory": instead(lambda path: path.mkdir()),
    "a pipe": instead(lambda path: os.mkfifo(path)),
    "a device": instead(lambda path: path.symlink_to("/dev/zero")),
    "said twice": twice,
    "no location": lambda _, tensor: apart(tensor, offset=0),
    "short": instead(lambda path: path.write_bytes(bytes(SIZE - 1))),
    "nothing in it": instead(lambda path: path.write_bytes(b"")),
    "offset below 0": at("w.bin", offset=-1),
    "offset past the end": at("w.bin", offset=1),
    "offset far past the end": at("w.bin", offset=2**62),
    "offset beyond 64 bits": at("w.bin", offset=2**64),
    "offset of a thousand digits": at("w.bin", offset="1" * 1000),
    "offset that is no number": at("w.bin", offset="0x10"),
    "offset with an exponent": at("w.bin", offset="1e3"),
    "offset in other digits": at("w.bin", offset="²"),
    "length below 0": at("w.bin", length=-SIZE),
    "length past the end": at("w.bin", length=2**40),
    "length of less": at("w.bin", length=SIZE - 4),
    "length of nothing": at("w.bin", length=0),
    "terabytes": claims(2**21, 2**21),
    "terabytes, with a length": claims(2**21, 2**21, length=2**44),
    "terabytes, with the file's length": claims(2**21, 2**21, length=SIZE),
    "dimensions whose product is 0 in 64 bits": claims(2**32, 2**32),
    "dimensions whose product fits in 64 bits": claims(2**32, 2**32 + 1, length=SIZE),
    "a dimension below 0": claims(-32, -32),
    "strings": text,
    "a type that nobody knows": unknown_type,
    "terabytes without external data": inner_claim(2**21, 2**21),
    "wrapping dimensions without external data": inner_claim(2**32, 2**32),
}


def zeros(name: str) -> TensorProto:
    return numpy_helper.from_array(np.zeros((32, 32), np.float32), name)


def small_model() -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 32])],
        [zeros("w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def written(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a data file, and one beside it that nobody may read."""
    found = tmp_path / "given"
    (found / "a").mkdir(parents=True)
    (found / "w.bin").write_bytes(bytes(SIZE))
    (tmp_path / "secret").write_bytes(bytes(SIZE))
    return found


def refused(path: Path) -> str:
    """The message with which reading is refused, by a child that has little memory and few seconds."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        try:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))
            signal.alarm(20)
            load(path)
            message = "was read"
        except InputError as error:
            message = f"refused {error}"
        except BaseException as error:
            message = f"{type(error).__name__} {error}"
        os.write(send, message.encode(errors="replace")[:4000])
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        message = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    assert message.startswith("refused "), message
    return message


def check_message(message: str, path: Path, name: str) -> None:
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert str(path) in message
    assert f"'{name}'" in message
    assert says_what_to_do(message, path), message


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_weight_is_refused_by_name(kind: str, folder: Path) -> None:
    model = small_model()
    HOSTILE[kind](folder, model.graph.initializer[0])
    path = written(folder, model)
    check_message(refused(path), path, "w")


def constant(model: onnx.ModelProto) -> TensorProto:
    del model.graph.initializer[:]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["w"], value=zeros("inner")))
    return model.graph.node[0].attribute[0].t


def sparse(model: onnx.ModelProto) -> TensorProto:
    values, indices = zeros("inner"), numpy_helper.from_array(np.arange(1024), "indices")
    values.dims[:] = [1024]
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [32, 32]))
    return model.graph.sparse_initializer[0].values


def sparse_indices(model: onnx.ModelProto) -> TensorProto:
    sparse(model)
    model.graph.sparse_initializer[0].indices.name = "inner"
    return model.graph.sparse_initializer[0].indices


def sparse_constant(model: onnx.ModelProto) -> TensorProto:
    del model.graph.initializer[:]
    values, indices = zeros("inner"), numpy_helper.from_array(np.arange(1024), "indices")
    values.dims[:] = [1024]
    node = helper.make_node("Constant", [], ["w"], sparse_value=helper.make_sparse_tensor(values, indices, [32, 32]))
    model.graph.node.insert(0, node)
    return model.graph.node[0].attribute[0].sparse_tensor.values


def branches(result: str, *inside: onnx.NodeProto) -> onnx.NodeProto:
    """An If of two bodies, each with a weight of its own."""
    graphs = []
    for number in range(2):
        name = f"{result}{number}"
        output, node = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [32, 32]),
            helper.make_node("Neg", ["inner"], [name]),
        )
        graphs.append(helper.make_graph([*inside, node], f"body {name}", [], [output], [zeros("inner")]))
    return helper.make_node("If", ["yes"], [result], then_branch=graphs[0], else_branch=graphs[1])


def body(model: onnx.ModelProto, *inside: onnx.NodeProto) -> TensorProto:
    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    model.graph.node.extend([helper.make_node("Constant", [], ["yes"], value=yes), branches("u", *inside)])
    return model.graph.node[-1].attribute[0].g.initializer[0]


def body_of_a_body(model: onnx.ModelProto) -> TensorProto:
    deeper = branches("t")
    for attribute in deeper.attribute:
        attribute.g.initializer[0].name = attribute.g.node[0].input[0] = "innermost"
    body(model, deeper)
    return model.graph.node[-1].attribute[0].g.node[0].attribute[0].g.initializer[0]


def function(model: onnx.ModelProto) -> TensorProto:
    node = helper.make_node("Constant", [], ["v"], value=zeros("inner"))
    opset = helper.make_opsetid("", 17)
    model.functions.append(helper.make_function("mine", "zeros", [], ["v"], [node], [opset]))
    model.graph.node.append(helper.make_node("zeros", [], ["u"], domain="mine"))
    model.opset_import.append(helper.make_opsetid("mine", 1))
    return model.functions[0].node[0].attribute[0].t


def training(model: onnx.ModelProto) -> TensorProto:
    info = model.training_info.add()
    info.initialization.name = "training"
    info.initialization.initializer.append(zeros("inner"))
    return info.initialization.initializer[0]


PLACES = (constant, sparse, sparse_indices, sparse_constant, body, body_of_a_body, function, training)


@pytest.mark.parametrize("kind", ["up", "absolute", "a link", "a pipe", "terabytes", "length past the end", "nul"])
@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_hostile_tensor_anywhere_is_refused_by_name(
    place: Callable[[onnx.ModelProto], TensorProto], kind: str, folder: Path
) -> None:
    model = small_model()
    HOSTILE[kind](folder, place(model))
    path = written(folder, model)
    check_message(refused(path), path, "inner" if place is not body_of_a_body else "innermost")


@pytest.mark.parametrize("place", [constant, body, body_of_a_body, function], ids=lambda place: place.__name__)
def test_honest_tensor_anywhere_is_brought_in(place: Callable[[onnx.ModelProto], TensorProto], folder: Path) -> None:
    model = small_model()
    numbers = np.arange(1024, dtype=np.float32)
    (folder / "w.bin").write_bytes(numbers.tobytes())
    tensor = place(model)
    apart(tensor, location="./w.bin", offset=0, length=SIZE)
    loaded = load(written(folder, model))
    tensor.raw_data = numbers.tobytes()
    tensor.ClearField("data_location")
    del tensor.external_data[:]
    assert loaded.proto == model
    assert loaded.data_files == (folder / "w.bin",)


def test_a_gigabyte_that_bodies_read_again_and_again(folder: Path) -> None:
    """Each reference by itself is honest."""
    with (folder / "w.bin").open("wb") as file:
        file.truncate(2**30)
    model = small_model()
    tensor = constant(model)
    tensor.dims[:] = [2**28]
    apart(tensor, location="w.bin")
    for number in range(5):
        model.graph.node.append(onnx.NodeProto.FromString(model.graph.node[0].SerializeToString()))
        model.graph.node[-1].output[0] = f"w{number}"
    path = written(folder, model)
    check_message(refused(path), path, "inner")


@pytest.mark.parametrize("verb", ["inspect", "fuse"])
def test_the_command_line_says_so_and_writes_nothing(verb: str, folder: Path) -> None:
    model = small_model()
    HOSTILE["up and down"](folder, model.graph.initializer[0])
    path = written(folder, model)
    before = sorted(folder.rglob("*"))
    output = ["-o", folder / "fused.onnx"] if verb == "fuse" else []
    error_line(run_command(verb, path, *output), 1, str(path), "'w'")
    assert sorted(folder.rglob("*")) == before


def test_a_pipe_as_a_model_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.onnx")
    assert "pipe" in refused(tmp_path / "model.onnx")


def test_a_model_in_memory_cannot_refer_to_files() -> None:
    model = onnx.load(SMALLEST)
    tensor = zeros("w")
    apart(tensor, location="w.bin")
    model.graph.initializer.append(tensor)
    with pytest.raises(InputError, match="pass the path"):
        onnx_attn.inspect(model)
