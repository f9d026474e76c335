"""What `inspect --bundle` packs: enough to read the graph as it was read, and none of its weights."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import error_line, run_command
from onnx import numpy_helper
from support import EXPORTS

import onnx_attn

NAMES = ["bert.torchscript.17.dynamic", "swin_t.dynamo.18.static.half", "gpt2.torchscript.17.dynamic"]


def unpacked(source: Path, folder: Path) -> Path:
    done = run_command("inspect", source, "--bundle", folder / "bundle.zip")
    assert done.code == 0, done.stderr
    with zipfile.ZipFile(folder / "bundle.zip") as file:
        assert sorted(file.namelist()) == ["model.onnx", "model.onnx.data", "report.json", "versions.json"]
        file.extractall(folder / "bundle")
    return folder / "bundle"


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_is_read_as_the_model_is(name: str, tmp_path: Path) -> None:
    source = EXPORTS / f"{name}.onnx"
    bundle = unpacked(source, tmp_path)
    onnx.checker.check_model(str(bundle / "model.onnx"))
    before, after = (onnx_attn.inspect(path)["candidates"] for path in (source, bundle / "model.onnx"))
    assert json.loads((bundle / "report.json").read_text())["candidates"] == before
    assert before == after
    assert set(json.loads((bundle / "versions.json").read_text())) > {"python", "onnx", "onnxruntime"}


def test_no_weight_is_in_it(tmp_path: Path) -> None:
    """Numbers that no structure has: neither as bytes nor as decimals, wherever a model keeps weights."""
    model = onnx.load(EXPORTS / "bert.torchscript.17.dynamic.onnx")
    secret = np.random.default_rng(5).standard_normal((3, 40)).astype(np.float32)
    model.graph.initializer.append(numpy_helper.from_array(secret, "secret_initializer"))
    constant = onnx.helper.make_node("Constant", [], ["secret_constant"], value=numpy_helper.from_array(secret))
    typed = onnx.helper.make_tensor("typed", onnx.TensorProto.FLOAT, [120], secret.reshape(-1))
    floats = onnx.helper.make_node("Constant", [], ["secret_floats"], value_floats=secret[0].tolist())
    model.graph.node.extend([constant, floats, onnx.helper.make_node("Constant", [], ["secret_typed"], value=typed)])
    places = numpy_helper.from_array(np.arange(40), "places")
    values = numpy_helper.from_array(secret[1], "secret_sparse")
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(values, places, [100]))
    model.metadata_props.add(key="path", value="/home/somebody/secret")
    model.graph.doc_string = "/home/somebody/secret"
    onnx.save(model, tmp_path / "m.onnx")
    bundle = unpacked(tmp_path / "m.onnx", tmp_path)
    told = b"".join((bundle / name).read_bytes() for name in ("model.onnx", "report.json", "versions.json"))
    assert b"/home/somebody/secret" not in told
    assert not any(row.tobytes() in told for row in secret)
    kept = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer if np.prod(each.dims) > 16}
    packed = {each.name: numpy_helper.to_array(each) for each in onnx.load(bundle / "model.onnx").graph.initializer}
    large = [name for name, value in kept.items() if value.dtype == np.float32 and len(np.unique(value)) > 2]
    assert len(large) > 20
    assert not any((packed[name] == kept[name]).any() for name in large)


def test_the_same_model_makes_the_same_bundle(tmp_path: Path) -> None:
    source = EXPORTS / "bert.torchscript.17.dynamic.onnx"
    for name in ("one.zip", "two.zip"):
        onnx_attn.inspect(source, bundle=tmp_path / name)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    assert (tmp_path / "one.zip").stat().st_size < source.stat().st_size / 2


def test_a_bundle_is_never_written_over_the_model(tmp_path: Path) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes((EXPORTS / "bert.torchscript.17.dynamic.onnx").read_bytes())
    error_line(run_command("inspect", source, "--bundle", source), 1, "is the input itself")
    error_line(run_command("inspect", source, "--bundle", tmp_path / "none" / "b.zip"), 1, "does not exist")
