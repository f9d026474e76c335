"""Rotary embeddings become the standard operator where a target gains by it, each proved, and as plans say."""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import rotary as spellings
from rotary import Rotation, block

import onnx_attn
from onnx_attn.rotary import rewrite

EXPORTS = Path(__file__).parent / "exports"
CHANGE = "rotary-embedding"
RTX = {"target": "tensorrt", "target_version": "rtx"}


def operators(model: onnx.ModelProto) -> list[dict[str, Any]]:
    """The attributes of each."""
    found = [node for node in model.graph.node if node.op_type == "RotaryEmbedding"]
    return [{each.name: onnx.helper.get_attribute_value(each) for each in node.attribute} for node in found]


def fused(model: Any, **options: Any) -> Any:
    result = onnx_attn.fuse(model, **{"target": "onnx", **options})
    assert result.report["proof"]["ok"] and result.report["fused"] == result.report["sites"]
    return result


@pytest.mark.parametrize("dim", [24, 8])
@pytest.mark.parametrize(
    ("kind", "spelling", "tables"),
    product(("half", "interleaved"), ("turned", "halves"), ("stored", "looked up", "computed")),
)
def test_every_spelling_becomes_the_operator(kind: str, spelling: str, tables: str, dim: int) -> None:
    rotation = Rotation(kind, dim, spelling, tables)
    result = fused(block(rotation, rotation))
    attributes = {"interleaved": 1} if kind == "interleaved" else {}
    attributes |= {"rotary_embedding_dim": dim} if dim < 24 else {}
    assert operators(result.model) == [attributes] * 2
    assert result.report["candidates"][0]["changes"] == [CHANGE]


@pytest.mark.parametrize("tables", ["stored", "computed"])
@pytest.mark.parametrize(
    "change", [{"transposed": True}, {"wide": True}, {"scale": 0.3}, {"spelling": "products"}], ids=str
)
def test_what_stands_around_it_stays(change: dict[str, Any], tables: str) -> None:
    rotation = Rotation(**{"tables": tables, **change})
    result = fused(block(rotation, rotation, np.float16 if rotation.wide else np.float32))
    assert len(operators(result.model)) == 2
    if rotation.transposed:
        assert [each["num_heads"] for each in operators(result.model)] == [2, 2]


def test_keys_in_front_of_a_past_are_embedded_alone() -> None:
    assert len(operators(fused(block(Rotation(), Rotation(), past=True)).model)) == 2


def test_tables_that_are_given_may_be_too_large_for_half_precision() -> None:
    rotation = Rotation(spelling="halves", tables="given")
    assert len(operators(fused(block(rotation, rotation)).model)) == 2
    result = fused(block(rotation, rotation, np.float16))
    assert not operators(result.model) and "given" in result.report["candidates"][0]["changes_left"][CHANGE]


@pytest.mark.parametrize("miss", ["sign", "partner", "tables not alike", "another source"])
def test_near_misses_stay(miss: str) -> None:
    rotation = Rotation(miss=miss)
    result = fused(block(rotation, rotation))
    assert not operators(result.model) and not result.report["candidates"][0]["changes"]


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("phi.dynamo.23.static", {"rotary_embedding_dim": 12}),
        ("gptj.dynamo.23.dynamic", {"rotary_embedding_dim": 8, "interleaved": 1, "num_heads": 4}),
        ("cohere.dynamo.23.static.eager.half", {"interleaved": 1}),
    ],
)
def test_exports_take_the_operator_and_the_way_back(name: str, attributes: dict[str, int]) -> None:
    result = fused(EXPORTS / f"{name}.onnx")
    assert operators(result.model) == [attributes] * 4
    onnx.checker.check_model(result.model, full_check=True)
    again = fused(result.model)
    assert again.model == result.model
    assert again.report["candidates"][0]["rotary"] == result.report["candidates"][0]["rotary"]
    back = fused(result.model, target="tensorrt")
    assert not operators(back.model)
    assert back.report["candidates"][0]["rotary"] == result.report["candidates"][0]["rotary"]


def test_where_the_operator_is_not_known_or_costs_it_is_not_written() -> None:
    model = block(Rotation(), Rotation())
    for options in ({"target": "tensorrt"}, {"target": "tensorrt", "target_version": "10.8"}, RTX):
        assert not operators(fused(model, **options).model)
    assert not operators(fused(EXPORTS / "llama.dynamo.18.dynamic.eager.onnx").model)
    assert len(operators(fused(model, target="onnxruntime").model)) == 2


def test_a_plan_may_ask_for_it_where_it_is_known_and_leave_it() -> None:
    model = block(Rotation(), Rotation())
    asked, plan = fused(model, **RTX), {}
    for target, before, after in ((asked, [], [CHANGE]), (fused(model), [CHANGE], [])):
        plan = deepcopy(target.plan)
        assert plan["sites"][0]["changes"] == before
        plan["sites"][0]["changes"] = after
        result = onnx_attn.fuse(model, plan=plan)
        assert len(operators(result.model)) == 2 * len(after)
        assert result.report["candidates"][0]["changes"] == after


def test_one_that_fails_its_proof_stays_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "prove_piece", lambda *_: "it differs")
    result = fused(block(Rotation(), Rotation()))
    assert not operators(result.model)
    (site,) = result.report["candidates"]
    assert site["changes"] == [] and site["changes_left"] == {CHANGE: "it differs"}


def test_tables_that_are_shared_are_written_once() -> None:
    """Both operands of a half-split table that is computed: one Slice for each of cos and sin."""
    rotation = Rotation(tables="computed")
    result = fused(spellings.shared(rotation))
    assert [node.op_type for node in result.model.graph.node].count("Slice") == 2
