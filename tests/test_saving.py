"""The file that is written: whole or not at all, external data as it was, no weight twice, always the same bytes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import DEMO, NO_ATTENTION, error_line, run_command
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data
from support import EXPORTS, feeds, max_rel, run

import onnx_attn
from onnx_attn.errors import OutputError

REAL = sorted(
    path
    for path in EXPORTS.glob("*.onnx")
    if path.stem.startswith(("vit", "bert", "gpt2", "clip", "mha.", "handwritten."))
)
SMALL_CONSTANTS = 2000
"""Bytes that a rewriting may add in scales and shapes."""


def external(source: Path, folder: Path, name: str = "in.onnx") -> Path:
    model = onnx.load(source)
    onnx.save_model(model, folder / name, save_as_external_data=True, location="weights.bin", size_threshold=1024)
    return folder / name


def data_of(model: Path) -> Path:
    """The one data file that lies beside a model that was written."""
    [found] = model.parent.glob(f"{model.name}.*.data")
    return found


def sizes(model: onnx.ModelProto) -> dict[str, int]:
    return {tensor.name: numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer}


def twins(model: onnx.ModelProto) -> int:
    """Pairs of equal tensors over 1 KB, Constant nodes included."""
    tensors = [
        *model.graph.initializer,
        *(a.t for n in model.graph.node for a in n.attribute if n.op_type == "Constant"),
    ]
    contents = [(t.data_type, tuple(t.dims), numpy_helper.to_array(t).tobytes()) for t in tensors]
    counts = Counter(content for content in contents if len(content[2]) > 1024)
    return sum(count - 1 for count in counts.values())


@pytest.mark.parametrize("form", ["function", "primitives"])
@pytest.mark.parametrize("source", [DEMO, *REAL], ids=lambda path: path.stem)
def test_no_weight_is_stored_twice(source: Path, form: str) -> None:
    before = onnx.load(source)
    after = onnx_attn.fuse(before, form=form, verify=False).model
    assert sum(sizes(after).values()) <= sum(sizes(before).values()) + SMALL_CONSTANTS
    assert twins(after) <= twins(before)
    assert after.ByteSize() <= before.ByteSize() + SMALL_CONSTANTS + 1000 * (form == "function")
    assert len(sizes(after)) == len(after.graph.initializer)


@pytest.mark.parametrize("source", [DEMO, NO_ATTENTION], ids=lambda path: path.stem)
def test_external_data_stays_external_and_moves_with_the_model(source: Path, tmp_path: Path) -> None:
    path = external(source, tmp_path)
    out, other = tmp_path / "out", tmp_path / "elsewhere"
    out.mkdir()
    fused = onnx_attn.fuse(path, out / "fused.onnx").report["fused"]
    assert fused == (2 if source == DEMO else 0)
    raw = onnx.load(out / "fused.onnx", load_external_data=False)
    assert {tensor.name for tensor in raw.graph.initializer if uses_external_data(tensor)} == {
        name for name, size in sizes(onnx.load(out / "fused.onnx")).items() if size >= 1024
    }
    assert len(list(out.iterdir())) == 2
    out.rename(other)
    shutil.rmtree(tmp_path / "weights.bin", ignore_errors=True)
    inputs = feeds(onnx.load(source), {"batch": 2, "sequence": 16})
    assert max_rel(run(source, inputs), run(other / "fused.onnx", inputs)) <= 1e-5
    onnx.checker.check_model(str(other / "fused.onnx"), full_check=True)


def test_inner_data_stays_inside(tmp_path: Path) -> None:
    onnx_attn.fuse(DEMO, tmp_path / "fused.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["fused.onnx"]


def test_external_data_fused_again_is_byte_identical(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("first", "second")]
    for folder in folders:
        folder.mkdir()
    onnx_attn.fuse(external(DEMO, tmp_path), folders[0] / "fused.onnx")
    onnx_attn.fuse(folders[0] / "fused.onnx", folders[1] / "fused.onnx")
    first, second = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in folders)
    assert first == second
    assert len(first) == 2


def digest(seed: str, source: Path, out: Path, *options: str) -> str:
    code = "from onnx_attn.cli import app; app()"
    environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(EXPORTS.parent.parent)}
    arguments = ["fuse", str(source), "-o", str(out), *options]
    subprocess.run([sys.executable, "-c", code, *arguments], env=environment, check=True, capture_output=True)
    return hashlib.sha256(out.read_bytes()).hexdigest()


@pytest.mark.parametrize("source", [DEMO, EXPORTS / "bert.dynamo.23.dynamic.onnx"], ids=lambda path: path.stem)
@pytest.mark.parametrize("form", ["function", "primitives"])
def test_two_processes_write_the_same_bytes(source: Path, form: str, tmp_path: Path) -> None:
    options = ("--form", form)
    first, second = (digest(seed, source, tmp_path / f"{seed}.onnx", *options) for seed in ("1", "4242"))
    assert first == second


def old_output(folder: Path, with_data: bool) -> tuple[Path, dict[str, bytes]]:
    """An output of an earlier run, which a failing one must leave alone."""
    source = external(DEMO, folder) if with_data else Path(shutil.copy(DEMO, folder / "in.onnx"))
    model = onnx.load(NO_ATTENTION)
    onnx.save_model(model, folder / "out.onnx", save_as_external_data=with_data, location="out.onnx.data")
    return source, {path.name: path.read_bytes() for path in folder.iterdir()}


def no_space(*_: object, **__: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["onnx.save_model", "os.replace", "os.fsync"])
@pytest.mark.parametrize("with_data", [False, True], ids=["one file", "with data"])
def test_failing_save_leaves_the_old_output(
    where: str, with_data: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    source, before = old_output(tmp_path, with_data)
    monkeypatch.setattr(where, no_space)
    line = error_line(run_command("fuse", source, "-o", tmp_path / "out.onnx"), 1, "out.onnx", "No space left")
    assert "cannot be written" in line
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_failure_between_data_and_model_leaves_the_old_pair(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The data file is in place already when the model's renaming fails."""
    source, before = old_output(tmp_path, True)
    replace = os.replace

    def only_data(start: Path, end: Path) -> None:
        if str(end).endswith("out.onnx") and Path(start).parent != Path(end).parent:
            no_space()
        replace(start, end)

    monkeypatch.setattr("os.replace", only_data)
    with pytest.raises(OutputError):
        onnx_attn.fuse(source, tmp_path / "out.onnx")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_interrupt_leaves_the_old_output(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source, before = old_output(tmp_path, False)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnx_attn.deliver.compare_models", interrupted)
    with pytest.raises(KeyboardInterrupt):
        onnx_attn.fuse(source, tmp_path / "out.onnx")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_old_output_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    source, before = old_output(tmp_path, True)
    onnx_attn.fuse(source, tmp_path / "out.onnx")
    now = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    data = data_of(tmp_path / "out.onnx").name
    assert now.keys() == before.keys() - {"out.onnx.data"} | {data}
    assert {name for name in now if now[name] != before.get(name)} == {"out.onnx", data}


def test_result_of_a_file_is_what_was_written(tmp_path: Path) -> None:
    result = onnx_attn.fuse(external(DEMO, tmp_path), tmp_path / "out.onnx")
    assert result.model == onnx.load(tmp_path / "out.onnx")
    assert np.isfinite(numpy_helper.to_array(result.model.graph.initializer[0])).all()


def test_a_data_file_in_the_current_folder_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnx looks for the data file in the current folder, wherever the model goes."""
    source = external(REAL[0], tmp_path)
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        onnx_attn.fuse(source.name, "out.onnx", verify=False)
    (tmp_path / "deeper").mkdir()
    onnx_attn.fuse(source.name, "deeper/out.onnx", verify=False)
    assert data_of(tmp_path / "out.onnx").read_bytes() == data_of(tmp_path / "deeper/out.onnx").read_bytes()
