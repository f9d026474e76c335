"""Statistics of real exports, before and after fusing, and of one model in several forms."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from commands import NO_ATTENTION, run_command
from graphs import Net, heads_in
from runtime_nodes import D, S, multi_head
from support import EXPORTS, Export, exports

import onnx_attn

SLOW = ("mha*.torchscript.*.dynamic*", "encoder_layer.torchscript.17.dynamic*", "swin_v2_t*")
"""Whose frozen sizes take long to be found."""
PAIRS = (
    "bert.dynamo.23.dynamic",
    "bert.torchscript.17.dynamic",
    "clip_text.torchscript.17.static",
    "crossvit_9.dynamo.18.dynamic.eager",
    "davit_tiny.dynamo.23.dynamic",
    "decoder_layer.torchscript.17.static",
    "gpt2_no_mask.dynamo.18.dynamic",
    "gqa_block.dynamo.23.dynamic",
    "hf_swin.dynamo.18.dynamic.eager",
    "llama.dynamo.18.dynamic.eager",
    "mha_bias_kv.dynamo.18.static",
    "mha_padding.dynamo.20.dynamic",
    "mha_weights.torchscript.17.static",
    "swin_t.dynamo.18.static.half",
    "t5_encoder.dynamo.23.static",
    "vit_b_16.torchscript.17.static.half",
    "whisper_encoder.dynamo.23.static.half",
)
STATIC = EXPORTS / "vit_b_16.torchscript.17.static.onnx"


def quick(export: Export) -> bool:
    return not any(export.path.match(pattern) for pattern in SLOW)


@pytest.mark.parametrize("export", filter(quick, exports()), ids=lambda export: export.path.stem)
def test_every_node_has_one_role_and_every_site_its_operations(export: Export) -> None:
    report = onnx_attn.stats(export.path)
    nodes = report["nodes"]
    assert sum(nodes["by_role"].values()) == nodes["total"]
    by_operator = [count for roles in nodes["by_operator"].values() for count in roles.values()]
    assert sum(by_operator) == nodes["total"]
    assert report["sites"] == len(report["per_site"]) == len(report["operations_exposed"]) == export.true_sites
    assert sum(report["operations_exposed"]) <= nodes["by_role"]["attention"]
    assert all(count >= 1 for count in report["operations_exposed"])
    assert report["flops"]["reason"] is None
    assert report["flops"]["uncounted"] == {}
    assert report["memory"]["scores"] or not export.true_sites


def pair(name: str, **options: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    result = onnx_attn.fuse(EXPORTS / f"{name}.onnx", verify=False, **options)
    return onnx_attn.stats(EXPORTS / f"{name}.onnx"), onnx_attn.stats(result.model), result.report


@pytest.mark.parametrize("name", PAIRS)
def test_fusing_changes_no_product(name: str) -> None:
    """Elementwise operations and S×S tensors may go: scales move from the scores to Q, or into weights."""
    before, after, report = pair(name)
    assert after["flops"]["products"] == before["flops"]["products"]
    assert after["flops"]["by_role"]["attention"] == before["flops"]["by_role"]["attention"]
    assert after["sites"] == before["sites"]
    if report["fused"] == report["sites"]:
        assert after["nodes"]["by_role"]["attention"] < before["nodes"]["by_role"]["attention"] or ".23." in name
    assert sum(after["nodes"]["by_role"].values()) == after["nodes"]["total"] == report["nodes_after"]


@pytest.mark.parametrize("name", PAIRS)
def test_report_of_fuse_has_the_figures_of_stats(name: str) -> None:
    before, after, report = pair(name)
    for full, short in ((before, report["stats"]["before"]), (after, report["stats"]["after"])):
        assert short["nodes"] == full["nodes"]["total"]
        assert short["by_role"] == full["nodes"]["by_role"]
        assert short["operations_exposed"] == full["operations_exposed"]
        assert short["parameters"] == full["parameters"]["count"]
        if full["sizes"] is None:
            assert short["flops"] is short["memory"] is None
        else:
            assert short["flops"]["products"] == full["flops"]["products"]
            assert short["memory"] == full["memory"]
    moved = before["nodes"]["by_role"]["movement"] - after["nodes"]["by_role"]["movement"]
    assert report["stats"]["removed"]["movement"] == moved


def test_what_is_removed() -> None:
    removed = onnx_attn.fuse(STATIC, verify=False).report["stats"]["removed"]
    memory = onnx_attn.stats(STATIC)["memory"]
    assert removed["scores"] == memory["scores"] > 0
    assert removed["movement"] > 0


@pytest.mark.parametrize("options", [{}, {"form": "primitives"}], ids=["function", "primitives"])
def test_nothing_to_fuse_removes_nothing(options: dict[str, Any]) -> None:
    stats = onnx_attn.fuse(NO_ATTENTION, verify=False, **options).report["stats"]
    assert stats["before"] == stats["after"]
    assert stats["removed"] == {"scores": 0, "movement": 0}


def test_model_without_a_softmax_pays_for_nothing() -> None:
    report = onnx_attn.fuse(next(iter(exports("convnext_tiny*"))).path, verify=False).report
    assert report["stats"] is None


FORMS = ("sdpa", "sdpa_mask", "sdpa_mask_bool", "sdpa_causal", "sdpa_gqa")
"""On inputs, so that no form can put its scale into weights."""


@pytest.mark.parametrize("name", FORMS)
def test_one_site_in_three_forms_costs_the_same(name: str) -> None:
    path = next(iter(exports(f"{name}.dynamo.23.*"))).path
    found = [
        onnx_attn.stats(onnx_attn.fuse(path, form=form, target="onnx", verify=False).model)
        for form in ("function", "attention", "primitives")
    ]
    assert [each["per_site"][0]["written_as"].partition("_Mask")[0] for each in found][1:] == [
        "Attention",
        "primitives",
    ]
    assert [each["operations_exposed"][0] for each in found][:2] == [1, 1]
    assert found[2]["operations_exposed"][0] >= 5
    for each in found[1:]:
        assert each["flops"]["products"] == found[0]["flops"]["products"]
        assert each["flops"]["elementwise"] == found[0]["flops"]["elementwise"]
        assert each["per_site"][0]["memory"] == found[0]["per_site"][0]["memory"]


def test_operators_of_onnx_runtime_before_and_what_was_written_for_them(tmp_path: Any) -> None:
    model = multi_head((2, S, D), (2, S, D), (2, S, D)).model()
    stats = onnx_attn.fuse(model, verify=False).report["stats"]
    assert stats["before"]["operations_exposed"] == [1]
    assert stats["before"]["flops"]["products"] == stats["after"]["flops"]["products"]


def test_batch_that_becomes_dynamic_is_counted_as_it_was() -> None:
    net = Net()
    q, kt, v = heads_in(net)
    net.output(net.sdpa(q, kt, v))
    stats = onnx_attn.fuse(net.model(), verify=False, dynamic_batch=True).report["stats"]
    assert stats["before"]["flops"]["products"] == 9600
    assert stats["after"]["flops"] is None


def test_fuse_says_what_is_gone(tmp_path: Any) -> None:
    out = run_command("fuse", STATIC, "-o", tmp_path / "fused.onnx", "--no-verify").stdout
    line = next(line for line in out.splitlines() if line.startswith("counts"))
    assert "→ 1 operations" in line
    assert "of scores no longer written out" in line


def test_table_of_models() -> None:
    script = EXPORTS.parent.parent / "tools" / "count_table.py"
    done = subprocess.run([sys.executable, script, STATIC], capture_output=True, text=True, check=True)
    head, _, exported, expanded, fused = [line.split(" | ") for line in done.stdout.splitlines()]
    assert len(head) == len(exported) == len(expanded) == len(fused)
    assert exported[:3] == [STATIC.name, "186", "28"]
    assert expanded[0::2][:2] == ["expanded", "10"]
    assert fused[:3] == ["fused", "82", "2"]
