"""The commands where models are odd: deceiving names, numbers that JSON has no word for, a second run."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import DEMO, MASKED, SMALLEST, run_command
from onnx import TensorProto, helper, numpy_helper
from test_cli import check_report, json_of

import onnx_attn
from onnx_attn.runtime import CannotRun

EVIL = {
    "escape": "\x1b[31mred\x1b]0;title\x07",
    "single-byte escape": "red\x9b31m",
    "carriage return": "harmless\rerased",
    "new line": "harmless\nwrote   /forged/line",
    "backspace": "gone\x08\x08\x08\x08",
    "right to left": "abc\u202edcba",
    "markup": "[bold]loud[/bold][/]",
}


def probabilities_read(path: Path, evil: str) -> Path:
    """A real site that is refused, with `evil` in the name of its nodes, its probabilities and its file's graph."""
    model = onnx.load(SMALLEST)
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}{number}{evil}"
    softmax = next(node for node in model.graph.node if node.op_type == "Softmax")
    dims = [2, 4, 16, 16]
    model.graph.output.append(helper.make_tensor_value_info(softmax.output[0], TensorProto.FLOAT, dims))
    old, new = softmax.output[0], f"p{evil}"
    for node in model.graph.node:
        node.input[:] = [new if name == old else name for name in node.input]
        node.output[:] = [new if name == old else name for name in node.output]
    for value in (*model.graph.output, *model.graph.value_info):
        value.name = new if value.name == old else value.name
    path.write_bytes(model.SerializeToString())
    return path


def controls(text: str) -> set[str]:
    """Characters that move, colour, erase or turn round what a terminal shows."""
    return {char for char in text if char != "\n" and unicodedata.category(char) in ("Cc", "Cf")}


def shown_commands(path: Path, tmp_path: Path) -> list[str]:
    runs = (["inspect", path], ["fuse", path, "-o", tmp_path / "fused.onnx"], ["verify", path, path])
    outcomes = [run_command(*arguments) for arguments in runs]
    assert [outcome.code for outcome in outcomes] == [0, 0, 0], outcomes
    return [outcome.stdout for outcome in outcomes]


@pytest.mark.parametrize("kind", EVIL)
def test_names_cannot_steer_the_terminal(kind: str, tmp_path: Path) -> None:
    path = probabilities_read(tmp_path / "model.onnx", EVIL[kind])
    for shown in shown_commands(path, tmp_path):
        assert not controls(shown), repr(shown)
        assert not any(line.startswith("wrote   /forged") for line in shown.splitlines())


def test_names_stay_as_they_are_in_json(tmp_path: Path) -> None:
    path = probabilities_read(tmp_path / "model.onnx", EVIL["escape"])
    outcome = run_command("inspect", path, "--json", "-")
    assert not controls(outcome.stdout)
    [candidate] = json.loads(outcome.stdout)["candidates"]
    assert candidate["softmax"].startswith("Softmax")
    assert candidate["softmax"].endswith(EVIL["escape"])


def test_markup_in_a_name_is_shown_as_it_is(tmp_path: Path) -> None:
    path = probabilities_read(tmp_path / "model.onnx", EVIL["markup"])
    assert EVIL["markup"] in run_command("inspect", path).stdout


def test_refusal_is_shown_with_place_reason_and_remedy(tmp_path: Path) -> None:
    path = probabilities_read(tmp_path / "model.onnx", "")
    report = json_of("fuse", path, "-o", tmp_path / "fused.onnx")
    check_report(report, 1, fused=True)
    [candidate] = report["candidates"]
    assert (candidate["status"], candidate["code"]) == ("refused", "probabilities-used")
    shown = " ".join(run_command("inspect", path).stdout.split())
    for key in ("code", "node", "reason", "remedy"):
        assert " ".join(candidate[key].split()) in shown


def test_ids_are_unique_where_nodes_have_no_names_or_one(tmp_path: Path) -> None:
    """ONNX Runtime itself refuses two nodes of one name, so that such a model cannot be proved; here the ids matter."""
    for name in ("", "same"):
        model = onnx.load(DEMO)
        for node in model.graph.node:
            node.name = name
        path = tmp_path / "model.onnx"
        onnx.save(model, path)
        check_report(json_of("inspect", path), 2, fused=False)
        report = onnx_attn.fuse(path, tmp_path / "fused.onnx", verify=False).report
        assert (len({candidate["id"] for candidate in report["candidates"]}), report["fused"]) == (2, 2)


