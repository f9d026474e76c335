"""Blocks of every kind: whatever of them comes into window order, they compute the same, and no rewriting is taken back."""

from __future__ import annotations

from typing import Any

import numpy as np
from graphs import Net
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from row_nodes import ANY_RANK, EACH_ROW, MIX_ROWS
from window_blocks import Hook, Residual, calls, ordered
from windows import ROLLS

SINGLE_ONLY = ("instance norm", "depthwise convolution")
"""Those that ONNX Runtime does not compute in float64."""
PLACES = ["x", "normed", "landed", "added", "out"]


def readers(rank: int) -> dict[str, Hook]:
    def read_too(net: Net, value: str) -> str:
        net.output(net.op("Exp", value), rank)
        return value

    def asked(net: Net, value: str) -> str:
        net.output(net.op("Shape", value), 1, dtype=np.int64)
        return value

    def given_out(net: Net, value: str) -> str:
        value = net.op("Tanh", value)
        net.output(value, rank)
        return value

    return {"read": read_too, "asked": asked, "given out": given_out}


class Block(Residual):
    """Prints as what it was made of, with the names of its hooks."""

    made_of: dict[str, Any]

    def __repr__(self) -> str:
        return repr(self.made_of)


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    edges, window = draw(
        st.sampled_from([((8, 8), (4, 4)), ((8, 8), (2, 4)), ((4, 8), (4, 4)), ((6, 4), (3, 2)), ((4, 4), (4, 4))])
    )
    pads = draw(st.sampled_from([(0, 0, 0, 0)] * 3 + [(0, window[0], 0, 0), (1, window[0] - 1, 0, window[1])]))
    rows, full = draw(st.booleans()), edges == (8, 8)
    fitting = (
        [*readers(3), *ANY_RANK] + ([] if rows else list(EACH_ROW)) + (list(MIX_ROWS) if full and not rows else [])
    )
    fitting = [name for name in fitting if name not in SINGLE_ONLY and (full or name != "a Gemm")]
    chosen = draw(st.dictionaries(st.sampled_from(PLACES), st.sampled_from(fitting), max_size=2))
    count = draw(st.integers(1, 3))
    if count > 1 or len(chosen) > 1:  # Inputs of one name stand once.
        chosen = {place: name for place, name in chosen.items() if name not in ("an input", "a bound from outside")}
    made_of: dict[str, Any] = {
        "edges": edges,
        "window": window,
        "pads": pads,
        "rows": rows,
        "blocks": count,
        "shift": (draw(st.integers(0, window[0] - 1)), draw(st.integers(0, window[1] - 1))),
        "roll": draw(st.sampled_from(list(ROLLS))),
        "pad_first": draw(st.booleans()),
        "strided": draw(st.booleans()),
        "norm": draw(st.sampled_from(["front", "behind", "none"])),
        "mlp": draw(st.booleans()),
        "layer": draw(st.sampled_from(["MatMul", "MatMul", "Gemm"])),
        "batch": draw(st.sampled_from(["batch", "batch", 1, 3])),
        "named": draw(st.booleans()),
        "dtype": np.float64,  # Without norms, three blocks lose half of float32's digits by themselves.
        "hooks": chosen,
    }
    nodes = EACH_ROW | MIX_ROWS | readers(3 if rows else 4)
    hooks = {place: nodes[name] for place, name in chosen.items()}
    block = Block(**(made_of | {"roll": ROLLS[made_of["roll"]], "hooks": hooks}))
    block.made_of = made_of
    return block


@settings(max_examples=25, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(blocks(), st.sampled_from(["function", "function", "primitives"]), st.booleans())
def test_every_block_computes_the_same(block: Block, form: str, verify: bool) -> None:
    fused, done = ordered(block.model(), form=form, verify=verify)
    assert len(done) == block.blocks
    wanted = sum(done) if form == "function" else 0
    assert [calls(fused).count(name) for name in ("WindowPartition", "WindowReverse")] == [wanted, wanted]
