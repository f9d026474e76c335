"""Between blocks that cut a map into the same windows, rows stay in these."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from graphs import WIDTH, Net, self_attention
from support import max_rel, run
from windows import Block

import onnx_attn


def residual(net: Net, block: Block, value: str, number: int) -> str:
    """`(B, H, W, E)`: x + out-projection(attention in windows of LayerNorm(x)), moved back, then x + a layer of its own."""
    normed = net.op("LayerNormalization", value, net.weight(WIDTH), net.weight(WIDTH), axis=-1)
    attended = self_attention(net, block.cut_map(net, normed), name=f"softmax_{number}")
    (height, width), (rows, columns) = block.edges, block.window
    top, bottom, left, right = block.pads
    height, width = height + top + bottom, width + left + right
    apart = net.reshape(attended, -1, height // rows, width // columns, rows, columns, WIDTH)
    back = net.reshape(net.turn(apart, 0, 1, 3, 2, 4, 5), -1, height, width, WIDTH)
    for axis, (shift, size) in enumerate(zip(block.shift, (height, width), strict=True), 1):
        back = block.roll(net, back, axis, size - shift, size) if shift else back
    if any(block.pads):
        back = net.op("Slice", back, net.ints(top, left), net.ints(height - bottom, width - right), net.ints(1, 2))
    value = net.op("Add", value, back)
    return net.op("Add", value, net.op("Relu", net.linear(value, WIDTH)))


def stacked(*blocks: Block) -> onnx.ModelProto:
    net, value = blocks[0].start()
    for number, block in enumerate(blocks):
        value = residual(net, block, value, number)
    net.output(value, 4)
    return net.model()


def moved(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type.split("_")[0] for node in model.graph.node if node.op_type.startswith("Window"))


CASES = {
    "twice the same": ((Block(), Block()), 1),
    "twice the same, shifted": ((Block(shift=(2, 2)), Block(shift=(2, 2))), 1),
    "three times": ((Block(), Block(), Block()), 1),
    "shifted in between": ((Block(), Block(shift=(2, 2)), Block()), 3),
    "other windows": ((Block(), Block(window=(2, 4))), 2),
    "padded": ((Block((7, 6), pads=(0, 1, 0, 2)), Block((7, 6), pads=(0, 1, 0, 2))), 2),
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
    net, value = Block().start()
    between = residual(net, Block(), value, 0)
    net.output(residual(net, Block(), between, 1), 4)
    net.output(between, 4)
    model = net.model()
    fused = onnx_attn.fuse(model).model
    assert moved(fused) == {"WindowPartition": 1, "WindowReverse": 2}
    inputs = {"picture": np.random.default_rng(0).standard_normal((2, 8, 8, WIDTH)).astype(np.float32)}
    assert max_rel(run(model, inputs), run(fused, inputs)) <= 1e-5