@pytest.mark.parametrize("form", ["function", "primitives"])
@pytest.mark.parametrize("source", [SMALLEST, MASKED, DEMO], ids=lambda path: path.stem)
def test_fusing_again_is_byte_identical(source: Path, form: str, tmp_path: Path) -> None:
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    first = json_of("fuse", source, "-o", once, "--form", form)
    second = json_of("fuse", once, "-o", twice, "--form", form, "--expect", str(first["sites"]))
    assert twice.read_bytes() == once.read_bytes()
    check_report(second, first["sites"], fused=True)
    assert (second["fused"], second["nodes_after"]) == (first["fused"], first["nodes_after"])


def unary(path: Path, *, scale: float, columns: int = 4) -> Path:
    """y = x · scale, repeated to `columns`; `scale` may be zero, infinite or NaN."""
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["xs"]),
        helper.make_node("Concat", ["xs"] * (columns // 4), ["y"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "unary",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, columns])],
        [numpy_helper.from_array(np.float32(scale), "s")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("a", "b", "columns", "code"),
    [
        pytest.param(0.0, 1.0, 4, 4, id="all zero against not"),
        pytest.param(1.0, 1.0, 8, 4, id="other shape"),
        pytest.param(float("nan"), 1.0, 4, 4, id="NaN against number"),
        pytest.param(float("nan"), float("nan"), 4, 0, id="NaN in the same places"),
        pytest.param(float("inf"), float("inf"), 4, 0, id="infinity in the same places"),
        pytest.param(float("inf"), float("-inf"), 4, 4, id="infinities of other sign"),
        pytest.param(0.0, 0.0, 4, 0, id="zero against zero"),
    ],
)
def test_verify_json_is_strict_whatever_the_numbers(
    a: float, b: float, columns: int, code: int, tmp_path: Path
) -> None:
    first, second = unary(tmp_path / "a.onnx", scale=a), unary(tmp_path / "b.onnx", scale=b, columns=columns)
    assert json_of("verify", first, second, code=code)["ok"] == (code == 0)


def test_fuse_json_is_strict_where_a_site_cannot_be_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def cannot(*_: object) -> None:
        raise CannotRun("site: ONNX Runtime does not load the model")

    monkeypatch.setattr("onnx_attn.prove.judge.Session", cannot)
    report = json_of("fuse", SMALLEST, "-o", tmp_path / "fused.onnx")
    [candidate] = report["candidates"]
    assert (candidate["status"], candidate["code"], candidate["form"]) == ("refused", "unprovable-here", None)


@pytest.mark.parametrize("extreme", [float("inf"), float("nan"), 0.0, -1.0])
def test_extreme_scale_gives_strict_json_and_no_traceback(extreme: float, tmp_path: Path) -> None:
    model = onnx.load(SMALLEST)
    position = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Softmax")
    softmax = model.graph.node[position]
    model.graph.initializer.append(numpy_helper.from_array(np.float32(extreme), "extreme"))
    node = helper.make_node("Mul", [softmax.input[0], "extreme"], ["scores_extreme"], name="extreme")
    softmax.input[0] = "scores_extreme"
    model.graph.node.insert(position, node)
    onnx.save(model, tmp_path / "model.onnx")
    check_report(json_of("inspect", tmp_path / "model.onnx"), 1, fused=False)
    check_report(json_of("fuse", tmp_path / "model.onnx", "-o", tmp_path / "fused.onnx"), 1, fused=True)


def test_python_errors_have_the_exit_codes_of_the_commands() -> None:
    codes = {name: getattr(onnx_attn.errors, name).exit_code for name in ("InputError", "OutputError", "UsageError")}
    assert codes == {"InputError": 1, "OutputError": 1, "UsageError": 2}
    assert onnx_attn.errors.ExpectationError.exit_code == 3
    assert onnx_attn.errors.DifferenceError.exit_code == 4
