"""Killed at any step, or beside other runs: the output is one model, whole, with its data; the input is never touched."""

from __future__ import annotations

import builtins
import io
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from commands import DEMO
from onnx import TensorProto, helper, numpy_helper

import onnx_attn
from onnx_attn.errors import OutputError
from onnx_attn.graph.load import load
from onnx_attn.graph.save import check_data, commit, staged, write

STEPS = (
    *((os, name) for name in "open close replace rename fsync chmod unlink rmdir mkdir scandir listdir write".split()),
    (io, "open"),
    (builtins, "open"),
)
"""Calls of the file system, in front of each of which a run is killed; so are writes to files that were opened."""
OLD = "no data", "its own data", "former data", "nothing"
KINDS = [(old, external) for old in OLD for external in (False, True)]


def model(number: int) -> onnx.ModelProto:
    """x · W, with a W of its own for each number."""
    weight = np.full((32, 32), number, np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        f"model {number}",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 32])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def save(proto: onnx.ModelProto, output: Path, external: bool) -> None:
    with staged(output) as draft:
        write(proto, draft, external)
        commit(draft, output)


def number_in(output: Path) -> int:
    """Which model stands there. Fails where it is not whole."""
    found = onnx.load(output)
    values = numpy_helper.to_array(found.graph.initializer[0])
    onnx.checker.check_model(str(output), full_check=True)
    assert values.shape == (32, 32) and (values == values[0, 0]).all()
    assert found.graph.name == f"model {int(values[0, 0])}"
    return int(values[0, 0])


class Watched:
    """A file with another way to write."""

    def __init__(self, file: Any, write: Callable[[bytes], int]):
        self.file, self.write = file, write

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


