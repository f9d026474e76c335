"""Plans: written, edited, replayed; the same input and the same plan give the same bytes."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from commands import error_line, run_command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import EXPORTS

import onnx_attn

VIT = EXPORTS / "vit_b_16.torchscript.17.static.onnx"
MODELS = [
    "vit_b_16.torchscript.17.static.onnx",
    "vit_b_16.dynamo.18.dynamic.onnx",
    "bert.dynamo.23.dynamic.onnx",
    "gpt2.torchscript.17.dynamic.onnx",
    "sdpa.dynamo.23.static.onnx",
    "mha_weights.torchscript.17.static.onnx",
]


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_replayed_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    plan, first, again = tmp_path / "plan.json", tmp_path / "first.onnx", tmp_path / "again.onnx"
    assert run_command("fuse", EXPORTS / name, "-o", first, "--write-plan", plan).code == 0
    assert (
        run_command("fuse", EXPORTS / name, "-o", again, "--plan", plan, "--write-plan", tmp_path / "2.json").code == 0
    )
    assert first.read_bytes() == again.read_bytes()
    assert plan.read_text() == (tmp_path / "2.json").read_text()


@pytest.mark.parametrize("name", MODELS[:4])
def test_another_process_writes_the_same_bytes(name: str, tmp_path: Path) -> None:
    for seed in ("0", "1"):
        command = [sys.executable, "-m", "onnx_attn", "fuse", str(EXPORTS / name), "-o", str(tmp_path / f"{seed}.onnx")]
        subprocess.run(command, check=True, capture_output=True, env=os.environ | {"PYTHONHASHSEED": seed})
    assert (tmp_path / "0.onnx").read_bytes() == (tmp_path / "1.onnx").read_bytes()


def plan_of(path: Path, **options: Any) -> dict[str, Any]:
    return copy.deepcopy(onnx_attn.fuse(onnx_attn_model(path), **options).plan)


def onnx_attn_model(path: Path) -> Any:
    import onnx

    return onnx.load(path)


def replay(plan: object, **options: Any) -> onnx_attn.Result:
    return onnx_attn.fuse(onnx_attn_model(VIT), plan=plan, **options)  # type: ignore[arg-type]


def test_a_site_can_be_left_alone() -> None:
    plan = plan_of(VIT)
    plan["sites"][0]["apply"] = False
    report = replay(plan, expect=1).report
    first, second = (c for c in report["candidates"] if c["status"] != "not_attention")
    assert (first["status"], first["code"], first["form"]) == ("refused", "left-by-plan", None)
    assert second["status"] == "site"
    assert (report["fused"], report["refused"]) == (1, 1)


def test_a_site_can_have_another_form_and_less_algebra() -> None:
    plan = plan_of(VIT)
    assert plan["sites"][0]["algebra"] == ["constant-channel", "key-bias", "value-bias", "scale"]
    plan["sites"][0] |= {"form": "primitives", "algebra": ["scale"]}
    plan["sites"][1] |= {"pack": False}
    report = replay(plan).report
    first, second = (c for c in report["candidates"] if c["status"] != "not_attention")
    assert (first["form"], first["algebra"], second["form"]) == ("primitives", ["scale"], "function")
    assert (first["packed"], second["packed"]) == (True, False)


def test_one_site_as_the_operator_raises_the_model() -> None:
    plan = plan_of(VIT, target="onnx")
    plan["sites"][0]["form"] = "attention"
    report = replay(plan).report
    assert report["opset_raised"] == [17, 23]
    assert [c["form"] for c in report["candidates"] if c["status"] == "site"] == ["attention", "function"]


def test_a_refused_site_stays_refused() -> None:
    path = EXPORTS / "mha_weights.torchscript.17.static.onnx"
    plan = plan_of(path)
    assert (plan["sites"][0]["code"], plan["sites"][0]["apply"]) == ("probabilities-used", False)
    plan["sites"][0]["apply"] = True
    with pytest.raises(onnx_attn.UsageError, match="site-0 was refused"):
        onnx_attn.fuse(onnx_attn_model(path), plan=plan)


def test_a_plan_of_another_model_is_refused() -> None:
    with pytest.raises(onnx_attn.UsageError, match="plan of another model"):
        replay(plan_of(EXPORTS / "vit_b_16.dynamo.18.dynamic.onnx"))


@pytest.mark.parametrize(
    "options",
    [{"form": "function"}, {"pack": False}, {"algebra": False}, {"target": "onnx"}, {"target_version": "rtx"}],
    ids=str,
)
def test_options_that_the_plan_settles_are_wrong_usage_beside_it(options: dict[str, Any]) -> None:
    with pytest.raises(onnx_attn.UsageError, match="leave these options out"):
        replay(plan_of(VIT), **options)


EDITS: dict[str, tuple[Any, str]] = {
    "aply": (True, "'apply'"),
    "apply": ("yes", "true or false"),
    "form": ("fused", "function"),
    "algebra": (["k-bias"], "key-bias"),
    "pack": (1, "true or false"),
    "id": ("site-7", "leave ids"),
}


@pytest.mark.parametrize("key", EDITS)
def test_a_wrong_edit_is_named_with_its_site(key: str, tmp_path: Path) -> None:
    value, hint = EDITS[key]
    plan = plan_of(VIT)
    plan["sites"][1][key] = value
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    line = error_line(run_command("fuse", VIT, "-o", tmp_path / "f.onnx", "--plan", path), 2, str(path), "site-1")
    assert hint in line
    assert not (tmp_path / "f.onnx").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '{"sites": []}', "\x00"])
def test_what_is_no_plan_is_said_to_be_none(text: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    error_line(run_command("fuse", VIT, "-o", tmp_path / "f.onnx", "--plan", path), 2, str(path))


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    error_line(run_command("fuse", VIT, "-o", tmp_path / "f.onnx", "--plan", path), 1, str(path))


def test_a_plan_is_never_written_over_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(VIT.read_bytes())
    error_line(run_command("fuse", path, "-o", tmp_path / "f.onnx", "--write-plan", path), 2, "--write-plan")
    assert path.read_bytes() == VIT.read_bytes()


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=5), st.lists(st.text(max_size=5), max_size=2)
)
PLAN = plan_of(VIT)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_value_anywhere_is_read_or_refused_in_words(data: st.DataObject) -> None:
    from onnx_attn.plan_file import read_plan

    plan = copy.deepcopy(PLAN)
    place: dict[str, Any] = data.draw(st.sampled_from([plan, *plan["sites"]]))
    place[data.draw(st.sampled_from([*place, "other"]))] = data.draw(VALUES)
    said = ""
    try:
        read_plan(plan, "plan")
    except onnx_attn.UsageError as error:
        said = str(error)
    assert said.startswith(("plan:", "unknown", "--target-version", "target version")) or not said
