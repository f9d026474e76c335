"""Blocks of windowed attention in the order of their windows: rows leave the map once a block and come back once."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from checks import assert_same, feeds, same_bytes
from graphs import CHANNELS, HEADS, WIDTH, Net
from onnx import TensorProto, helper
from pre_norm import PreNorm
from support import EXPORTS, max_rel, run
from window_blocks import Residual, assert_old_names_hold_old_numbers, calls, inside, operators, ordered
from windows import ROLLS

import onnx_attn

SWIN = EXPORTS / "swin_t.dynamo.18.static.half.onnx"
DYNAMIC = EXPORTS / "swin_tiny.torchscript.17.dynamic.onnx"
PAIR = ["WindowPartition", "WindowReverse"]
MODELS = {
    "swin_t.dynamo.18.static.half": [True, True],
    "swin_v2_t.torchscript.17.dynamic": [True, True],
    "swin_tiny.torchscript.17.dynamic": [True, True],
    "swin_tiny.dynamo.23.static.half": [True, True],
    "swinv2_tiny_window8.dynamo.18.dynamic": [True, True],
    "hf_swin.dynamo.18.dynamic.eager": [True, True],
    "davit_tiny.dynamo.23.dynamic": [True, False, True, False],
}


def changed(result: onnx_attn.Result) -> list[bool]:
    return ["tokens-first" in candidate["changes"] for candidate in result.report["candidates"]]


@pytest.mark.parametrize("form", ["function", "primitives"])
@pytest.mark.parametrize("name", MODELS)
def test_real_models_are_tokens_first_and_compute_the_same(name: str, form: str) -> None:
    model, half = onnx.load(EXPORTS / f"{name}.onnx"), ".half" in name
    result = onnx_attn.fuse(copy.deepcopy(model), form=form)
    assert changed(result) == MODELS[name]
    assert not any(candidate["changes_left"] for candidate in result.report["candidates"])
    assert calls(result.model) == (PAIR * sum(MODELS[name]) if form == "function" else [])
    onnx.checker.check_model(result.model, full_check=True)
    for batch in (2,) if half else (1, 2, 5):
        inputs = feeds(model, {"batch": batch})
        expected, actual = (run(each, inputs, optimized=not half) for each in (model, result.model))
        assert max_rel(expected, actual) <= (2e-3 if half else 1e-5)


@pytest.mark.parametrize("name", [name for name in MODELS if ".half" not in name])
def test_no_old_name_holds_other_numbers(name: str) -> None:
    model = onnx.load(EXPORTS / f"{name}.onnx")
    fused = onnx_attn.fuse(copy.deepcopy(model)).model
    assert_old_names_hold_old_numbers(model, fused, feeds(model, {"batch": 2}))


@pytest.mark.parametrize("name", MODELS)
def test_functions_are_of_the_models_opset(name: str) -> None:
    fused = onnx_attn.fuse(onnx.load(EXPORTS / f"{name}.onnx")).model
    (opset,) = (entry.version for entry in fused.opset_import if not entry.domain)
    functions = [function for function in fused.functions if function.name.startswith("Window")]
    assert functions
    assert all([(e.domain, e.version) for e in function.opset_import] == [("", opset)] for function in functions)
    assert fused.ir_version >= 8


@pytest.mark.parametrize("target", ["onnxruntime", "onnx"])
def test_other_targets_keep_the_order_of_the_map(target: str) -> None:
    result = onnx_attn.fuse(onnx.load(SWIN), target=target)
    assert changed(result) == [False, False]
    assert calls(result.model) == []


def test_two_runs_give_the_same_bytes_and_so_does_one_without_proof() -> None:
    first, again = (onnx_attn.fuse(onnx.load(SWIN)) for _ in range(2))
    assert same_bytes(first.model, again.model)
    assert same_bytes(onnx_attn.fuse(onnx.load(SWIN), verify=False).model, first.model)


@pytest.mark.parametrize("path", [SWIN, DYNAMIC], ids=["static", "dynamic"])
def test_a_plan_replays_the_order_and_can_leave_it_out(path: Path) -> None:
    first = onnx_attn.fuse(onnx.load(path))
    again = onnx_attn.fuse(onnx.load(path), plan=first.plan)
    assert same_bytes(again.model, first.model)
    assert again.plan == first.plan
    plan = copy.deepcopy(first.plan)
    plan["sites"][1]["changes"].remove("tokens-first")
    result = onnx_attn.fuse(onnx.load(path), plan=plan)
    assert changed(result) == [True, False]
    assert calls(result.model) == PAIR
    plan["sites"][0]["apply"] = False
    assert calls(onnx_attn.fuse(onnx.load(path), plan=plan).model) == []


def test_nodes_keep_their_names() -> None:
    """A node that works on rows works on them in another order: it is the same node, under its own name."""
    model = onnx.load(DYNAMIC)
    fused = onnx_attn.fuse(copy.deepcopy(model)).model
    kinds = ("LayerNormalization", "Erf")
    before, after = (
        {(node.name, node.op_type) for node in each.graph.node if node.op_type in kinds} for each in (model, fused)
    )
    assert after == before
    names = [node.name for node in fused.graph.node]
    assert len(names) == len(set(names))


def test_dynamic_batch_beside_it() -> None:
    model = onnx.load(EXPORTS / "swin_tiny.dynamo.23.static.half.onnx")
    result = onnx_attn.fuse(model, dynamic_batch=True)
    assert changed(result) == [True, True]
    assert [function.name for function in result.model.functions if "shift_2x2" in function.name]


@pytest.mark.parametrize("norm", ["front", "behind", "none"])
@pytest.mark.parametrize("rows", [False, True], ids=["map", "rows"])
@pytest.mark.parametrize("batch", ["batch", 3], ids=["dynamic", "three"])
def test_two_blocks_with_mlp(norm: str, rows: bool, batch: Any) -> None:
    """The second one is shifted. All of a block is in window order, LayerNorm and MLP too."""
    fused, done = ordered(Residual(norm=norm, rows=rows, batch=batch, blocks=2, shift=(2, 1)).model())
    assert done == [True, True]
    assert calls(fused) == PAIR * 2
    assert inside(fused).count("LayerNormalization") == (0 if norm == "none" else 4)
    assert inside(fused).count("Sigmoid") == 1


CUTS: dict[str, dict[str, Any]] = {
    "one axis": {"shift": (0, 1)},
    "Split": {"shift": (2, 2), "roll": ROLLS["Split"]},
    "Gather": {"shift": (3, 1), "roll": ROLLS["Gather"]},
    "rectangular": {"edges": (8, 12), "window": (2, 4), "shift": (1, 1)},
    "grid": {"edges": (8, 12), "window": (4, 2), "strided": True},
    "one window": {"edges": (4, 4), "shift": (1, 1)},
    "no MLP": {"mlp": False},
    "Gemm": {"layer": "Gemm"},
    "unnamed": {"named": False},
    "double": {"dtype": np.float64},
    "batch of one": {"batch": 1, "shift": (1, 0)},
    "opset 20": {"opset": 20, "shift": (2, 2)},
    "opset 23": {"opset": 23, "shift": (2, 2)},
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("norm", ["front", "behind"])
def test_whatever_the_windows_are(cut: str, norm: str) -> None:
    fused, done = ordered(Residual(norm=norm, **CUTS[cut]).model())
    assert done == [True]
    assert calls(fused) == PAIR
    assert "Sigmoid" in inside(fused)


@pytest.mark.parametrize("batch", [1, 3, "batch"])
def test_of_a_window_that_is_the_whole_map_tokens_come_first_in_a_batch(batch: int | str) -> None:
    fused, done = ordered(Residual(edges=(4, 4), batch=batch).model())
    assert done == [batch == 3]
    assert calls(fused) == []


def test_of_sequences_in_a_batch_tokens_come_first_without_windows() -> None:
    path = EXPORTS / "clip_text.dynamo.23.static.onnx"
    fused, done = ordered(onnx.load(path))
    assert done == [True, True]
    assert calls(fused) == []


@pytest.mark.parametrize("cached", [True, False])
def test_keys_that_are_cached_lie_entries_first_and_so_do_their_tokens(cached: bool) -> None:
    block = PreNorm()
    q, k, v = block.heads(block.norm())
    for value in (k, v) if cached else ():
        block.net.output(value)
    _, done = ordered(block.model(block.net.op("Add", block.x, block.out(block.attend(q, k, v)))))
    assert done == [not cached]


@pytest.mark.parametrize("pads", [(0, 3, 0, 2), (1, 2, 1, 1)], ids=str)
@pytest.mark.parametrize("shift", [(0, 0), (2, 2)], ids=str)
@pytest.mark.parametrize("pad_first", [True, False])
@pytest.mark.parametrize("norm", ["front", "behind"])
def test_padding_goes_with_the_movement(
    pads: tuple[int, ...], shift: tuple[int, int], pad_first: bool, norm: str
) -> None:
    """There are more rows in windows than on the map: what follows the attention is computed on the map's own."""
    block = Residual(edges=(5, 6), pads=pads, shift=shift, pad_first=pad_first, norm=norm)  # type: ignore[arg-type]
    fused, done = ordered(block.model())
    assert done == [True]
    assert not {"LayerNormalization", "Sigmoid"} & set(inside(fused))
    assert operators(fused, "Pad") == 0
    assert operators(fused, "Concat") == 0


