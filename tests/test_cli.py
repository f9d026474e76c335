"""The commands as scripts and people use them: exit codes, the JSON contract key by key, what a terminal shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
import pytest
from commands import DEMO, MASKED, NO_ATTENTION, SMALLEST, Outcome, error_line, run_command
from onnx import numpy_helper

import onnx_attn
from onnx_attn.codes import CODES

NUMBER = (int, float)
TEXT_OR_NONE = (str, type(None))
HEAD = {"model": str, "target": str, "target_version": TEXT_OR_NONE, "sites": int, "refused": int, "candidates": list}
FUSED = {
    "fused": int,
    "nodes_before": int,
    "nodes_after": int,
    "seconds": dict,
    "proof": (dict, type(None)),
    "proof_left": TEXT_OR_NONE,
}
READ = {
    **{"heads": int, "kv_heads": int, "head_dim": int, "value_dim": int, "scale": NUMBER, "causal": bool},
    **{"masks": list, "projection": str, "window": (dict, type(None))},
    **{"rotary": (dict, type(None))},
}
VERDICT = dict.fromkeys(("code", "node", "reason", "remedy"), TEXT_OR_NONE)
WRITTEN = {"form": TEXT_OR_NONE, "packed": bool, "certificate": (dict, type(None))}
PROOF = {"ok": bool, "max_abs": NUMBER, "max_rel": NUMBER, "cases": int}
PHASES = {"load", "recognize", "plan", "apply", "stats", "prove", "save"}
MODELS = {"one site": (SMALLEST, 1), "masked": (MASKED, 1), "no attention": (NO_ATTENTION, 0), "two layers": (DEMO, 2)}


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[Path, int]:
    return MODELS[request.param]


def strict(text: str) -> Any:
    """JSON as the standard has it: NaN and Infinity are no JSON."""

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def json_of(*arguments: str | Path, code: int = 0) -> Any:
    outcome = run_command(*arguments, "--json", "-")
    assert outcome.code == code, outcome
    return strict(outcome.stdout)


def has(document: dict[str, Any], shape: dict[str, Any]) -> None:
    for key, kind in shape.items():
        assert key in document, key
        assert isinstance(document[key], kind), (key, document[key])
        assert kind is bool or not isinstance(document[key], bool), key


def check_candidate(candidate: dict[str, Any], fused: bool) -> None:
    has(candidate, {"id": str, "softmax": str, "status": str, **VERDICT})
    if candidate["status"] == "site":
        has(candidate, READ)
        assert all(candidate[key] is None for key in VERDICT)
        assert candidate["projection"] in ("packed", "triplet", "kv_packed", "none")
        for mask in candidate["masks"]:
            assert mask["kind"] in ("additive", "boolean", "relative_bias", "window")
            assert all(isinstance(size, int | str) for size in mask["shape"])
    else:
        assert candidate["status"] in ("refused", "not_attention")
        assert candidate["code"] in CODES
        assert candidate["reason"]
        assert candidate.keys() >= READ.keys()
        assert candidate["status"] != "refused" or (candidate["node"] and candidate["remedy"])
    if fused:
        has(candidate, WRITTEN)
        assert (candidate["form"] is not None) == (candidate["status"] == "site")
        if candidate["certificate"] is not None:
            has(candidate["certificate"], PROOF)


def check_report(report: dict[str, Any], sites: int, fused: bool) -> None:
    has(report, {**HEAD, **(FUSED if fused else {})})
    candidates = report["candidates"]
    for candidate in candidates:
        check_candidate(candidate, fused)
    ids = [candidate["id"] for candidate in candidates]
    assert len(set(ids)) == len(ids)
    statuses = [candidate["status"] for candidate in candidates]
    assert report["sites"] == sites == statuses.count("site") + statuses.count("refused")
    assert report["refused"] == statuses.count("refused")
    if fused:
        assert report["fused"] + report["refused"] == report["sites"]
        assert set(report["seconds"]) == PHASES
        if report["proof"] is not None:
            has(report["proof"], PROOF)


def test_inspect_json_has_every_key(model: tuple[Path, int]) -> None:
    path, sites = model
    report = json_of("inspect", path)
    check_report(report, sites, fused=False)
    assert (report["model"], report["target"], report["target_version"]) == (str(path), "tensorrt", "10.0")


@pytest.mark.parametrize("options", [[], ["--form", "primitives"], ["--no-verify"]], ids=" ".join)
def test_fuse_json_has_every_key(model: tuple[Path, int], options: list[str], tmp_path: Path) -> None:
    path, sites = model
    report = json_of("fuse", path, "-o", tmp_path / "fused.onnx", *options)
    check_report(report, sites, fused=True)
    assert report["nodes_before"] == len(onnx.load(path).graph.node)
    assert report["nodes_after"] == len(onnx.load(tmp_path / "fused.onnx").graph.node)
    assert (report["proof"] is None) == (report["proof_left"] is not None) == ("--no-verify" in options)


def test_json_in_a_file_is_the_same_document(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    outcome = run_command("inspect", DEMO, "--json", path)
    assert outcome.code == 0
    assert "2 attention sites" in outcome.stdout
    assert strict(path.read_text(encoding="utf-8")) == json_of("inspect", DEMO) == onnx_attn.inspect(DEMO)


def test_python_gives_the_document_of_the_command(tmp_path: Path) -> None:
    of_command = json_of("fuse", DEMO, "-o", tmp_path / "a.onnx")
    of_python = onnx_attn.fuse(DEMO, tmp_path / "b.onnx").report
    del of_command["seconds"], of_python["seconds"]
    assert of_command == strict(json.dumps(of_python))
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


def test_expectation_met(tmp_path: Path) -> None:
    assert run_command("fuse", DEMO, "-o", tmp_path / "fused.onnx", "--expect", "2").code == 0
    assert (tmp_path / "fused.onnx").exists()


@pytest.mark.parametrize("expected", ["0", "1", "3"])
def test_expectation_unmet_writes_nothing(expected: str, tmp_path: Path) -> None:
    outcome = run_command("fuse", DEMO, "-o", tmp_path / "fused.onnx", "--expect", expected)
    assert outcome.code == 3
    assert "2 sites" in outcome.stderr
    assert not list(tmp_path.iterdir())


def test_model_without_attention_is_copied_and_told(tmp_path: Path) -> None:
    out = tmp_path / "fused.onnx"
    outcome = run_command("fuse", NO_ATTENTION, "-o", out, "--expect", "0")
    assert outcome.code == 0
    assert "no attention in this model" in outcome.stdout
    assert out.read_bytes() == NO_ATTENTION.read_bytes()


def other_weights(path: Path) -> Path:
    """DEMO with one weight off by a hundredth."""
    model = onnx.load(DEMO)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(1.01), tensor.name))
    onnx.save(model, path)
    return path


def test_verify_of_equal_models(tmp_path: Path) -> None:
    run_command("fuse", DEMO, "-o", tmp_path / "fused.onnx")
    report = json_of("verify", DEMO, tmp_path / "fused.onnx")
    has(report, PROOF)
    assert report["ok"]
    assert report["max_rel"] <= 1e-5


def test_verify_of_different_models(tmp_path: Path) -> None:
    other = other_weights(tmp_path / "other.onnx")
    report = json_of("verify", DEMO, other, code=4)
    assert not report["ok"]
    outcome = run_command("verify", DEMO, other)
    assert outcome.code == 4
    assert "different" in outcome.stdout
    assert len(outcome.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("option", "code"), [("--rtol=0.5", 0), ("--rtol=1e-9", 4), ("--atol=100", 0), ("--atol=1e-9", 4)]
)
def test_verify_takes_tolerances(option: str, code: int, tmp_path: Path) -> None:
    assert run_command("verify", DEMO, other_weights(tmp_path / "other.onnx"), option).code == code


@pytest.mark.parametrize("bound", ["--rtol", "--atol"])
@pytest.mark.parametrize("value", ["nan", "-1"])
def test_verify_refuses_tolerances_that_are_no_bounds(bound: str, value: str) -> None:
    error_line(run_command("verify", SMALLEST, SMALLEST, bound, value), 2, "rtol", "not negative")


def test_verify_takes_inputs_and_shapes(tmp_path: Path) -> None:
    value = onnx.load(DEMO).graph.input[0]
    size = onnx.load(DEMO).graph.input[0].type.tensor_type.shape.dim[-1].dim_value
    np.savez(tmp_path / "inputs.npz", **{value.name: np.zeros((1, 3, size, size), np.float32)})
    assert json_of("verify", DEMO, DEMO, "--inputs", tmp_path / "inputs.npz")["cases"] == 1
    assert json_of("verify", DEMO, DEMO, "--shapes", f"{value.name}:5x3x{size}x{size}")["cases"] == 1


@pytest.mark.parametrize(
    ("target", "version", "form"),
    [
        *[("tensorrt", v, "function") for v in (None, "10.0", "10.9", "11.0", "rtx")],
        *[("tensorrt", "8.6", "primitives"), ("onnx", None, "function"), ("onnxruntime", None, "contrib")],
    ],
)
def test_target_chooses_the_form(target: str, version: str | None, form: str, tmp_path: Path) -> None:
    options = ["--target", target, *(["--target-version", version] if version else [])]
    report = json_of("fuse", DEMO, "-o", tmp_path / "fused.onnx", *options)
    assert {candidate["form"] for candidate in report["candidates"] if candidate["status"] == "site"} == {form}
    assert report["target"] == target
    assert report["target_version"] == (version or ("10.0" if target == "tensorrt" else None))
    assert bool(onnx.load(tmp_path / "fused.onnx").functions) == (form == "function")


def test_version_is_shown() -> None:
    outcome = run_command("--version")
    assert (outcome.code, outcome.stdout) == (0, f"onnx-attn {onnx_attn.__version__}\n")


def test_demo_shows_the_fusion_in_time() -> None:
    start = time.perf_counter()
    outcome = run_command("demo")
    assert time.perf_counter() - start < 10
    assert (outcome.code, outcome.stderr) == (0, "")
    assert "2 attention sites, 2 fused" in outcome.stdout


def test_people_are_shown_sites_forms_and_proof(tmp_path: Path) -> None:
    shown = run_command("fuse", DEMO, "-o", tmp_path / "fused.onnx").stdout
    for word in (
        "2 attention sites, 2 fused, 0 refused",
        "site-0 … site-1",
        "function",
        "max_rel",
        str(tmp_path / "fused.onnx"),
    ):
        assert word in shown
    assert re.search(r"nodes +\d+ → \d+", shown)


def own_process(*arguments: str, cwd: Path, **environment: str) -> Outcome:
    code = "from onnx_attn.cli import app; app()"
    root = str(DEMO.parent.parent.parent)
    env = {"PYTHONPATH": root, **environment}
    command = [sys.executable, "-c", code, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, check=False)
    return Outcome(run.returncode, run.stdout, run.stderr)


def test_a_reader_that_has_gone_is_no_failure() -> None:
    """`onnx-attn inspect model.onnx | head -1`: a script that minds failures in pipes goes on."""
    with subprocess.Popen([sys.executable, "-m", "onnx_attn", "inspect", SMALLEST], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait() == 0


def test_a_process_of_its_own_keeps_the_streams_apart(tmp_path: Path) -> None:
    """Nothing of ONNX Runtime or of a warning comes between, and relative paths are those of the caller."""
    shutil.copy(SMALLEST, tmp_path / "model.onnx")
    good = own_process("fuse", "model.onnx", "-o", "fused.onnx", "--json", "-", cwd=tmp_path)
    assert (good.code, good.stderr) == (0, "")
    check_report(strict(good.stdout), 1, fused=True)
    bad = own_process("fuse", "nothing.onnx", "-o", "other.onnx", cwd=tmp_path)
    assert (bad.code, bad.stdout, len(bad.stderr.splitlines())) == (1, "", 1)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_terminal_that_is_not_unicode_is_written_to_all_the_same(encoding: str, tmp_path: Path) -> None:
    outcome = own_process("fuse", str(SMALLEST), "-o", "fused.onnx", cwd=tmp_path, PYTHONIOENCODING=encoding)
    assert (outcome.code, outcome.stderr) == (0, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux only")
def test_full_disk_below_stdout_is_told() -> None:
    code = "from onnx_attn.cli import app; app()"
    command = [sys.executable, "-c", code, "inspect", str(SMALLEST), "--json", "-"]
    with open("/dev/full", "w") as full:
        env = {"PYTHONPATH": str(DEMO.parent.parent.parent)}
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=env, check=False)
    assert (run.returncode, len(run.stderr.splitlines())) == (1, 1)
