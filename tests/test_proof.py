"""The proof can fail: a site that is written wrongly is seen, rolled back and reported, and never saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from graphs import CHANNELS, HEAD_DIM, HEADS, WIDTH, Net
from onnx import numpy_helper
from pre_norm import ROOT, PreNorm
from support import EXPORTS, exports, feeds, max_rel, run

import onnx_attn
from onnx_attn import decided, pipeline
from onnx_attn.forms.write import write_site
from onnx_attn.graph.edit import Names, SiteEdit
from onnx_attn.graph.view import GraphView
from onnx_attn.prove.compare import difference
from onnx_attn.site import AttentionSite

VIT = EXPORTS / "vit_b_16.torchscript.17.static.onnx"
GPT2 = EXPORTS / "gpt2.torchscript.17.dynamic.onnx"


def spoiled(change: Callable[[SiteEdit], None], site: int) -> Callable[..., SiteEdit]:
    """`write_site` as it is, but for one site, whose every edit is changed, with algebra and without."""
    seen: list[str] = []

    def write(*arguments: object) -> SiteEdit:
        edit = write_site(*arguments)  # type: ignore[arg-type]
        if edit.site not in seen:
            seen.append(edit.site)
        if seen.index(edit.site) == site:
            change(edit)
        return edit

    return write


def scale_by(factor: float) -> Callable[[SiteEdit], None]:
    def change(edit: SiteEdit) -> None:
        call = next(node for node in edit.nodes if node.domain == "onnx_attn")
        scale = next(attribute for attribute in call.attribute if attribute.name == "scale")
        scale.f *= factor

    return change


def swap_query_and_key(edit: SiteEdit) -> None:
    call = next(node for node in edit.nodes if node.domain == "onnx_attn")
    call.input[0], call.input[1] = call.input[1], call.input[0]


def drop_mask(edit: SiteEdit) -> None:
    call = next(node for node in edit.nodes if node.domain == "onnx_attn")
    parts = call.op_type.split("_")
    nothing = np.float32(0) if "Mask" in parts else np.asarray("Where" in parts)
    blocks_nothing = numpy_helper.from_array(np.full((1, 1, 1, 1), nothing), "no_mask")
    object.__setattr__(edit, "initializers", (*edit.initializers, blocks_nothing))
    call.input[3] = "no_mask"


@pytest.mark.parametrize("change", [scale_by(1.0001), scale_by(2.0), swap_query_and_key], ids=["1e-4", "twice", "swap"])
def test_a_wrong_site_is_rolled_back_and_the_others_stay(
    change: Callable[[SiteEdit], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(decided, "write_site", spoiled(change, site=1))
    result = onnx_attn.fuse(VIT, tmp_path / "fused.onnx")
    first, second = (c for c in result.report["candidates"] if c["status"] != "not_attention")
    assert (first["status"], second["status"]) == ("site", "refused")
    assert second["code"] == "proof-failed"
    assert second["certificate"]["failure"]
    assert (result.report["sites"], result.report["fused"], result.report["refused"]) == (2, 1, 1)
    assert result.report["proof"]["ok"]
    assert [node.name for node in result.model.graph.node if node.op_type == "Softmax"] == [second["softmax"]]


def test_a_site_whose_algebra_is_wrong_is_written_without_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def spoil(edit: SiteEdit) -> None:
        if edit.algebra:
            scale_by(1.0001)(edit)

    monkeypatch.setattr(decided, "write_site", spoiled(spoil, site=1))
    report = onnx_attn.fuse(VIT, tmp_path / "fused.onnx").report
    first, second = (c for c in report["candidates"] if c["status"] != "not_attention")
    assert (first["status"], second["status"], report["fused"]) == ("site", "site", 2)
    assert first["algebra"] == ["constant-channel", "key-bias", "value-bias", "scale"]
    assert second["algebra"] == []
    assert second["packed"]
    assert set(second["algebra_left"]) == set(first["algebra"])
    assert "float64" in second["algebra_left"]["scale"]
    calls = [node.name for node in onnx.load(tmp_path / "fused.onnx").graph.node if node.domain == "onnx_attn"]
    assert calls == [first["softmax"], second["softmax"]]


def test_a_lost_mask_is_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(decided, "write_site", spoiled(drop_mask, site=0))
    report = onnx_attn.fuse(GPT2, tmp_path / "fused.onnx").report
    assert [c["code"] for c in report["candidates"]] == ["proof-failed", None]


@pytest.mark.parametrize("export", exports("vit_b_16*static.onnx") + exports("gpt2.t*"), ids=lambda e: e.path.stem)
def test_a_wrong_scale_in_one_site_shows_at_the_models_output(export: object, tmp_path: Path) -> None:
    """What the whole-model comparison is for: it is not blind to a single site that is off by one percent."""
    path = export.path  # type: ignore[attr-defined]
    fused = onnx_attn.fuse(path, tmp_path / "fused.onnx").model
    call = next(node for node in fused.graph.node if node.domain == "onnx_attn")
    next(attribute for attribute in call.attribute if attribute.name == "scale").f *= 1.01
    inputs = feeds(fused, {"batch": 2, "sequence": 16})
    assert max_rel(run(path, inputs), run(fused, inputs)) > 1e-5


def test_nothing_is_written_when_the_whole_model_differs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Sites that pass although they are wrong: the last gate holds, with its own exit code."""
    monkeypatch.setattr(decided, "write_site", spoiled(scale_by(1.5), site=0))
    monkeypatch.setattr(pipeline, "prove_sites", lambda *_: None)
    output = tmp_path / "fused.onnx"
    with pytest.raises(onnx_attn.DifferenceError, match="differs at output 'logits'") as caught:
        onnx_attn.fuse(VIT, output)
    assert caught.value.exit_code == 4
    assert list(tmp_path.iterdir()) == []