@pytest.mark.parametrize("form", ["function", "primitives"])
@pytest.mark.parametrize("verify", [True, False])
def test_in_either_form_with_and_without_proof(form: str, verify: bool) -> None:
    fused, done = ordered(Residual(shift=(2, 2), blocks=2).model(), form=form, verify=verify)
    assert done == [True, True]
    assert calls(fused) == (PAIR * 2 if form == "function" else [])


@pytest.mark.parametrize("opset", [13, 14, 15, 16])
def test_a_norm_in_plain_operators(opset: int) -> None:
    class Decomposed(Residual):
        def normed(self, net: Net, value: str) -> str:
            centred = net.op("Sub", value, net.op("ReduceMean", value, axes=[-1]))
            spread = net.op("ReduceMean", net.op("Pow", centred, net.const(2.0)), axes=[-1])
            unit = net.op("Div", centred, net.op("Sqrt", net.op("Add", spread, net.const(1e-5))))
            return net.op("Add", net.op("Mul", unit, net.weight(WIDTH)), net.weight(WIDTH))

    for norm in ("front", "behind"):
        fused, done = ordered(Decomposed(norm=norm, opset=opset, shift=(2, 2)).model())
        assert done == [True]
        assert opset < 15 or ("Sigmoid" in inside(fused)) == (norm == "behind")