class Killer:
    """Stands before the calls of the file system, and ends the process, as a kill would, before the one of a number."""

    def __init__(self, last: int):
        self.last, self.count = last, 0

    def standing_before(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count == self.last:
                os._exit(9)
            made = call(*arguments, **named)
            return Watched(made, self.standing_before(made.write)) if isinstance(made, io.IOBase) else made

        return counted


def killed(work: Callable[[], object], last: int) -> bool:
    """Do the work in a child that dies at the call of that number; False where it came to its end before."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    try:
        killer = Killer(last)
        for module, name in STEPS:
            setattr(module, name, killer.standing_before(getattr(module, name)))
        work()
        os._exit(0)
    except BaseException:
        os._exit(1)


def prepare(folder: Path, old: str) -> dict[str, bytes]:
    """A folder with the input, and the output of an earlier run; returns what is in it."""
    folder.mkdir()
    onnx.save_model(model(1), folder / "in.onnx", save_as_external_data=True, location="in.bin")
    if old == "former data":
        onnx.save_model(model(2), folder / "out.onnx", save_as_external_data=True, location="out.onnx.data")
    elif old != "nothing":
        save(model(2), folder / "out.onnx", old == "its own data")
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def restore(folder: Path, files: dict[str, bytes]) -> None:
    shutil.rmtree(folder)
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.mark.parametrize(("old", "external"), KINDS, ids=[f"{old}, {'data' if e else 'one file'}" for old, e in KINDS])
def test_killed_at_any_step_of_saving(old: str, external: bool, tmp_path: Path) -> None:
    folder = tmp_path / "models"
    output, seen, last, died = folder / "out.onnx", set(), 0, True
    before = prepare(folder, old)
    while died:
        last += 1
        restore(folder, before)
        died = killed(lambda: save(model(3), output, external), last)
        now = contents(folder)
        assert all(now[name] == before[name] for name in ("in.onnx", "in.bin"))
        found = number_in(output) if output.exists() else None
        seen.add(found)
        assert found in ({None, 3} if old == "nothing" else {2, 3}), last
        if found != 3:
            assert all(now[name] == content for name, content in before.items()), last
        assert all(name.startswith((".onnx-attn-", "in.", "out.onnx")) for name in os.listdir(folder))
    assert last > 20
    assert seen == {None if old == "nothing" else 2, 3}
    # A run that came to its end leaves nothing else.
    assert len(list(folder.iterdir())) == 3 + external


def test_killed_at_any_step_of_fusing(tmp_path: Path) -> None:
    """The whole run, at every seventh step: it reads the input's data, keeps weights that it makes, and saves."""
    folder, last, died = tmp_path / "models", 1, True
    folder.mkdir()
    source, output = folder / "in.onnx", folder / "out.onnx"
    onnx.save_model(onnx.load(DEMO), source, save_as_external_data=True, location="in.bin", size_threshold=64)
    onnx_attn.fuse(source, output, verify=False)
    new = contents(folder)
    save(model(2), output, True)
    before, ends = contents(folder), set()
    while died:
        restore(folder, before)
        died = killed(lambda: onnx_attn.fuse(source, output, verify=False), last)
        now = contents(folder)
        ends.add(now["out.onnx"])
        expected = before if now["out.onnx"] == before["out.onnx"] else new
        assert all(now[name] == content for name, content in expected.items()), last
        last += 7
    assert ends == {before["out.onnx"], new["out.onnx"]}
    assert now == new


def test_a_run_after_a_killed_one_is_whole(tmp_path: Path) -> None:
    """The data was in place, the model was not."""
    folder = tmp_path / "models"
    output, before = folder / "out.onnx", prepare(folder, "its own data")
    for last in range(1, 100):
        restore(folder, before)
        killed(lambda: save(model(3), output, True), last)
        if len({name for name in contents(folder) if name.endswith(".data")} - before.keys()) == 1:
            break
    else:
        pytest.fail("no step between the two")
    assert number_in(output) == 2
    save(model(3), output, True)
    assert number_in(output) == 3


def write_often(output: Path, numbers: range, rounds: int) -> None:
    for place in range(rounds):
        number = numbers[place % len(numbers)]
        save(model(number), output, external=place % 3 > 0)


def test_runs_beside_each_other_leave_one_of_them_whole(tmp_path: Path) -> None:
    """Three write models of which some are the same, so that one's data is another's; at no time does one stand there in part."""
    output = tmp_path / "out.onnx"
    save(model(4), output, True)
    fork = multiprocessing.get_context("fork")
    runs = [fork.Process(target=write_often, args=(output, range(4, 5 + number), 60)) for number in range(3)]
    for run in runs:
        run.start()
    while any(run.is_alive() for run in runs):
        found = onnx.load(output, load_external_data=False)
        assert found.graph.name in {"model 4", "model 5", "model 6"}
    for run in runs:
        run.join()
    assert [run.exitcode for run in runs] == [0, 0, 0]
    assert number_in(output) in {4, 5, 6}
    referred = {
        entry.value for t in onnx.load(output, load_external_data=False).graph.initializer for entry in t.external_data
    }
    assert len(list(tmp_path.iterdir())) == 1 + bool(referred)


def test_what_lies_at_the_datas_place_is_not_written_over(tmp_path: Path) -> None:
    output = tmp_path / "out.onnx"
    save(model(4), output, True)
    [data] = tmp_path.glob("*.data")
    output.unlink()
    data.write_bytes(b"something else")
    with pytest.raises(OutputError, match=f"{data.name}.*remove it"):
        save(model(4), output, True)
    assert data.read_bytes() == b"something else"
    assert [path.name for path in tmp_path.iterdir()] == [data.name]


def test_input_that_keeps_its_weights_in_an_outputs_data_file(tmp_path: Path) -> None:
    """As after `cp out.onnx in.onnx`: writing to out.onnx again would take the data away."""
    save(model(4), tmp_path / "out.onnx", True)
    shutil.copy(tmp_path / "out.onnx", tmp_path / "in.onnx")
    with pytest.raises(OutputError, match="holds the input's own weights"):
        check_data(tmp_path / "out.onnx", load(tmp_path / "in.onnx").data_files)


@pytest.mark.parametrize("room", [0, 100, 4095])
@pytest.mark.parametrize("external", [False, True])
def test_full_disk(room: int, external: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = prepare(tmp_path / "models", "its own data")
    opened, left = io.open, [room]

    def full(file: Any, mode: str = "r", *rest: Any, **named: Any) -> Any:
        found = opened(file, mode, *rest, **named)

        def write(data: bytes) -> int:
            left[0] -= len(data)
            if left[0] < 0:
                raise OSError(28, "No space left on device")
            return int(found.write(data))

        return Watched(found, write) if "w" in mode else found

    monkeypatch.setattr(io, "open", full)
    monkeypatch.setattr("builtins.open", full)
    with pytest.raises(OutputError, match="No space left"):
        save(model(3), tmp_path / "models/out.onnx", external)
    monkeypatch.undo()
    assert contents(tmp_path / "models") == before
    assert len(list((tmp_path / "models").iterdir())) == len(before)
