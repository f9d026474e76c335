"""Outputs that cannot be written and requests that make no sense: told in one line before anything is touched."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import MASKED, NO_ATTENTION, SMALLEST, Outcome, error_line, run_command, says_what_to_do
from test_bad_input import contents

import onnx_attn

DYNAMIC = SMALLEST.with_name(SMALLEST.name.replace("static", "dynamic"))


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return Path(shutil.copy(SMALLEST, tmp_path / "model.onnx"))


def fails(model: Path, code: int, *arguments: str | Path, mentions: str = "", advice: bool = True) -> Outcome:
    """Run, expect one line of error, and an untouched folder."""
    before = contents(model.parent)
    outcome = run_command(*arguments)
    line = error_line(outcome, code, mentions)
    assert contents(model.parent) == before
    assert says_what_to_do(line, *arguments) or not advice, line
    return outcome


def test_output_folder_that_does_not_exist(model: Path) -> None:
    out = model.parent / "nowhere" / "fused.onnx"
    fails(model, 1, "fuse", model, "-o", out, mentions=str(out))


def test_output_that_is_a_folder(model: Path) -> None:
    (model.parent / "folder").mkdir()
    fails(model, 1, "fuse", model, "-o", model.parent / "folder", mentions="is a directory")


@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
@pytest.mark.parametrize("command", ["fuse", "expand", "extract", "inspect"])
def test_output_that_is_no_plain_file_stays_what_it_is(command: str, kind: str, model: Path) -> None:
    out, kept = model.parent / "out", model.parent / "kept.txt"
    if kind == "pipe":
        os.mkfifo(out)
    else:
        out.symlink_to(kept)
    if kind == "link":
        kept.write_text("kept")
    site = ["--site", "site-0"] if command == "extract" else []
    fails(
        model,
        1,
        command,
        model,
        "--bundle" if command == "inspect" else "-o",
        out,
        *site,
        mentions="is a link or a device",
    )
    assert out.is_fifo() if kind == "pipe" else out.is_symlink()
    assert kind != "link" or kept.read_text() == "kept"


def test_output_below_a_file(model: Path) -> None:
    (model.parent / "file").write_text("x")
    fails(model, 1, "fuse", model, "-o", model.parent / "file" / "fused.onnx", mentions="fused.onnx")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_output_folder_that_is_not_writable(model: Path) -> None:
    closed = model.parent / "closed"
    closed.mkdir(mode=0o500)
    fails(model, 1, "fuse", model, "-o", closed / "fused.onnx", mentions=str(closed), advice=False)


@pytest.mark.parametrize("how", ["same", "relative", "dotted", "symlink", "hard link", "symlink as input"])
def test_output_that_is_the_input_is_refused(how: str, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    other = model.parent / "other.onnx"
    if how.startswith("symlink"):
        other.symlink_to(model)
    elif how == "hard link":
        other.hardlink_to(model)
    given, out = {
        "same": (model, model),
        "relative": (model, Path(model.name)),
        "dotted": (model, model.parent / ".." / model.parent.name / model.name),
        "symlink as input": (other, model),
    }.get(how, (model, other))
    fails(model, 1, "fuse", given, "-o", out, mentions=str(out))


def test_missing_model_is_told_where_the_output_exists(model: Path) -> None:
    """The second run of a script whose model was moved away."""
    nowhere = model.parent / "nowhere.onnx"
    fails(model, 1, "fuse", nowhere, "-o", model, mentions=str(nowhere))


def test_longest_name_that_the_file_system_takes(model: Path) -> None:
    assert run_command("fuse", model, "-o", model.parent / f"{'n' * 250}.onnx").code == 0


def test_output_that_is_the_inputs_data_file_is_refused(model: Path) -> None:
    proto = onnx.load(NO_ATTENTION)
    onnx.save_model(proto, model, save_as_external_data=True, location="weights.bin", size_threshold=64)
    fails(model, 1, "fuse", model, "-o", model.parent / "weights.bin", mentions="weights.bin")


def test_input_whose_data_file_has_the_outputs_name_stays_whole(model: Path) -> None:
    """As after `fuse a.onnx -o out.onnx` and `mv out.onnx model.onnx`."""
    proto = onnx.load(NO_ATTENTION)
    onnx.save_model(proto, model, save_as_external_data=True, location="out.onnx.data", size_threshold=64)
    data = model.parent / "out.onnx.data"
    before = data.read_bytes()
    run_command("fuse", model, "-o", model.parent / "out.onnx")
    assert data.read_bytes() == before


@pytest.mark.parametrize("verb", ["inspect", "fuse"])
def test_unknown_target(verb: str, model: Path) -> None:
    output = ["-o", model.parent / "fused.onnx"] if verb == "fuse" else []
    fails(model, 2, verb, model, *output, "--target", "tensorflow", mentions="onnxruntime")


@pytest.mark.parametrize("version", ["banana", "7.0", "8.5", "12.0", "999", "10.x", "10.", "-1", "²", "rtx2", ""])
def test_unknown_target_version(version: str, model: Path) -> None:
    fails(model, 2, "inspect", model, f"--target-version={version}", mentions="rtx")


def test_version_of_a_target_without_versions(model: Path) -> None:
    fails(model, 2, "inspect", model, "--target", "onnx", "--target-version", "10.0", mentions="onnx", advice=False)


@pytest.mark.parametrize("form", ["nonsense", "contrib", ""])
def test_form_that_is_not_taken(form: str, model: Path) -> None:
    fails(model, 2, "fuse", model, "-o", model.parent / "fused.onnx", "--form", form, mentions=f"'{form}'")


def test_form_that_the_version_never_takes(model: Path) -> None:
    arguments = ["--form", "function", "--target-version", "8.6"]
    fails(model, 2, "fuse", model, "-o", model.parent / "fused.onnx", *arguments, mentions="8.6")


def test_unknown_form_is_told_whatever_the_model_holds(model: Path) -> None:
    shutil.copy(NO_ATTENTION, model)
    fails(model, 2, "fuse", model, "-o", model.parent / "fused.onnx", "--form", "nonsense", mentions="nonsense")


@pytest.mark.parametrize("verb", ["inspect", "verify"])
@pytest.mark.parametrize("where", [".", "nowhere/report.json"])
def test_report_that_cannot_be_written(verb: str, where: str, model: Path) -> None:
    path = model.parent / where
    models = [model, model] if verb == "verify" else [model]
    fails(model, 1, verb, *models, "--json", path, mentions=str(path))


def test_report_that_cannot_be_written_leaves_no_model(model: Path) -> None:
    path = model.parent / "nowhere" / "report.json"
    fails(model, 1, "fuse", model, "-o", model.parent / "fused.onnx", "--json", path, mentions=str(path), advice=False)


@pytest.mark.parametrize("verb", ["inspect", "fuse", "verify"])
def test_report_never_overwrites_a_model(verb: str, model: Path) -> None:
    arguments = {"inspect": [], "fuse": ["-o", model.parent / "fused.onnx"], "verify": [SMALLEST]}[verb]
    run_command(verb, model, *arguments, "--json", model)
    assert model.read_bytes() == SMALLEST.read_bytes()


def test_report_and_model_cannot_be_one_file(model: Path) -> None:
    out = model.parent / "fused.onnx"
    fails(model, 2, "fuse", model, "-o", out, "--json", out, mentions=str(out), advice=False)


def npz(path: Path, kind: str) -> Path:
    """An .npz of the given kind for SMALLEST, whose inputs are q, k and v of (2, 4, 16, 24)."""
    values = {name: np.ones((2, 4, 16, 24), np.float32) for name in "qkv"}
    match kind:
        case "garbage":
            path.write_bytes(b"garbage" * 50)
        case "empty":
            path.write_bytes(b"")
        case "directory":
            path.mkdir()
        case "single array":
            with path.open("wb") as file:
                np.save(file, values["q"])
        case "truncated" | "damaged":
            np.savez(path, **values)
            content = bytearray(path.read_bytes())
            content[200] ^= 255
            path.write_bytes(content[: len(content) // 2] if kind == "truncated" else content)
        case "objects":
            np.savez(path, q=np.array([object()], dtype=object))
        case "wrong names":
            np.savez(path, foo=values["q"])
        case "one missing":
            np.savez(path, q=values["q"], k=values["k"])
        case "one too many":
            np.savez(path, extra=values["q"], **values)
        case "wrong shapes":
            np.savez(path, **{name: value[:, :, :3, :5] for name, value in values.items()})
        case "wrong types":
            np.savez(path, **{name: value.astype(np.float64) for name, value in values.items()})
    return path


UNREADABLE = ("missing", "garbage", "directory", "objects", "empty", "single array", "truncated", "damaged")
UNFIT = ("wrong names", "one missing", "one too many", "wrong shapes", "wrong types")


@pytest.mark.parametrize("kind", [*UNREADABLE, *UNFIT])
def test_inputs_that_cannot_be_used_name_their_file(kind: str, model: Path) -> None:
    path = npz(model.parent / "inputs.npz", kind)
    outcome = run_command("verify", model, model, "--inputs", path)
    assert outcome.code in (1, 2)
    error_line(outcome, outcome.code, str(path))


@pytest.mark.parametrize("text", ["q", "q:", "q:1x", "q:axb", ":1x2", "q:-1x2x3x4", "q:1×2", "q:1,2", "q:1x2x"])
def test_shapes_that_are_no_shapes(text: str, model: Path) -> None:
    fails(model, 2, "verify", model, model, "--shapes", text, mentions=text, advice=False)


@pytest.mark.parametrize(
    ("text", "mention"), [("nobody:2x4x16x24", "nobody"), ("q:2x4x16", "3 were given"), ("q:2x4x16x25", "not 25")]
)
def test_shapes_that_do_not_fit_the_model(text: str, mention: str, model: Path) -> None:
    fails(model, 2, "verify", model, model, "--shapes", text, mentions=mention, advice=False)


def test_shapes_that_contradict_each_other(model: Path) -> None:
    shutil.copy(DYNAMIC, model)
    shapes = ["--shapes", "q:2x4x9x24", "--shapes", "k:3x4x9x24"]
    fails(model, 2, "verify", model, model, *shapes, mentions="'batch'", advice=False)


def test_shapes_that_leave_a_dimension_open(model: Path) -> None:
    """Given for one of several inputs: a line about the one that is left, or a run, but no traceback."""
    shutil.copy(MASKED, model)
    outcome = run_command("verify", model, model, "--shapes", f"{onnx.load(model).graph.input[0].name}:2x4x9x24")
    assert outcome.code == 0 or error_line(outcome, 2, "--shapes")


@pytest.mark.parametrize("verb", ["inspect", "fuse"])
@pytest.mark.parametrize("given", [3, None, b"model.onnx"], ids=repr)
def test_what_is_no_model_is_wrong_usage(verb: str, given: object) -> None:
    with pytest.raises(onnx_attn.UsageError, match=f"a {type(given).__name__} is no model; pass a path"):
        getattr(onnx_attn, verb)(given)


@pytest.mark.parametrize(
    "arguments", [["fuse"], ["fuse", "model.onnx"], ["verify", "a.onnx"], ["inspect", "--nonsense", "x"], ["nonsense"]]
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    outcome = run_command(*arguments)
    assert outcome.code == 2
    assert "Traceback" not in outcome.stderr
