"""Every combination of spellings of rotary embeddings is read for what it is, and written so that it computes the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rotary import Rotation, block

import onnx_attn

MISSES = ("sign", "both signs", "partner", "tables not alike", "swapped", "another source")


@st.composite
def rotations(draw: st.DrawFn) -> Rotation:
    """Near misses are drawn of the spelling that has them all, with tables that can be told apart."""
    spelling = draw(st.sampled_from(["turned", "halves", "products", "operator"]))
    tables = ["stored", "looked up", "computed", "one by one", "given"]
    rotation = Rotation(
        draw(st.sampled_from(["half", "interleaved"])),
        draw(st.sampled_from([24, 8])),
        spelling,
        draw(st.sampled_from(tables)),
        transposed=draw(st.booleans()) and spelling != "operator",
        scale=draw(st.sampled_from([1.0, 1.0, 0.3, -2.0])),
    )
    if spelling == "turned" and rotation.tables not in ("given", "one by one") and draw(st.booleans()):
        return replace(rotation, miss=draw(st.sampled_from(MISSES)))
    return rotation


def seen(rotation: Rotation | None) -> tuple[str, int] | None:
    """What is to be read of an operand; of tables that are given nobody knows whether their halves are equal."""
    if rotation is None or rotation.miss:
        return None
    unknown = rotation.tables == "given" and rotation.spelling in ("turned", "products")
    return None if unknown else (rotation.kind, rotation.dim)


def told(found: dict[str, Any] | None, role: str) -> tuple[str, int] | None:
    if found is None or role not in found["of"]:
        return None
    own = found if found["kind"] is not None else found[role]
    return own["kind"], own["dim"]


@settings(max_examples=40, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.none() | rotations(), rotations(), st.booleans(), st.booleans())
def test_every_spelling_is_what_it_is(query: Rotation | None, key: Rotation, wide: bool, past: bool) -> None:
    query, key = (widened(each, wide) for each in (query, key))
    model = block(query, key, np.float16 if wide else np.float32, past)
    result = onnx_attn.fuse(model, target="onnx")
    (site,) = result.report["candidates"]
    assert result.report["fused"] == 1 and result.report["proof"]["ok"] and not site["changes_left"]
    assert told(site["rotary"], "query") == seen(query)
    assert told(site["rotary"], "key") == seen(key)
    operators = [node for node in result.model.graph.node if node.op_type == "RotaryEmbedding"]
    assert len(operators) == written(query) + written(key)


def widened(rotation: Rotation | None, wide: bool) -> Rotation | None:
    """In half precision rotated in float32, where that is spelled out, and by tables that are known to be 1 at most."""
    if rotation is None or not wide:
        return rotation
    tables = "looked up" if rotation.tables == "given" else rotation.tables
    return replace(rotation, wide=rotation.spelling != "operator", tables=tables)


def written(rotation: Rotation | None) -> bool:
    return rotation is not None and (seen(rotation) is not None or rotation.spelling == "operator")
