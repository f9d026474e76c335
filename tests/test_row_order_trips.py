"""Between blocks that cut a map into the same windows, rows stay in these."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from graphs import WIDTH
from support import max_rel, run
from window_blocks import Residual

import onnx_attn


def stacked(*blocks: Residual) -> onnx.ModelProto:
    net, value = blocks[0].begin()
    for block in blocks:
        value = block.whole(net, value)
    net.output(net.op("Sigmoid", value), 4)
    return net.model()


def moved(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type.split("_")[0] for node in model.graph.node if node.op_type.startswith("Window"))


CASES = {
    "twice the same": ((Residual(), Residual()), 1),
    "twice the same, shifted": ((Residual(shift=(2, 2)), Residual(shift=(2, 2))), 1),
    "three times": ((Residual(), Residual(), Residual()), 1),
    "shifted in between": ((Residual(), Residual(shift=(2, 2)), Residual()), 3),
    "other windows": ((Residual(), Residual(window=(2, 4))), 2),
    "padded": ((Residual((7, 6), pads=(0, 1, 0, 2)), Residual((7, 6), pads=(0, 1, 0, 2))), 2),
}


@pytest.mark.parametrize("form", ["function", "primitives"])
@pytest.mark.parametrize("name", CASES)
def test_rows_move_only_where_the_windows_change(name: str, form: str) -> None:
    blocks, times = CASES[name]
    model = stacked(*blocks)
    result = onnx_attn.fuse(model, form=form)
    assert all("tokens-first" in site["changes"] for site in result.report["candidates"]), result.report
    if form == "function":
        assert moved(result.model) == {"WindowPartition": times, "WindowReverse": times}
    else:
        assert not moved(result.model)
    for batch in (1, 3):
        shape = (batch, *blocks[0].edges, WIDTH)
        inputs = {"picture": np.random.default_rng(batch).standard_normal(shape).astype(np.float32)}
        assert max_rel(run(model, inputs), run(result.model, inputs)) <= 1e-5


def test_a_map_that_somebody_else_reads_is_moved_back_all_the_same() -> None:
    net, value = Residual().begin()
    between = Residual().whole(net, value)
    net.output(net.op("Sigmoid", Residual().whole(net, between)), 4)
    net.output(between, 4)
    model = net.model()
    fused = onnx_attn.fuse(model).model
    assert moved(fused) == {"WindowPartition": 1, "WindowReverse": 2}
    inputs = {"picture": np.random.default_rng(0).standard_normal((2, 8, 8, WIDTH)).astype(np.float32)}
    assert max_rel(run(model, inputs), run(fused, inputs)) <= 1e-5