def test_a_model_that_lists_its_weights_among_its_inputs() -> None:
    """As all do before IR 4. Functions need a later IR, by which such weights are a caller's to replace."""
    model = Residual(shift=(2, 2)).model()
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        for tensor in model.graph.initializer
    )
    result = onnx_attn.fuse(copy.deepcopy(model))
    (site,) = result.report["candidates"]
    assert (site["status"], site["changes"], list(site["changes_left"])) == ("site", [], ["tokens-first"])
    assert_same(model, result.model)
    fused, done = ordered(model, form="primitives")
    assert (done, fused.ir_version) == ([True], 3)


def test_weights_in_a_file_beside_the_model(tmp_path: Path) -> None:
    path, out = tmp_path / "model.onnx", tmp_path / "fused.onnx"
    model = Residual(shift=(2, 2), blocks=2).model()
    onnx.save(copy.deepcopy(model), path, save_as_external_data=True, location="weights", size_threshold=1024)
    assert changed(onnx_attn.fuse(path, out)) == [True, True]
    assert_same(model, onnx.load(out))


def test_a_bias_for_each_window_of_a_map() -> None:
    """Windows stand map by map in front of the attention, where the mask tells them apart."""

    class Masked(Residual):
        def attention(self, net: Net, value: str) -> str:
            windows = self.cut(net, self.rolled(net, value))
            q, k, v = (net.split_heads(net.linear(windows, CHANNELS)) for _ in range(3))

            def biased(logits: str) -> str:
                apart = net.reshape(net.scaled(logits), -1, 4, HEADS, 16, 16)
                return net.reshape(net.op("Add", apart, net.weight(1, 4, 1, 16, 16)), -1, HEADS, 16, 16)

            merged = net.merge_heads(net.sdpa(q, net.swap(k), v, biased, name=f"softmax_{len(net.nodes)}"))
            return self.uncut(net, net.linear(merged, WIDTH, width=CHANNELS))

    fused, done = ordered(Masked(shift=(2, 2), blocks=2).model())
    assert done == [True, True]
    assert "Sigmoid" in inside(fused)


def test_half_precision_islands() -> None:
    """Attention in half precision between Casts: the movement and the MLP stay in the type that they were in."""

    class Island(Residual):
        def landed(self, net: Net, value: str) -> str:
            net.dtype, wide = np.dtype(np.float16), net.dtype
            out = super().landed(net, net.op("Cast", value, to=TensorProto.FLOAT16))
            net.dtype = wide
            return str(net.op("Cast", out, to=TensorProto.FLOAT))

    model = Island(shift=(2, 2)).model()
    result = onnx_attn.fuse(model)
    assert changed(result) == [True]
    assert not result.report["candidates"][0]["changes_left"]
    assert_same(model, result.model, rtol=2e-3)


def test_a_report_tells_what_was_folded(tmp_path: Path) -> None:
    """The shift mask of the second site; the exporter has folded the tables of relative positions itself."""
    sites = onnx_attn.fuse(EXPORTS / "swin_t.dynamo.18.static.half.onnx", tmp_path / "fused.onnx").report["candidates"]
    assert [site["folded"] for site in sites] == [[], [[4, 16, 16]]]


def test_shift_masks_are_numbers_whatever_the_batch(tmp_path: Path) -> None:
    """The exporter scatters them together as the model runs, out of sizes that it asks values for which go."""
    path, fused = EXPORTS / "swin_v2_t.torchscript.17.dynamic.onnx", tmp_path / "fused.onnx"
    onnx_attn.fuse(path, fused)
    assert operators(onnx.load(path), "ScatterND", "ConstantOfShape")
    assert not operators(onnx.load(fused), "ScatterND", "ConstantOfShape")
