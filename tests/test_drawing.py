"""Drawings of sites: what they show is what the model holds, and no two nodes stand on each other."""

from __future__ import annotations

import base64
from itertools import pairwise
from xml.etree import ElementTree as Xml

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import EXPORTS

from onnx_attn.drawing.piece import draw
from onnx_attn.graph.load import load
from onnx_attn.graph.sizes import worlds_of
from onnx_attn.options import Options
from onnx_attn.pipeline import inspect_model, rewrite
from onnx_attn.report.html.layout import GAP, layered
from onnx_attn.report.html.svg import nodes_svg
from onnx_attn.report.html.window import window_picture
from onnx_attn.targets.editions import parse_target


def drawn(name: str, **options: object) -> list[dict]:
    """The drawings of an export's candidates, written for TensorRT."""
    report, _, _ = rewrite(load(EXPORTS / f"{name}.onnx"), Options(draw=True, **options))
    return [candidate["drawing"] for candidate in report["candidates"]]


def ops(drawing: dict) -> list[str]:
    return [node["op"] for node in drawing["nodes"] if node["kind"] not in ("input", "output")]


def cells(picture: dict) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(picture["cells"]), np.uint8)
    return flat.reshape(picture["rows"], picture["columns"])


def test_a_site_is_drawn_before_and_after_with_weights_and_sizes() -> None:
    first, second = drawn("vit_b_16.torchscript.17.static.half")
    assert first is second  # Layers are alike.
    assert {"MatMul", "Softmax"} <= set(ops(first["before"]))
    (call,) = [node for node in first["after"]["nodes"] if node["op"].startswith("ScaledDotProductAttention")]
    assert call["kind"] == "attention"
    assert "Softmax" in call["body"]
    packed, out = [node for node in first["after"]["nodes"] if node["kind"] == "projection"]
    assert packed["holds"] == ["float16 96×288"]
    assert out["holds"][:2] == ["float16 96×96", "float16 96"]
    assert all(node["gives"] for node in first["after"]["nodes"])
    assert not any("int64" in node["gives"] for node in first["after"]["nodes"])  # The arithmetic of shapes.


def test_sizes_that_vary_are_given_by_name() -> None:
    (drawing,) = drawn("mha_mask.torchscript.17.dynamic")
    assert any("batch" in node["gives"] for node in drawing["before"]["nodes"])


def test_what_fits_several_expressions_is_not_guessed() -> None:
    # In GPT-2's decode step keys are past + 1 long, which in both worlds is four times the batch as well.
    for drawing in drawn("gpt2_decode.torchscript.17.dynamic"):
        assert not any("4·batch" in node["gives"] for node in drawing["before"]["nodes"])


def test_of_what_is_left_alone_the_node_that_blocks_is_shown() -> None:
    report, _, _ = rewrite(load(EXPORTS / "mha_weights.dynamo.18.dynamic.onnx"), Options(draw=True))
    (candidate,) = report["candidates"]
    assert candidate["status"] == "refused"
    assert candidate["node"] in [node["name"] for node in candidate["drawing"]["before"]["nodes"]]
    marked = nodes_svg(candidate["drawing"]["before"], candidate["node"])
    assert marked.count("marked") == 1


def test_inspection_draws_without_writing() -> None:
    report = inspect_model(load(EXPORTS / "bert.torchscript.17.dynamic.onnx"), parse_target("tensorrt"), draw=True)
    drawings = [candidate["drawing"] for candidate in report["candidates"]]
    assert all(each["after"] is None and "Softmax" in ops(each["before"]) for each in drawings)


def test_a_causal_mask_is_a_triangle() -> None:
    (drawing,) = drawn("sdpa_causal.torchscript.17.static")
    ((picture,),) = drawing["masks"]
    blocked = cells(picture) == 255
    assert (blocked == np.triu(np.ones_like(blocked), 1)).all()


def test_folded_masks_are_told_by_what_made_them() -> None:
    _, second = drawn("swin_t.dynamo.18.static.half")
    said = [text for node in second["before"]["nodes"] if node["kind"] == "input" for text in node["holds"]]
    assert any(text.startswith("made by ") for text in said)
    assert [len(tables) for tables in second["masks"]] == [2, 4]  # A table for each head, and for each window.


def test_windows_of_a_rolled_map() -> None:
    picture = window_picture(
        {"size": [2, 3], "shift": [1, 0], "grid": [2, 2], "kind": "window", "padding": [[0, 0], [0, 1]]}
    )
    assert picture is not None and picture["padded"]
    # The first window holds rows 1 and 2, of the window behind it rows 3 and 0.
    assert cells(picture).tolist() == [
        [2, 2, 2, 3, 3, 5],
        [4, 4, 4, 1, 1, 5],
        [4, 4, 4, 1, 1, 5],
        [2, 2, 2, 3, 3, 5],
    ]


def test_tokens_of_a_grid_lie_apart() -> None:
    picture = window_picture({"size": [2], "shift": [0], "grid": [3], "kind": "grid", "padding": [[0, 0]]})
    assert picture is not None
    assert cells(picture).tolist() == [[4, 1, 0, 4, 1, 0]]


@st.composite
def graphs(draw_: st.DrawFn) -> tuple[list[float], list[tuple[int, int]]]:
    count = draw_(st.integers(1, 14))
    widths = draw_(st.lists(st.floats(10, 200), min_size=count, max_size=count))
    pairs = [(start, end) for end in range(count) for start in range(end)]
    return widths, draw_(st.lists(st.sampled_from(pairs), max_size=20)) if pairs else []


@given(graphs())
def test_nodes_stand_apart_and_edges_lead_downwards(graph: tuple[list[float], list[tuple[int, int]]]) -> None:
    widths, edges = graph
    found = layered(widths, edges)
    assert all(found.layers[start] < found.layers[end] for start, end in edges)
    assert all(
        len(route) == found.layers[end] - found.layers[start] - 1 for (start, end), route in found.routes.items()
    )
    for layer in range(found.depth):
        row = sorted((found.centres[node], node) for node in range(len(widths)) if found.layers[node] == layer)
        for (left, before), (right, after) in pairwise(row):
            assert right - left >= (widths[before] + widths[after]) / 2 + GAP - 1e-6
    for node, centre in enumerate(found.centres):
        assert centre - widths[node] / 2 >= -1e-6 and centre + widths[node] / 2 <= found.width + 1e-6


def test_text_of_a_model_stays_text() -> None:
    name = '<script>alert("x")</script>\x1b[31m'
    node = onnx.helper.make_node("Relu", ["x"], ["y"], name=name)
    value = [onnx.helper.make_tensor_value_info(each, 1, [2]) for each in "xy"]
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "g", value[:1], value[1:]))
    text = nodes_svg(draw(model, worlds_of(model), {}))
    assert "\x1b" not in text
    titles = [each.text for each in Xml.fromstring(text).iter("title")]
    assert any(title and '<script>alert("x")</script>' in title for title in titles)


@pytest.mark.parametrize("name", ["swin_v2_t.torchscript.17.dynamic", "t5_decoder_step.torchscript.17.dynamic"])
def test_drawings_are_the_same_every_time(name: str) -> None:
    once, again = ([nodes_svg(each["after"]) for each in drawn(name, verify=False)] for _ in range(2))
    assert once == again
