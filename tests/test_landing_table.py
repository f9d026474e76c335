"""The landing table in words: what each cell says, the totals, and what is flagged. Made-up notes, no torch, no compiler."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from models.cell import Cell
from models.landing import is_broken, landing_table, with_table, worse

Note = dict[str, Any]


def note(name: str = "vit", opset: int = 18, attn: Any = "sdpa", **values: Any) -> Note:
    """A cell of 12 sites: 137 → 101 kernels, 340 → 297 MB, all landed before and after."""
    cell = Cell(
        name, "dynamo" if opset > 17 else "torchscript", opset, False, attn, "full", True, True, False, "rtx", 89
    )
    measured = {
        "kernels_before": 137,
        "kernels_after": 101,
        "bytes_before": 340_000_000,
        "bytes_after": 297_000_000,
        "landed_before": 12,
        "landed_after": 12,
    }
    versions = {"torch": "2.14.1", "onnx": "1.23.2", "onnx_attn": "0.1.0", "compiler": "tensorrt_rtx 1.7.1"}
    whole = {"cell": asdict(cell), "failure": None, "true_sites": 12, "versions": versions, **measured, **values}
    return {key: value for key, value in whole.items() if value is not None or key == "failure"}


def unexported(name: str = "vit", opset: int = 17, reason: str = "no such operator") -> Note:
    nothing = dict.fromkeys(
        f"{what}_{moment}" for what in ("kernels", "bytes", "landed") for moment in ("before", "after")
    )
    return note(name, opset, **nothing, failure={"stage": "export", "reason": reason})


def test_one_row_a_model_and_one_column_an_exporter() -> None:
    text = landing_table(
        [note(opset=17, kernels_before=125), note(), note("bert", attn="eager", true_sites=2)], "2030-01-01"
    )
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert rows == [
        "| model | sites | TorchScript 17 | dynamo 18 |",
        "|---|---|---|---|",
        "| vit | 12 | 12 / 125 → 101 / 340 → 297 | 12 / 137 → 101 / 340 → 297 |",
        "| bert (eager) | 2 |  | 12 / 137 → 101 / 340 → 297 |",
    ]
    assert "Worse" not in text
    assert "Not exported" not in text


def test_small_models_keep_three_digits_and_equal_numbers_are_said_once() -> None:
    text = landing_table([note(bytes_before=1_234_567, bytes_after=1_231_000, kernels_after=137)], "2030-01-01")
    assert "| vit | 12 | 12 / 137 / 1.23 |" in text


def test_totals_are_geometric_means_over_what_compiles_both_ways_and_sums_of_sites() -> None:
    notes = [
        note("a", kernels_before=100, kernels_after=50, bytes_before=100, bytes_after=100),
        note("b", kernels_before=100, kernels_after=200, bytes_before=400, bytes_after=100, landed_before=2),
        note("c", kernels_before=None, bytes_before=None, landed_before=None, compile_before="no kernel"),
        unexported("d"),
    ]
    text = landing_table(notes, "2030-01-01")
    assert "2 of 4 cells compile both ways" in text
    assert "kernels × 1.000, bytes moved × 0.500" in text
    assert "sites on MHA kernels, all cells: 14 → 36 of 48; kernels where both compile: 200 → 250" in text


def test_failures_are_listed_with_a_short_reason_and_no_folder_of_the_machine() -> None:
    long = "In node /layer.0/attn/MatMul (/home/someone/model.onnx): " + "x" * 500
    nothing: Note = {"kernels_before": None, "bytes_before": None, "landed_before": None, "compile_before": long}
    text = landing_table([unexported(reason="aten::diff is not\nsupported"), note("mha", **nothing)], "2030-01-01")
    assert "| vit | 12 | no export |  |" in text
    assert "| mha | 12 |  | – → 12 / – → 101 / – → 297 |" in text
    assert "- vit, TorchScript 17: export: aten::diff is not supported" in text
    assert "- mha, dynamo 18: does not compile before: In node /layer.0/attn/MatMul (model.onnx): xxx" in text
    assert "/home" not in text
    assert max(map(len, text.splitlines())) < 250


def test_models_without_attention_are_no_rows() -> None:
    text = landing_table([note(), note("no_attention", true_sites=0)], "2030-01-01")
    assert "no_attention" not in text


def test_versions_target_and_date_stand_beneath() -> None:
    other = note("bert")
    other["versions"] = {**other["versions"], "torch": "2.13.0"}
    last = landing_table([note(), other], "2030-01-01").splitlines()[-1]
    assert last == "torch 2.13.0 and 2.14.1, onnx 1.23.2, onnx_attn 0.1.0, tensorrt_rtx 1.7.1; SM89; 2030-01-01."


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"kernels_after": 138}, "kernels 137 → 138"),
        ({"kernels_after": 137, "bytes_after": 340_000_049}, "bytes moved 340,000,000 → 340,000,049"),
        ({"landed_after": 11}, "sites landed 12 → 11"),
        (
            {"kernels_after": None, "bytes_after": None, "landed_after": None, "compile_after": "no kernel"},
            "compiles as exported and not fused: no kernel",
        ),
    ],
)
def test_what_fusing_made_worse_is_flagged(values: Note, told: str) -> None:
    regressed = note(**values)
    assert worse(regressed) == [told]
    assert is_broken(regressed)
    text = landing_table([regressed], "2030-01-01")
    assert f"**Worse than exported:**\n\n- vit, dynamo 18: {told}" in text
    assert "| vit | 12 | **12" in text


def test_fewer_kernels_that_move_more_bytes_are_told_and_no_broken_promise() -> None:
    dearer = note(bytes_after=340_000_049)
    assert not is_broken(dearer)
    told = "kernels 137 → 101, bytes moved 340,000,000 → 340,000,049"
    text = landing_table([dearer, note("bert")], "2030-01-01")
    assert f"Fewer kernels, more bytes moved:\n\n- vit, dynamo 18: {told}\n\n" in text
    assert "**" not in text


def test_what_is_equal_or_better_is_not_flagged() -> None:
    assert not is_broken(note())
    assert not is_broken(note(kernels_after=137, bytes_after=340_000_000))
    assert not is_broken(note(kernels_after=137, bytes_after=340_000_048)), "a scale a site, kept apart"
    assert not is_broken(note(kernels_before=None, bytes_before=None, landed_before=None, compile_before="no kernel"))


def test_torch_may_fail_to_export_and_no_other_stage_may_fail() -> None:
    assert not is_broken(unexported())
    assert is_broken(note(failure={"stage": "fuse", "reason": "DifferenceError: logits"}))


def test_the_table_goes_between_the_marks_and_nothing_else_changes() -> None:
    before, after = "# Title\n\n<!-- landing -->\n", "<!-- /landing -->\nthe end\n"
    once = with_table(f"{before}old\n{after}", "| a |\n")
    assert once == f"{before}\n| a |\n\n{after}"
    assert with_table(once, "| a |\n") == once


@pytest.mark.parametrize("text", ["", "<!-- landing -->\n", "<!-- /landing -->\n<!-- landing -->\n"])
def test_a_document_without_both_marks_in_order_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="needs one line <!-- landing --> and, after it, one line <!-- /landing -->"):
        with_table(text, "| a |")
