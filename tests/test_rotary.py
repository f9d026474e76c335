"""The rotary embedding of a site is read whatever spells it; what is none is left as it is."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import run_command
from rotary import Rotation, behind_channels, block, read

import onnx_attn

EXPORTS = Path(__file__).parent / "exports"
KINDS = ("half", "interleaved")


def expected(kind: str, dim: int, of: tuple[str, ...] = ("query", "key"), **more: Any) -> dict[str, Any]:
    return {"kind": kind, "dim": dim, "first": 0, "all_tokens": True, "of": list(of)} | more


@pytest.mark.parametrize(
    ("name", "rotary"),
    [
        ("llama.torchscript.17.dynamic", expected("half", 24)),
        ("mistral.dynamo.18.static", expected("half", 24)),
        ("falcon.torchscript.17.static", expected("half", 24)),
        ("phi.dynamo.23.static", expected("half", 12)),
        ("llama_decode.dynamo.23.dynamic", expected("half", 24)),
        ("gptj.dynamo.23.dynamic", expected("interleaved", 8)),
        ("cohere.dynamo.23.static.eager.half", expected("interleaved", 24)),
        ("eva02_small.torchscript.17.dynamic.eager", expected("interleaved", 24, all_tokens=False)),
        ("dinov3_small.dynamo.18.static", expected("half", 24, all_tokens=False)),
        ("bert.dynamo.23.dynamic", None),
    ],
)
def test_rotary_embeddings_of_exports(name: str, rotary: Any) -> None:
    assert [each["rotary"] for each in onnx_attn.inspect(EXPORTS / f"{name}.onnx")["candidates"]] == [rotary] * 2


@pytest.mark.parametrize("dim", [24, 8])
@pytest.mark.parametrize(("kind", "spelling"), product(KINDS, ("turned", "halves", "products", "operator")))
def test_every_spelling_is_read(kind: str, spelling: str, dim: int) -> None:
    rotation = Rotation(kind, dim, spelling)
    assert read(block(rotation, rotation)) == expected(kind, dim)


@pytest.mark.parametrize("tables", ["looked up", "computed", "given", "one by one"])
@pytest.mark.parametrize(("kind", "spelling"), product(KINDS, ("turned", "halves", "operator")))
def test_tables_may_come_from_anywhere(kind: str, spelling: str, tables: str) -> None:
    rotation = Rotation(kind, 24, spelling, tables)
    unknown = tables == "given" and spelling == "turned"  # Whether the halves of what is given are equal.
    assert read(block(rotation, rotation)) == (None if unknown else expected(kind, 24))


@pytest.mark.parametrize("change", [{"transposed": True}, {"wide": True}, {"scale": 0.3}, {"scale": -0.3}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_around_it(kind: str, change: dict[str, Any]) -> None:
    rotation = replace(Rotation(kind, 8), **change)
    dtype = np.float16 if rotation.wide else np.float32
    assert read(block(rotation, rotation, dtype)) == expected(kind, 8)


def test_operands_that_are_not_alike_are_told_apart() -> None:
    found = read(block(Rotation("half", 24), Rotation("interleaved", 8)))
    assert found["kind"] is None and found["of"] == ["query", "key"]
    assert (found["query"]["kind"], found["query"]["dim"]) == ("half", 24)
    assert (found["key"]["kind"], found["key"]["dim"]) == ("interleaved", 8)
    assert read(block(None, Rotation())) == expected("half", 24, ("key",))


def test_keys_behind_a_past() -> None:
    assert read(block(Rotation(), Rotation(), past=True)) == expected("half", 24)


def test_channels_behind_others_and_one_head_of_keys_for_all() -> None:
    model = behind_channels(Rotation("interleaved", 8, head_dim=8))
    assert read(model) == expected("interleaved", 8, first=16)
    result = onnx_attn.fuse(model, target="onnx")
    assert result.report["proof"]["ok"] and result.report["candidates"][0]["changes"] == ["rotary-embedding"]


MISSES = ("sign", "both signs", "partner", "tables not alike", "swapped", "another source")


@pytest.mark.parametrize("tables", ["stored", "computed"])
@pytest.mark.parametrize(("kind", "miss"), product(KINDS, MISSES))
def test_near_misses_are_no_rotary_embedding_and_stay_right(kind: str, miss: str, tables: str) -> None:
    rotation = Rotation(kind, 24, tables=tables, miss=miss)
    model = block(rotation, rotation)
    assert read(model) is None
    report = onnx_attn.fuse(model, target="onnx").report
    assert report["fused"] == 1 and report["proof"]["ok"]
    assert report["candidates"][0]["rotary"] is None


def test_halves_with_the_sign_of_no_rotation() -> None:
    rotation = Rotation(spelling="halves", miss="sign")
    assert read(block(rotation, rotation)) is None


def test_fused_sites_have_the_same_rotary_embedding() -> None:
    fused = onnx_attn.fuse(block(Rotation(dim=8), Rotation(dim=8)))
    assert fused.report["candidates"][0]["rotary"] == read(fused.model) == expected("half", 8)


def test_the_keys_bias_stays_in_front_of_a_rotary_embedding() -> None:
    report = onnx_attn.fuse(block(Rotation(), Rotation()), target="tensorrt", target_version="rtx").report
    assert "key-bias" not in report["candidates"][0]["algebra"] and report["proof"]["ok"]


def test_a_terminal_shows_rotary_embeddings_where_there_are_some() -> None:
    assert "half 12" in run_command("inspect", EXPORTS / "phi.dynamo.23.static.onnx").stdout
    assert " rotary " not in run_command("inspect", EXPORTS / "bert.dynamo.23.dynamic.onnx").stdout
