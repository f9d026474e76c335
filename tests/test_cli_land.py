"""`onnx-attn land` as scripts and people use it: the JSON contract, exit codes, what a terminal shows, bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from commands import NO_ATTENTION, SMALLEST, error_line, run_command, says_what_to_do
from support import EXPORTS
from test_cli import has, json_of

from onnx_attn.engine import compile as compiling

HALF = EXPORTS / "vit_b_16.torchscript.17.static.half.onnx"
DYNAMIC = EXPORTS / "bert.torchscript.17.dynamic.onnx"
NOT_BUILT = EXPORTS / "mha.dynamo.23.static.onnx"
NUMBER_OR_NONE = (int, type(None))
REPORT = {
    **{"compiler": str, "sm": int, "built": bool, "sites": int, "landed": int, "kernels": NUMBER_OR_NONE},
    **{"moved_bytes": NUMBER_OR_NONE, "per_site": list, "errors": list},
}
SITE = {"site": str, "kernel": (str, type(None)), "landed": bool, "reason": (str, type(None))}


def check(report: dict[str, Any]) -> None:
    """The contract of one model's part."""
    has(report, REPORT)
    assert len(report["per_site"]) == report["sites"]
    assert sum(entry["landed"] for entry in report["per_site"]) == report["landed"]
    for entry in report["per_site"]:
        has(entry, SITE)
        assert (entry["reason"] is None) == entry["landed"]


@pytest.fixture(autouse=True)
def _compiler(request: pytest.FixtureRequest) -> None:
    if "without_compiler" not in request.keywords:
        pytest.importorskip("tensorrt_rtx")


@pytest.mark.parametrize("model", [HALF, SMALLEST, NO_ATTENTION, NOT_BUILT], ids=lambda path: path.stem)
def test_json_has_the_promised_keys(model: Path) -> None:
    report = json_of("land", model)
    check(report)
    assert report["baseline"] is None
    assert report["built"] is (model is not NOT_BUILT)
    assert bool(report["errors"]) is (model is NOT_BUILT)


def test_json_holds_the_baseline_under_the_same_keys() -> None:
    report = json_of("land", HALF, "--baseline", NOT_BUILT)
    check(report)
    check(report["baseline"])
    assert (report["built"], report["baseline"]["built"]) == (True, False)


def test_a_model_that_does_not_build_is_an_answer() -> None:
    outcome = run_command("land", NOT_BUILT)
    assert outcome.code == 0
    assert "does not build: Attention operation was not supported by a dedicated kernel" in outcome.stdout


@pytest.mark.parametrize(("model", "code"), [(HALF, 0), (NO_ATTENTION, 0), (SMALLEST, 3), (NOT_BUILT, 3)])
def test_expect_all_is_met_or_exits_3_with_the_report_written(model: Path, code: int, tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    outcome = run_command("land", model, "--expect-all", "--json", place)
    assert outcome.code == code
    check(json.loads(place.read_text()))
    if code:
        assert error_line(outcome, 3, model.name)


def test_a_terminal_shows_one_table_before_and_after(tmp_path: Path) -> None:
    fused = tmp_path / "fused.onnx"
    assert run_command("fuse", HALF, "-o", fused, "--no-verify").code == 0
    outcome = run_command("land", fused, "--baseline", HALF)
    lines = [line.split() for line in outcome.stdout.splitlines()]
    assert ["before", "after", "change"] in lines
    assert any(line[:4] == ["sites", "on", "attention", "kernels"] and line[4:7] == ["2", "of", "2"] for line in lines)
    assert "2 × _gemm_mha_v2" in outcome.stdout


def test_a_terminal_tells_why_a_site_did_not_land() -> None:
    outcome = run_command("land", SMALLEST)
    assert "not landed /Softmax" in outcome.stdout
    assert "float32" in outcome.stdout


def test_a_dynamic_model_without_shapes_is_told_how_to_give_them() -> None:
    line = error_line(
        run_command("land", DYNAMIC), 2, "bert", "input_ids", "--shapes input_ids:2x5 --shapes attention_mask:2x5"
    )
    assert says_what_to_do(line, DYNAMIC)


def test_shapes_can_be_given_several_times(tmp_path: Path) -> None:
    report = json_of("land", DYNAMIC, "--shapes", "input_ids:1x16", "--shapes", "input_ids:4x16")
    check(report)
    assert report["shapes"]["attention_mask"] == [[1, 16], [4, 16], [4, 16]]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--sm", "12"], 2, "choose one of 75, 80, 86, 89"),
        (["--compiler", "nvcc"], 2, "choose tensorrt_rtx or tensorrt"),
        (["--shapes", "image"], 2, "write NAME:1x3x224x224"),
        (["--shapes", "picture:1x3x16x16"], 2, "has no input 'picture'"),
        (["--layer-info", "layers.json", "--baseline", str(SMALLEST)], 2, "layer_info describes one engine"),
        (["--layer-info", "no/layers.json"], 1, "no/layers.json"),
        (["--baseline", "none.onnx"], 1, "none.onnx: no such file"),
    ],
)
def test_bad_options_are_one_clear_line(options: list[str], code: int, words: str) -> None:
    assert words in error_line(run_command("land", HALF, *options), code)


def test_a_file_that_is_no_model_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nonsense")
    assert says_what_to_do(error_line(run_command("land", path), 1, "broken.onnx"), path)


@pytest.mark.without_compiler
@pytest.mark.parametrize("missing", ["tensorrt_rtx", "polygraphy"])
def test_a_missing_extra_is_named_with_what_installs_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiling.util.find_spec
    hidden = {missing, "tensorrt"}
    monkeypatch.setattr(compiling.util, "find_spec", lambda name: None if name in hidden else found(name) or object())
    line = error_line(run_command("land", HALF), 1, missing, "pip install 'onnx-attn[tensorrt]'")
    assert says_what_to_do(line)


@pytest.mark.without_compiler
def test_full_tensorrt_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = compiling.util.find_spec
    monkeypatch.setattr(compiling.util, "find_spec", lambda name: None if name == "tensorrt" else found(name))
    error_line(run_command("land", HALF, "--compiler", "tensorrt"), 1, "pip install tensorrt polygraphy")


@pytest.mark.without_compiler
def test_the_package_is_imported_without_the_compiler() -> None:
    """The extra is for `land` alone: everything else neither needs nor loads it."""
    program = "import sys, onnx_attn, onnx_attn.cli; print([m for m in sys.modules if m.startswith(('tensorrt', 'polygraphy'))])"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_external_data_is_compiled_where_it_lies(tmp_path: Path) -> None:
    model = onnx.load(HALF)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=64)
    apart, whole = json_of("land", tmp_path / "m.onnx"), json_of("land", HALF)
    assert [apart[key] for key in ("landed", "kernels", "moved_bytes")] == [
        whole[key] for key in ("landed", "kernels", "moved_bytes")
    ]


def test_external_data_is_followed_where_names_have_to_change(tmp_path: Path) -> None:
    model = onnx.load(HALF)
    for node in model.graph.node:
        node.name = "same"
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=64)
    report = json_of("land", tmp_path / "m.onnx")
    assert (report["built"], report["sites"], report["landed"]) == (True, 2, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.data", "m.onnx"]


@pytest.mark.parametrize("place", ["/dev/null", "/dev/stdout"])
def test_a_report_may_go_to_a_device(place: str) -> None:
    """Which cannot be read to see whether it holds something else."""
    run = subprocess.run(
        [sys.executable, "-m", "onnx_attn", "land", str(SMALLEST), "--json", place], capture_output=True, timeout=100
    )
    assert run.returncode == 0, run.stderr
