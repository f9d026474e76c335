"""Weights in data files: the same result as from a file that has everything in it, and no weight held that nobody asks for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from commands import DEMO
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data
from support import EXPORTS
from test_cli import json_of

import onnx_attn
from onnx_attn import runtime
from onnx_attn.errors import InputError, OutputError
from onnx_attn.graph import weights
from onnx_attn.graph.load import load
from onnx_attn.graph.weights import is_apart, to_array
from onnx_attn.runtime import Session

KINDS = (
    "bert.dynamo",
    "gpt2.torch",
    "mha.",
    "handwritten",
    "swin_t.",
    "llama_decode",
    "mobilebert",
    "falcon",
    "vit_qk_norm",
    "tnt",
)
MODELS = [DEMO, *sorted(path for path in EXPORTS.glob("*.onnx") if path.name.startswith(KINDS))]


def apart(source: Path, folder: Path) -> Path:
    """The model with all its weights in a data file, however small."""
    path = folder / source.name
    onnx.save_model(onnx.load(source), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def content(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model as it is compared: how a tensor is stored does not matter."""
    for tensor in model.graph.initializer:
        values = to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


@pytest.mark.parametrize("form", ["function", "primitives", "attention"])
@pytest.mark.parametrize("source", MODELS, ids=lambda path: path.stem)
def test_the_same_comes_of_it_wherever_weights_lie(source: Path, form: str, tmp_path: Path) -> None:
    whole, inner = onnx_attn.fuse(source, tmp_path / "whole.onnx", form=form, verify=False), tmp_path / "apart"
    inner.mkdir()
    result = onnx_attn.fuse(apart(source, tmp_path), inner / "whole.onnx", form=form, verify=False)
    first, second = ({**each.report, "seconds": 0, "model": ""} for each in (whole, result))
    assert first == second
    assert content(onnx.load(tmp_path / "whole.onnx")) == content(onnx.load(inner / "whole.onnx"))


@pytest.mark.parametrize("source", MODELS[:1], ids=lambda path: path.stem)
def test_proofs_read_what_they_need(source: Path, tmp_path: Path) -> None:
    path = apart(source, tmp_path)
    reports = [onnx_attn.fuse(each, tmp_path / "out.onnx").report for each in (source, path)]
    proofs = [[entry["certificate"] for entry in report["candidates"] if "certificate" in entry] for report in reports]
    assert proofs[0] == proofs[1]
    assert reports[0]["proof"] == reports[1]["proof"]


@pytest.mark.parametrize("verb", ["inspect", "stats"])
def test_who_only_reads_says_the_same(verb: str, tmp_path: Path) -> None:
    first, second = (json_of(verb, path) for path in (DEMO, apart(DEMO, tmp_path)))
    assert {**first, "model": ""} == {**second, "model": ""}


def test_a_result_in_memory_has_its_weights(tmp_path: Path) -> None:
    path = apart(DEMO, tmp_path)
    for result in (onnx_attn.fuse(path), onnx_attn.expand(path)):
        assert not any(map(uses_external_data, result.model.graph.initializer))


def test_weights_stay_where_they_are(tmp_path: Path) -> None:
    loaded = load(apart(DEMO, tmp_path))
    large = [tensor for tensor in loaded.proto.graph.initializer if np.prod(tensor.dims) > 256]
    assert large
    assert all(map(is_apart, large))
    assert loaded.data_files == (tmp_path / "weights.bin",)


@pytest.mark.parametrize(
    "name", ["float16", "bfloat16", "float8_e4m3fn", "int4", "uint2", "float4_e2m1fn", "bool", "complex64"]
)
@pytest.mark.parametrize("dims", [(33, 31), (1024,), (0, 5), (3, 341)])
def test_numbers_of_every_type_are_read(name: str, dims: tuple[int, ...], tmp_path: Path) -> None:
    dtype = np.dtype(getattr(ml_dtypes, name, name))
    if name == "uint2" and not hasattr(onnx.TensorProto, "UINT2"):
        pytest.skip("this onnx has no such type")
    values = (np.arange(np.prod(dims)) % 2).reshape(dims).astype(dtype)
    tensor = numpy_helper.from_array(values, "w")
    (tmp_path / "w.bin").write_bytes(b"before" + tensor.raw_data + b"behind")
    assert weights.declared_bytes(tensor) == len(tensor.raw_data)
    weights.refer(tensor, tmp_path / "w.bin", 6, len(tensor.raw_data))
    found = to_array(tensor)
    assert found.dtype == values.dtype
    assert np.array_equal(found, values)


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if protobuf's messages ended at 100 KB."""
    monkeypatch.setattr(weights, "PROTOBUF_LIMIT", 100_000)
    monkeypatch.setattr(runtime, "MOST_BYTES", 100_000)


@pytest.mark.usefixtures("small_limit")
def test_a_model_past_the_limit_is_run_whole_only_when_asked(tmp_path: Path) -> None:
    path = apart(DEMO, tmp_path)
    report = onnx_attn.fuse(path, tmp_path / "out.onnx").report
    assert report["proof"] is None
    assert "--verify-large" in report["proof_left"]
    assert all(entry["certificate"]["ok"] for entry in report["candidates"] if entry["status"] == "site")
    report = onnx_attn.fuse(path, tmp_path / "out.onnx", verify_large=True).report
    assert report["proof"]["ok"]
    assert report["proof_left"] is None


@pytest.mark.usefixtures("small_limit")
def test_a_model_in_memory_past_the_limit_is_run_from_a_file(tmp_path: Path) -> None:
    model = onnx.load(DEMO)
    session = Session(model, "demo")
    inputs = {
        value.name: np.ones([d.dim_value or 2 for d in value.type.tensor_type.shape.dim], np.float32)
        for value in model.graph.input
    }
    found = session.run(inputs)
    assert all(np.array_equal(a, b) for a, b in zip(found, Session(str(DEMO), "demo").run(inputs), strict=True))
    assert not any(map(is_apart, model.graph.initializer))


def test_data_that_changes_meanwhile_is_told(tmp_path: Path) -> None:
    loaded = load(apart(DEMO, tmp_path))
    (tmp_path / "weights.bin").write_bytes(b"")
    tensor = next(filter(is_apart, loaded.proto.graph.initializer))
    with pytest.raises(InputError, match=f"weights.bin: weight '{tensor.name}' cannot be read"):
        to_array(tensor)


def test_no_room_for_weights_that_are_made_is_told(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="weight 'w' cannot be kept beside the output"):
        weights.put_apart(np.zeros(1024), "w", tmp_path / "nowhere" / "made")


def test_peak_of_rewriting_is_that_of_one_group(tmp_path: Path) -> None:
    """336 MB of weights, 13 MB of them in one group; the margin is what reading and writing take at any size."""
    tool = Path(__file__).parent.parent / "tools" / "large.py"
    words = [sys.executable, tool, "--size", "0.2", "--width", "1024", "--folder", tmp_path]
    environment = {**os.environ, "PYTHONPATH": str(tool.parent.parent)}
    made = subprocess.run([*map(str, words)], env=environment, capture_output=True, text=True, check=True)
    found = json.loads(made.stdout)
    assert found["fused"] == found["sites"] == found["layers"] == 4
    assert found["weights"] > 330e6
    assert found["peak"] - found["imports"] < 1.5 * found["group"] + 48e6
