"""The table of targets: every row is sound and reads off real graphs, and look-ups follow it."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from commands import SMALLEST, run_command
from graphs import HEAD_DIM, HEADS, WIDTH, Net, small_site
from onnx import TensorProto
from support import EXPORTS
from target_cases import model_of

import onnx_attn
from onnx_attn.codes import CODES
from onnx_attn.graph.view import GraphView
from onnx_attn.recognize.candidates import recognize
from onnx_attn.targets.__main__ import page as made
from onnx_attn.targets.editions import EVERY, ONNX, RTX, TRT_8_6, TRT_10_0, TRT_10_14, TRT_11, parse_target
from onnx_attn.targets.facts import PLAIN, Facts
from onnx_attn.targets.lookup import WRITTEN, choose_form, explain, landing, lands_best
from onnx_attn.targets.reading import facts_of, standing_form
from onnx_attn.targets.rows import FORMS, Documented, Example, Measured, Row
from onnx_attn.targets.table import TABLE

RTX_TARGET = parse_target("tensorrt", "rtx")
EXAMPLES = [
    pytest.param(row, example, id=f"{row.name}-{example.form}-{number}")
    for row in TABLE
    for number, example in enumerate(row.examples)
]


def test_row_names_tell_rows_apart() -> None:
    assert [name for name, count in Counter(row.name for row in TABLE).items() if count > 1] == []


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_a_row_is_sound(row: Row) -> None:
    known = {field.name for field in fields(Facts)} | {"matrices", "grouping", "single_query", "decomposable"}
    known |= {"narrow", "steps_inside"}
    assert row.editions and row.forms
    assert set(row.editions) | set(row.presumed) <= set(EVERY) and not set(row.editions) & set(row.presumed)
    assert set(row.forms) <= set(FORMS) and row.when.keys() <= known
    assert row.code is None or row.code in CODES
    assert bool(row.reason) == (row.outcome != "lands")
    if isinstance(row.evidence, Measured):
        assert {example.form for example in row.examples} == set(row.forms), (
            "a measured row is tried in each of its forms"
        )
    else:
        assert isinstance(row.evidence, Documented) and row.evidence.address.startswith("https://")


@pytest.mark.parametrize(("row", "example"), EXAMPLES)
def test_a_row_holds_for_its_examples_as_they_are_read_off_the_graph(row: Row, example: Example) -> None:
    facts = replace(PLAIN, **example.facts)
    assert row.matches(example.form, facts)
    if row.name in ("bfloat16-turing", "quantised-fp8-ampere"):
        return  # no graph tells for which device it will be compiled
    view = GraphView(model_of(facts, example.form))
    candidate = recognize(view)[0]
    if facts.code != "none":
        assert facts_of(view, candidate).code == facts.code
    assert standing_form(view, candidate) == example.form
    given = facts_of(view, candidate)
    if facts.code == "none":
        given = replace(given, code="none")  # an operator that is not rewritten can land all the same
    assert row.matches(example.form, given)


@pytest.mark.parametrize(("row", "example"), EXAMPLES)
def test_the_severest_row_is_the_one_that_the_example_is_for(row: Row, example: Example) -> None:
    if RTX not in row.editions or row.evidence == Measured("onnx 1.23.2"):
        return
    found = explain(RTX_TARGET, example.form, replace(PLAIN, **example.facts))
    assert (found.outcome if found else "lands") == ("lands" if row.outcome == "costs" else row.outcome)


@pytest.mark.parametrize(
    ("row", "example"),
    [case for case in EXAMPLES if str(case.values[0].evidence) == "measured with onnx 1.23.2"],  # type: ignore[union-attr]
)
def test_the_checker_refuses_what_the_standard_does_not_have(row: Row, example: Example) -> None:
    facts = replace(PLAIN, **example.facts)
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model_of(facts, example.form), full_check=True)
    later = model_of(replace(facts, opset=25), example.form)
    onnx.checker.check_model(later, full_check=True)


def operator(mask: bool = False, projected: bool = False, **attrs: float) -> onnx.ModelProto:
    """One `Attention` node in half precision, on model inputs or behind three projections."""
    net = Net(23, np.float16)
    if projected:
        x = net.input("x", 2, 5, WIDTH)
        given = [net.split_heads(net.linear(x, HEADS * HEAD_DIM)) for _ in range(3)]
    else:
        given = [net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv"]
    if mask:
        given.append(net.input("mask", 2, 1, 5, 5, dtype=bool))
    net.output(net.op("Attention", *given, name="softmax", **attrs))
    return net.model()


@pytest.mark.parametrize("version", ["rtx", "10.14", "10.16.1", "11.0"])
def test_an_operator_that_lands_where_it_stands_is_kept(version: str) -> None:
    model = operator()
    result = onnx_attn.fuse(model, target_version=version)
    (candidate,) = result.report["candidates"]
    assert (candidate["status"], candidate["form"], candidate["packed"]) == ("site", "attention", False)
    assert candidate["landing"]["expected"] and result.report["fused"] == 1
    assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)


def test_a_file_whose_operators_are_kept_keeps_its_bytes(tmp_path: Path) -> None:
    onnx.save(operator(), tmp_path / "a.onnx")
    onnx_attn.fuse(tmp_path / "a.onnx", tmp_path / "b.onnx", target_version="rtx")
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()


@pytest.mark.parametrize(
    ("model", "asked"),
    [
        (operator(), {"target_version": "10.0"}),
        (operator(), {"target_version": "10.13"}),
        (operator(), {"target": "onnxruntime"}),
        (operator(), {"target": "onnx"}),
        (operator(), {"target_version": "rtx", "form": "function"}),
        (operator(scale=-1.0), {"target_version": "rtx"}),
        (operator(projected=True), {"target_version": "rtx"}),
    ],
    ids=["10.0", "10.13", "onnxruntime", "onnx", "asked for", "negative scale", "packed"],
)
def test_an_operator_that_is_better_spelled_out_is(model: onnx.ModelProto, asked: dict[str, str]) -> None:
    (candidate,) = onnx_attn.fuse(model, **asked, verify=False).report["candidates"]  # type: ignore[arg-type]
    assert candidate["form"] == "function"


def test_inspect_tells_why_a_float32_model_will_not_land() -> None:
    (candidate,) = onnx_attn.inspect(small_site())["candidates"]
    assert candidate["status"] == "site"
    assert candidate["landing"]["expected"] is False
    assert "no attention kernel exists for float32" in candidate["landing"]["reason"]
    assert "float16" in candidate["landing"]["remedy"]
    assert candidate["landing"]["evidence"].startswith("measured with tensorrt_rtx")


def test_landing_is_expected_of_a_half_precision_model() -> None:
    (candidate,) = onnx_attn.inspect(small_site(dtype=np.float16))["candidates"]
    assert candidate["landing"] == {"expected": True, "reason": None, "remedy": None, "evidence": None}


@pytest.mark.parametrize("target", ["onnx", "onnxruntime"])
def test_landing_is_said_of_tensorrt_only(target: str) -> None:
    (candidate,) = onnx_attn.inspect(small_site(), target=target)["candidates"]
    assert candidate["landing"] is None


def test_landing_is_not_known_of_what_no_row_speaks_of() -> None:
    assert landing(parse_target("tensorrt", "8.6"), "primitives", PLAIN) is None


def test_nothing_is_said_of_a_site_of_which_nothing_is_known() -> None:
    nothing = Facts()
    assert all(explain(RTX_TARGET, form, nothing) is None for form in ("function", "primitives", "contrib"))


def test_a_target_without_version_is_every_edition_from_10_0_on() -> None:
    assert parse_target("tensorrt").editions == (TRT_10_0, TRT_10_14, TRT_11, RTX)
    assert parse_target("onnx").editions == (ONNX,)


@pytest.mark.parametrize(
    ("version", "edition"),
    [
        *[("8.6", TRT_8_6), ("9.3", TRT_8_6), ("10.0", TRT_10_0), ("10.13.2", TRT_10_0), ("10.14", TRT_10_14)],
        *[("10.16", TRT_10_14), ("11", TRT_11), ("11.5.0", TRT_11), ("rtx", RTX)],
    ],
)
def test_a_version_counts_as_the_newest_edition_not_newer(version: str, edition: str) -> None:
    assert parse_target("tensorrt", version).editions == (edition,)


def test_an_opset_too_low_is_told_with_the_opset() -> None:
    row = choose_form(parse_target("tensorrt"), "auto", replace(PLAIN, opset=12))
    assert isinstance(row, Row) and row.code == "opset-too-low"
    assert row.told(replace(PLAIN, opset=12)).startswith("opset 12: what is written needs Split")


def test_what_cannot_be_written_may_land_as_it_stands() -> None:
    assert explain(RTX_TARGET, "primitives", replace(PLAIN, opset=11)) is None


@pytest.mark.parametrize(
    "row", [row for row in TABLE if row.outcome in ("rejected", "wrong")], ids=lambda row: row.name
)
def test_what_forbids_a_form_that_is_written_has_a_code_or_holds_always(row: Row) -> None:
    """Else a model that fails in every form, as bfloat16 on a device without it, would be refused for its form."""
    if set(row.forms) & set(WRITTEN):
        everywhere = {"attention", *WRITTEN} <= set(row.forms)
        assert row.code is not None or not row.when or everywhere


def test_without_a_version_an_edition_that_does_not_claim_the_opset_has_no_say() -> None:
    every = parse_target("tensorrt")
    assert every.taking(20) == every
    assert every.taking(23).editions == (TRT_10_14, TRT_11, RTX)
    assert every.taking(23).version == "10.0"
    assert parse_target("tensorrt", "10.0").taking(23).editions == (TRT_10_0,)


def test_an_operator_lands_best_only_where_each_edition_says_so() -> None:
    assert lands_best(RTX_TARGET, "attention", PLAIN)
    assert not lands_best(parse_target("tensorrt"), "attention", PLAIN)
    assert not lands_best(RTX_TARGET, "attention", replace(PLAIN, mask="boolean"))
    assert not lands_best(parse_target("onnxruntime"), "attention", PLAIN)
    assert not lands_best(RTX_TARGET, "attention", replace(PLAIN, opset=22))


def test_facts_of_a_verdict_tell_the_product_above_its_casts() -> None:
    def cast(net: Net, value: str) -> str:
        return net.op("Relu", net.op("Tanh", net.op("Cast", value, to=TensorProto.FLOAT)))

    view = GraphView(small_site(dtype=np.float16, scores=cast, probabilities=lambda net, v: net.op("Cast", v, to=10)))
    facts = facts_of(view, recognize(view)[0])
    assert (facts.code, facts.dtype, facts.head_dim, facts.softcap) == ("scores-changed", "float16", HEAD_DIM, True)


def test_a_batch_that_varies_is_one_at_least() -> None:
    """Four heads are four score matrices whatever the batch is: the kernel for one query takes them, in float32 too."""
    report = onnx_attn.inspect(EXPORTS / "gpt2_decode.torchscript.17.dynamic.onnx")
    assert [each["landing"]["expected"] for each in report["candidates"]] == [True, True]


def test_the_page_about_targets_is_the_table() -> None:
    page = Path(__file__).parents[1] / "docs/targets.md"
    assert page.read_text(encoding="utf-8") == made(), "make it again: python -m onnx_attn.targets > docs/targets.md"


@pytest.mark.parametrize("command", ["inspect", "fuse"])
def test_a_terminal_says_that_a_site_will_not_land_and_what_to_do(command: str, tmp_path: Path) -> None:
    more = ["-o", tmp_path / "fused.onnx"] if command == "fuse" else []
    outcome = run_command(command, SMALLEST, *more)
    assert "site-0 will not reach an attention kernel" in outcome.stdout
    assert "no attention kernel exists for float32" in outcome.stdout
    assert "→ fuse with --precision fp16" in outcome.stdout
    assert "will not reach" not in run_command(command, SMALLEST, *more, "--target", "onnx").stdout