def test_verify_sees_a_changed_weight(tmp_path: Path) -> None:
    model = onnx.load(VIT)
    weight = model.graph.initializer[-1]
    changed = numpy_helper.to_array(weight) * np.float32(1.01)
    weight.CopyFrom(numpy_helper.from_array(changed, weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    assert not onnx_attn.verify(VIT, tmp_path / "changed.onnx")["ok"]
    assert onnx_attn.verify(VIT, VIT)["max_rel"] == 0.0


def test_certificates_tell_masked_rows_and_two_sizes(tmp_path: Path) -> None:
    report = onnx_attn.fuse(GPT2, tmp_path / "fused.onnx").report
    for candidate in report["candidates"]:
        # random, large, blocked keys, a row masked with −inf, a row masked with the lowest number; two worlds.
        assert candidate["certificate"]["cases"] == 10
        assert candidate["certificate"]["max_rel"] <= 1e-5
        assert candidate["certificate"]["float64"]["max_rel"] <= 1e-6


def test_difference_wants_nan_and_infinity_in_place() -> None:
    nan, inf = np.nan, np.inf
    assert difference(np.array([nan, 1.0, inf]), np.array([nan, 1.0, inf])).within(0.0)
    assert not difference(np.array([nan, 1.0]), np.array([1.0, nan])).agrees
    assert not difference(np.array([inf]), np.array([-inf])).agrees
    assert not difference(np.array([1.0]), np.array([1.0], np.float32)).agrees
    assert difference(np.zeros(3), np.zeros(3)).max_rel == 0.0
    assert difference(np.zeros(3), np.ones(3)).max_rel == inf
    assert difference(np.array([4.0, 1.0]), np.array([4.0, 2.0])).max_rel == 0.25


def test_a_row_that_is_no_longer_cleared_is_seen_whatever_was_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Masked rows of an `Attention` operator have no float64 to be held against: another case's truth is no excuse."""

    def write(view: GraphView, names: Names, site: AttentionSite, *others: object) -> SiteEdit:
        return write_site(view, names, replace(site, guard=None), *others)  # type: ignore[arg-type]

    block = PreNorm(opset=23)
    net = block.net
    mask = net.input("mask", 2, 1, 5, 5, dtype=bool)
    attended = net.op("Attention", *block.heads(block.x), mask, scale=ROOT, name="softmax")
    model = block.model(block.out(attended))
    assert "scale" in onnx_attn.fuse(model).report["candidates"][0]["algebra"]
    monkeypatch.setattr(decided, "write_site", write)
    (candidate,) = onnx_attn.fuse(model, form="primitives").report["candidates"]
    assert candidate["code"] == "proof-failed"
    assert "row-inf" in candidate["certificate"]["failure"]


def misround(name: str) -> Callable[[SiteEdit], None]:
    """Right as the algebra has it in float64, but rounded badly: what the user will see is wrong."""

    def change(edit: SiteEdit) -> None:
        for tensor in edit.initializers:
            if tensor.name.endswith(name) and edit.algebra:
                wrong = numpy_helper.to_array(tensor) * np.float32(1.001)
                tensor.CopyFrom(numpy_helper.from_array(wrong, tensor.name))

    return change


@pytest.mark.parametrize("name", ["in_proj_weight", "out_proj_bias"])
def test_weights_that_are_rounded_badly_are_seen(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(decided, "write_site", spoiled(misround(name), site=1))
    report = onnx_attn.fuse(VIT, tmp_path / "fused.onnx").report
    _, second = (c for c in report["candidates"] if c["status"] != "not_attention")
    assert (report["fused"], second["algebra"]) == (2, [])
    assert all("max_rel" in reason and "float64" not in reason for reason in second["algebra_left"].values())


@pytest.mark.parametrize("dims", [(2, 1, 1, 5), (5,)])
def test_an_operator_whose_mask_has_one_row_is_proved_though_the_runtime_rejects_it(dims: tuple[int, ...]) -> None:
    """The specification broadcasts the mask over queries; exports with a padding mask rely on it."""
    net = Net(23)
    q, k, v = (net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv")
    net.output(net.op("Attention", q, k, v, net.input("mask", *dims), name="softmax"))
    model = net.model()
    with pytest.raises(Exception, match="attn_mask"):
        run(model, feeds(model, {}))
    report = onnx_attn.fuse(model, target_version="10.0").report
    (candidate,) = report["candidates"]
    assert (candidate["status"], candidate["form"], report["proof"]["ok"]) == ("site", "function", True)
    assert candidate["certificate"]["ok"] and candidate["certificate"]["cases"] > 4


@pytest.mark.parametrize("probe", ["learned", "zeros"])
def test_what_no_input_decides_is_no_random_value_of_the_proof(probe: str) -> None:
    """One learned query that is repeated, and zeros that a sum was read through, as in DETR's decoder: one cut starts above
    them, the other below."""
    net = Net()
    x = net.input("x", 1 if probe == "learned" else "batch", 5, WIDTH)
    query = net.op("Tile", net.weight(1, 1, WIDTH), net.ints(1, 1, 1))
    if probe == "zeros":
        zeros = net.op("Expand", net.const(np.zeros((1, 1, 1))), net.op("Shape", x))
        query = net.op("Add", zeros, x)
    q, k = (net.split_heads(net.linear(query if name == "q" or probe == "zeros" else x, CHANNELS)) for name in "qk")
    v = net.split_heads(net.linear(zeros if probe == "zeros" else x, CHANNELS))
    merged = net.merge_heads(net.sdpa(q, net.swap(k), v))
    net.output(net.linear(merged, WIDTH, width=CHANNELS), 3)
    report = onnx_attn.fuse(net.model()).report
    (candidate,) = report["candidates"]
    assert (candidate["status"], candidate["packed"], candidate["certificate"]["ok"]) == ("site", True, True)


def with_a_key_bias(bias: float, dtype: Any) -> onnx.ModelProto:
    """One site whose K has a bias that is the same in every channel."""
    net = Net(18, dtype=dtype)
    x = net.input("x", 2, 5, WIDTH)
    biases = (net.weight(CHANNELS), net.const(np.full(CHANNELS, bias)), net.weight(CHANNELS))
    layers = [net.op("Add", net.linear(x, CHANNELS, bias=False), each) for each in biases]
    q, k, v = map(net.split_heads, layers)
    out = net.linear(net.merge_heads(net.sdpa(q, net.swap(k), v)), WIDTH, width=CHANNELS)
    net.output(out, 3)
    return net.model()


def test_a_model_that_differs_by_exact_algebra_is_told_the_way_out(tmp_path: Path) -> None:
    """In half precision logits of 10⁵ tell nothing apart, and without K's bias they are small: no difference of the rewriting."""
    model, output = with_a_key_bias(6e4, np.float16), tmp_path / "fused.onnx"
    with pytest.raises(
        onnx_attn.DifferenceError, match=r"max_rel .* > 2e-03\); nothing was written; with --no-algebra "
    ):
        onnx_attn.fuse(model, output)
    assert list(tmp_path.iterdir()) == []
    assert onnx_attn.fuse(model, output, algebra=False).report["fused"] == 1


def test_a_model_that_overflows_elsewhere_says_so() -> None:
    with pytest.raises(onnx_attn.DifferenceError, match=r"\(NaN or infinity in other places\); nothing was written"):
        onnx_attn.fuse(with_a_key_bias(1e38, np.float32))
