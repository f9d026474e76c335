"""Near misses: each is read as the table says, and what is fused computes the same."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from checks import assert_same, run, same_bytes
from fuzzing import LOOSE, values
from near_misses import FOLDER, outcome, paths, table

from onnx_attn import CODES
from onnx_attn.graph.load import check

TABLE = table()


def test_the_table_tells_of_every_model() -> None:
    assert [path.stem for path in paths()] == sorted(TABLE)
    codes = {each.get("code") for said in TABLE.values() for each in said.get("candidates", ())}
    assert codes - {None} <= CODES.keys()


@pytest.mark.parametrize("name", sorted(TABLE))
def test_near_miss(name: str) -> None:
    model = onnx.load(FOLDER / f"{name}.onnx")
    said, fused = outcome(model)
    assert said == TABLE[name]
    if fused is None:
        return
    check(fused, name)
    if same_bytes(model, fused):
        return
    try:
        inputs = values(model, seed=0)
        before = run(model, inputs)
    except Exception:
        return  # What ONNX Runtime has no kernel for is told of all the same.
    if all(np.isfinite(each).all() for each in before if each.dtype.kind == "f"):
        assert_same(model, fused, inputs, LOOSE)
