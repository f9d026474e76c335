"""What a certificate tells, that it can be checked again by others, and what a budget for the proof leaves out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checks import same_bytes
from commands import error_line, run_command
from graphs import Net, small_site
from onnx import numpy_helper
from support import EXPORTS
from test_proof import scale_by, spoiled

import onnx_attn
from onnx_attn import decided
from onnx_attn.prove import reduced

BERT = EXPORTS / "bert.torchscript.17.dynamic.onnx"
VIT_HALF = EXPORTS / "vit_b_16.torchscript.17.static.half.onnx"


def certificates(report: dict[str, Any]) -> list[dict[str, Any]]:
    return [each["certificate"] for each in report["candidates"]]


def test_a_certificate_tells_every_input_beside_the_originals_own_error() -> None:
    told = certificates(onnx_attn.fuse(onnx.load(BERT)).report)[0]
    assert told["sizes"] == [{"batch": 2, "sequence": 5}, {"batch": 3, "sequence": 7}]
    kinds = ["random", "large", "blocked", "row-inf", "row-lowest"]
    assert [(each["kind"], each["at"]) for each in told["inputs"]] == [(kind, at) for at in (0, 1) for kind in kinds]
    for each in told["inputs"]:
        assert each["float64"] < 1e-12
        if each["kind"] != "large":
            assert 0 < each["max_rel"] < 1e-6
            assert 0 < each["error_after"] < 2 * each["error_before"] < 4e-6
    assert told["error_against_float64"]["after"]["max_rel"] == max(each["error_after"] or 0 for each in told["inputs"])


def test_half_precision_is_tried_at_its_extremes() -> None:
    for told in certificates(onnx_attn.fuse(onnx.load(VIT_HALF)).report):
        assert [each["kind"] for each in told["inputs"]] == ["random", "large", "extremes"]
        assert told["inputs"][2]["max_rel"] <= told["bound"]


def test_values_as_large_as_half_precision_holds_are_tried() -> None:
    """A V of 3e4 that is doubled on its way would be infinite: the site says what the original says."""
    model = small_site(dtype=np.float16)
    told = certificates(onnx_attn.fuse(model).report)[0]
    extremes = next(each for each in told["inputs"] if each["kind"] == "extremes")
    assert 0 <= extremes["max_rel"] <= told["bound"]


def fused(tmp_path: Path, source: Path, *options: str) -> tuple[Path, Path]:
    out, report = tmp_path / "fused.onnx", tmp_path / "report.json"
    assert run_command("fuse", source, "-o", out, "--json", report, *options).code == 0
    return out, report


@pytest.mark.parametrize("source", [BERT, VIT_HALF], ids=lambda path: path.stem)
def test_certificates_are_checked_again(source: Path, tmp_path: Path) -> None:
    out, report = fused(tmp_path, source)
    done = run_command("verify", source, out, "--certificate", report, "--json", tmp_path / "checked.json")
    assert done.code == 0, done.stderr
    found = json.loads((tmp_path / "checked.json").read_text())["certificates"]
    assert [each["ok"] for each in found] == [True, True]
    assert all(each["cases"] and each["error_against_float64"]["after"]["max_rel"] < each["bound"] for each in found)


def test_a_site_that_was_changed_afterwards_is_named(tmp_path: Path) -> None:
    out, report = fused(tmp_path, BERT)
    model = onnx.load(out)
    calls = [node for node in model.graph.node if node.domain == "onnx_attn"]
    next(each for each in calls[1].attribute if each.name == "scale").f *= 1.01
    onnx.save(model, out)
    # As large a bound for the whole model as hides it: the certificate of the site does not.
    done = run_command("verify", BERT, out, "--certificate", report, "--rtol", "1", "--verbose")
    assert "at site-1, whose certificate does not hold" in error_line(done, 4, str(out))
    assert "site-0 /model/encoder/layer.0/attention/self/Softmax holds" in " ".join(done.stdout.split())


def test_a_site_between_values_that_were_made_on_the_way_is_left_to_the_whole_model(tmp_path: Path) -> None:
    out, report = fused(tmp_path, EXPORTS / "swin_t.dynamo.18.static.half.onnx")
    done = run_command("verify", EXPORTS / "swin_t.dynamo.18.static.half.onnx", out, "--certificate", report)
    assert done.code == 0
    assert " ".join(done.stdout.split()).count("not checked by itself 'node_softmax") == 2


def test_what_is_no_report_is_told(tmp_path: Path) -> None:
    out, _ = fused(tmp_path, BERT, "--no-verify")
    other = tmp_path / "other.json"
    for text, words in (
        ("{}", "is no report with certificates"),
        ("[", "is no JSON"),
        ('{"candidates": [3]}', "no report"),
    ):
        other.write_text(text)
        error_line(run_command("verify", BERT, out, "--certificate", other), 2, words)
    error_line(run_command("verify", BERT, out, "--certificate", tmp_path / "none.json"), 1, "cannot be read")


def test_beyond_the_budget_one_site_stands_for_those_like_it(tmp_path: Path) -> None:
    out, report = fused(tmp_path, BERT, "--prove-budget", "0")
    first, second = certificates(json.loads(report.read_text()))
    assert (first["like"], first["cases"]) == (None, 10)
    assert (second["like"], second["cases"], second["inputs"]) == (
        "/model/encoder/layer.0/attention/self/Softmax",
        0,
        [],
    )
    # It names its own place, and holds there.
    found = onnx_attn.verify(BERT, out, certificate=report)["certificates"]
    assert [(each["ok"], each["cases"]) for each in found] == [(True, 8), (True, 8)]


def test_sites_that_are_not_alike_are_proved_whatever_the_budget() -> None:
    report = onnx_attn.fuse(onnx.load(EXPORTS / "swin_t.dynamo.18.static.half.onnx"), prove_budget=0).report
    assert [each["like"] for each in certificates(report)] == [None, None]


def test_a_site_that_failed_stands_for_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decided, "write_site", spoiled(scale_by(1.01), site=0))
    report = onnx_attn.fuse(onnx.load(EXPORTS / "vit_b_16.torchscript.17.static.onnx"), prove_budget=0).report
    assert [(each["status"], each["code"]) for each in report["candidates"]] == [
        ("refused", "proof-failed"),
        ("site", None),
    ]
    assert [each["like"] for each in certificates(report)] == [None, None]


def test_a_rounded_scale_is_proved_only_as_what_it_was_rounded_from(monkeypatch: pytest.MonkeyPatch) -> None:
    model = onnx.load(EXPORTS / "handwritten.dynamo.18.static.half.onnx")
    assert certificates(onnx_attn.fuse(model, algebra=False).report)[0]["float64"]["max_rel"] < 1e-6
    monkeypatch.setattr(decided, "write_site", spoiled(scale_by(1.01), site=0))
    assert onnx_attn.fuse(model, algebra=False).report["candidates"][0]["code"] == "proof-failed"


def test_a_budget_without_a_proof_is_wrong_usage() -> None:
    for options in ({"verify": False, "prove_budget": 1.0}, {"prove_budget": -1.0}, {"prove_budget": float("nan")}):
        with pytest.raises(onnx_attn.UsageError, match="prove_budget"):
            onnx_attn.fuse(onnx.load(BERT), **options)  # type: ignore[arg-type]


def test_weights_of_one_kind_of_site_may_differ() -> None:
    """Sites are alike by operators, types and shapes: twelve layers are one kind."""
    model = onnx.load(BERT)
    for tensor in model.graph.initializer[:3]:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.5, tensor.name))
    told = certificates(onnx_attn.fuse(model, prove_budget=0).report)
    assert [each["like"] is None for each in told] == [True, False]


def long_site(length: int, scale: float = 0.25, mask: bool = False) -> onnx.ModelProto:
    """A layer on a sequence of one length that is no multiple of anything else, its mask stored."""
    net = Net(17)
    x = net.input("x", 1, length, 20)
    heads = [
        net.op(
            "Transpose",
            net.op("Reshape", net.op("MatMul", x, net.weight(20, 48)), net.ints(1, length, 2, 24)),
            perm=[0, 2, 1, 3],
        )
        for _ in "qkv"
    ]
    blocked = net.const(np.where(np.tri(length), 0, -np.inf)) if mask else ""

    def scores(value: str) -> str:
        value = net.op("Mul", value, net.const(scale))
        return net.op("Add", value, blocked) if mask else value

    y = net.sdpa(heads[0], net.op("Transpose", heads[1], perm=[0, 1, 3, 2]), heads[2], scores=scores)
    net.output(net.op("Reshape", net.op("Transpose", y, perm=[0, 2, 1, 3]), net.ints(1, length, 48)), 3)
    return net.model()


@pytest.mark.parametrize("mask", [False, True], ids=["plain", "masked"])
def test_a_site_that_is_too_large_is_proved_at_shorter_lengths(mask: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = long_site(257, mask=mask)
    as_it_is = onnx_attn.fuse(model)
    monkeypatch.setattr(reduced, "MOST_BYTES", 2**20)
    result = onnx_attn.fuse(model)
    (told,) = certificates(result.report)
    assert told["ok"] and told["reduced"] == {"257": 36}
    assert certificates(as_it_is.report)[0]["reduced"] is None
    assert same_bytes(result.model, as_it_is.model)
    monkeypatch.setattr(decided, "write_site", spoiled(scale_by(1.01), site=0))
    (refused,) = onnx_attn.fuse(model).report["candidates"]
    assert refused["code"] == "proof-failed"


def test_a_site_that_fits_neither_as_it_is_nor_shorter_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """All heads are three times as wide as the sequence is long: with fewer tokens they would not come apart."""
    model = long_site(16)
    monkeypatch.setattr(reduced, "MOST_BYTES", 2**10)
    assert certificates(onnx_attn.fuse(model).report)[0]["reduced"] is None
    monkeypatch.setattr("onnx_attn.prove.site.free_bytes", lambda: 0)
    (refused,) = onnx_attn.fuse(model).report["candidates"]
    assert refused["code"] == "unprovable-here"
    assert "GB to compare, and at shorter lengths" in refused["reason"]


def test_a_model_whose_scores_are_too_large_is_run_whole_on_request_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = long_site(257)
    monkeypatch.setattr("onnx_attn.options.MOST_SCORES", 2**20)
    report = onnx_attn.fuse(model).report
    assert report["proof"] is None and "only with --verify-large" in report["proof_left"]
    assert certificates(report)[0]["ok"]
    report = onnx_attn.fuse(model, verify_large=True).report
    assert report["proof"]["ok"] and report["proof_left"] is None
