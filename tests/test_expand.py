"""Attention taken apart into plain operators, put together again, and one site as a model of its own."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from canonical import canonical
from checks import assert_same, feeds
from commands import run_command
from graphs import HEAD_DIM, HEADS, Net, heads_in
from onnx import TensorProto, helper
from runtime_nodes import ATTENTION_CASES, N
from support import EXPORTS

import onnx_attn
from onnx_attn.graph.sizes import worlds_of
from onnx_attn.prove.inputs import model_inputs

FILES = [
    "bert.torchscript.17.dynamic",
    "gpt2_prefill.torchscript.17.dynamic",
    "mha_bias_kv.torchscript.17.dynamic",
    "sdpa_mask.dynamo.23.static",
    "t5_encoder.dynamo.23.static",
    "vit_b_16.dynamo.18.dynamic",
]


def load(name: str) -> onnx.ModelProto:
    return onnx.load(EXPORTS / f"{name}.onnx")


def fused(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without proof, as `expanded`: structure is what is compared, and numbers have tests of their own."""
    found = onnx_attn.fuse(model, target="onnx", algebra=False, verify=False).model
    assert isinstance(found, onnx.ModelProto)
    return found


def expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    found = onnx_attn.expand(model, verify=False).model
    assert isinstance(found, onnx.ModelProto)
    return found


@pytest.mark.parametrize("path", sorted(EXPORTS.glob("*.onnx")), ids=lambda path: path.stem)
def test_what_is_put_together_again_is_the_same(path: Path) -> None:
    model = onnx.load(path)
    together, apart = fused(model), expanded(model)
    assert not any(node.domain or node.op_type in ("Attention", "RotaryEmbedding") for node in apart.graph.node)
    assert apart.opset_import[0].version == model.opset_import[0].version
    assert canonical(fused(expanded(together))) == canonical(together)
    assert canonical(expanded(fused(apart))) == canonical(apart)
    assert canonical(expanded(apart)) == canonical(apart)


@pytest.mark.parametrize("path", sorted(EXPORTS.glob("mha_*.dynamic.onnx")), ids=lambda path: path.stem)
def test_layers_of_torch_are_taken_apart_for_every_size(path: Path) -> None:
    """Lengths of cross-attention, padding, added keys, boolean masks, biases by themselves, the sequence first, weights given
    away: at sizes that no proof has tried."""
    model = onnx.load(path)
    result = onnx_attn.expand(model, verify=False)
    assert result.report["sites"] == 1
    assert result.report["expanded"] == (not path.name.startswith("mha_weights"))
    # TorchScript freezes the lengths that the layer saw.
    length, keys = (16, 24) if ".torchscript." in path.name else (9, 11)
    sizes = {"batch": 3, "sequence": length, "memory": keys}
    assert_same(model, result.model, feeds(model, sizes))


def test_sites_read_alike_before_and_after() -> None:
    keys = ("heads", "kv_heads", "head_dim", "causal", "masks", "projection")
    model = load("decoder_layer_pre.dynamo.23.static")
    before, after = (onnx_attn.inspect(each)["candidates"] for each in (model, expanded(fused(model))))
    assert [[each[key] for key in keys] for each in before] == [[each[key] for key in keys] for each in after]
    assert [each["scale"] for each in before] == pytest.approx([each["scale"] for each in after], rel=1e-7)


@pytest.mark.parametrize("name", ["multi-head, past", "attention, causal and masked", "grouped, rotary, step"])
def test_operators_of_a_runtime_are_taken_apart(name: str) -> None:
    case = ATTENTION_CASES[name]
    model = case.model()
    result = onnx_attn.expand(model)
    assert (result.report["sites"], result.report["expanded"]) == (1, 1)
    assert not any(node.domain for node in result.model.graph.node)
    assert_same(model, result.model, case.feeds())


def two_sites() -> onnx.ModelProto:
    net = Net(23)
    found = net.input("x", 2, HEADS, 5, HEAD_DIM)
    for number in range(2):
        found = net.op("Attention", found, found, found, name=f"site_{number}", scale=0.3)
    net.output(found)
    return net.model()


def test_some_sites_alone() -> None:
    model = two_sites()
    result = onnx_attn.expand(model, sites=["site-1"])
    assert [node.name for node in result.model.graph.node if node.op_type == "Attention"] == ["site_0"]
    assert [each["id"] for each in result.report["candidates"]] == ["site-1"]
    assert_same(model, result.model)
    calls = fused(model)
    some = onnx_attn.expand(calls, sites=["site-0"]).model
    assert [node.name for node in some.graph.node if node.domain] == ["site_1"]
    assert_same(model, some)
    with pytest.raises(onnx_attn.UsageError, match="no 'site-2'"):
        onnx_attn.expand(model, sites=["site-2"])


def site_in_a_branch(net: Net, q: str, kt: str, v: str) -> str:
    """A choice between attention and its negated values; the scale, of the main graph, stands behind Q·Kᵀ."""
    inner = Net()
    yes = inner.sdpa(q, kt, v, name="inside", scores=lambda scores: inner.op("Mul", scores, "half"))
    no = helper.make_node("Neg", [v], ["no"])
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, HEADS, 5, HEAD_DIM]) for name in (yes, "no")]
    net.const(0.5, name="half")
    bodies = {
        "then_branch": helper.make_graph(inner.nodes, "yes", [], made[:1]),
        "else_branch": helper.make_graph([no], "no", [], made[1:]),
    }
    return str(net.op("If", net.input("flag", dtype=bool), name="choice", **bodies))


def test_ids_count_the_sites_of_bodies() -> None:
    """One site in a branch, one behind the branches: each is asked for by the id that `inspect` gives it."""
    net = Net()
    q, kt, v = heads_in(net)
    found = site_in_a_branch(net, q, kt, v)
    net.output(net.sdpa(found, kt, v, name="outside", scores=lambda scores: net.op("Mul", scores, "half")))
    model = net.model()
    ids = {each["softmax"]: each["id"] for each in onnx_attn.inspect(model)["candidates"]}
    assert ids == {"inside": "site-0", "outside": "site-1"}
    for name, scaled in (("inside", [False, True]), ("outside", [True, False])):
        result = onnx_attn.expand(model, sites=[ids[name]])
        assert [each["id"] for each in result.report["candidates"]] == [ids[name]]
        (choice,) = (node for node in result.model.graph.node if node.op_type == "If")
        (inside,) = (each.g.node for each in choice.attribute if each.name == "then_branch")
        assert [scales_scores(nodes) for nodes in (inside, result.model.graph.node)] == scaled
        for flag in (True, False):
            assert_same(model, result.model, {**feeds(model), "flag": np.asarray(flag)})


def scales_scores(nodes: Iterable[onnx.NodeProto]) -> bool:
    """Whether the scale stands behind Q·Kᵀ still; what was written anew has it on Q."""
    products = {node.output[0] for node in nodes if node.op_type == "MatMul"}
    return any(node.op_type == "Mul" and node.input[0] in products for node in nodes)


def test_a_site_of_a_body_is_cut_out(tmp_path: Path) -> None:
    net = Net()
    net.output(site_in_a_branch(net, *heads_in(net)))
    report = onnx_attn.extract(net.model(), "site-0", tmp_path / "site.onnx")
    assert report["softmax"] == "inside"
    assert onnx_attn.inspect(tmp_path / "site.onnx")["candidates"][0]["heads"] == HEADS


TRIANGLES = {
    "of queries and keys": ({}, True),
    "the diagonal above": ({"above": 1}, False),
    "the upper one": ({"upper": 1}, False),
    "of keys and queries": ({"lengths": "kq"}, False),
    "of queries alone": ({"lengths": "qq"}, False),
    "of twos": ({"ones": 2.0}, False),
    "what it names is blocked": ({"turned": True}, False),
    "a low number and not none": ({"fill": -1e4}, False),
}


@pytest.mark.parametrize("name", TRIANGLES)
def test_a_triangle_of_the_lengths_is_causality_by_position(name: str) -> None:
    """As the primitives of a site with is_causal spell it, where lengths vary; every near miss stays a mask."""
    knobs, causal = TRIANGLES[name]
    net = Net()
    q, kt, v = heads_in(net, "batch", "sequence", "sequence")
    lengths = [net.op("Shape", each, start=-2, end=-1) for each in knobs.get("lengths", "qk")]
    ones = net.op("Expand", net.const(knobs.get("ones", 1.0)), net.op("Concat", *lengths, axis=0))
    above = [net.const(knobs["above"], np.int64)] if "above" in knobs else []
    lower = net.op("Trilu", ones, *above, upper=knobs.get("upper", 0))
    mask, fill = net.op("Cast", lower, to=TensorProto.BOOL), net.const(knobs.get("fill", -np.inf))

    def masked(scores: str) -> str:
        sides = (net.scaled(scores), fill)
        return str(net.op("Where", mask, *(sides[::-1] if knobs.get("turned") else sides)))

    net.output(net.sdpa(q, kt, v, scores=masked))
    model = net.model()
    fused = onnx_attn.fuse(model, target="onnx", algebra=False)
    calls = [node.op_type for node in fused.model.graph.node if node.domain]
    assert [call.endswith("_Causal") for call in calls] == [causal]
    assert_same(model, fused.model)


@pytest.mark.parametrize("name", ["vit_b_16.dynamo.18.dynamic", "bert.torchscript.17.dynamic"])
def test_projections_apart(name: str) -> None:
    model = load(name)
    apart = onnx_attn.expand(fused(model), split_projection=True).model
    widths = [tuple(tensor.dims) for tensor in apart.graph.initializer]
    packed = [tuple(tensor.dims) for tensor in fused(model).graph.initializer]
    assert max(width for _, width in (each for each in packed if len(each) == 2)) == 3 * 96
    assert (96, 3 * 96) not in widths
    assert widths.count((96, 96)) >= 8
    together = onnx_attn.fuse(apart, target="onnx", algebra=False)
    assert all(each["packed"] and each["projection"] == "triplet" for each in together.report["candidates"])
    assert canonical(together.model) == canonical(fused(model))


def test_an_opset_that_the_converter_reaches() -> None:
    model = load("mha_kdim.torchscript.17.dynamic")
    result = onnx_attn.expand(model, opset=15)
    assert result.model.opset_import[0].version == 15
    assert result.report["proof"]["ok"]
    with pytest.raises(onnx_attn.InputError, match=r"cannot be brought to opset 9.*leave --opset out"):
        onnx_attn.expand(load("sdpa_mask_bool.dynamo.23.static"), opset=9)


def test_scores_that_are_given_away_are_made_by_onnx_own_definition() -> None:
    net = Net(23)
    given = [net.input(name, 2, HEADS, 5, HEAD_DIM) for name in "qkv"]
    made = net.op("Attention", *given, outputs=4, qk_matmul_output_mode=3, softcap=2.0, name="site")
    net.nodes[-1].output[1] = net.nodes[-1].output[2] = ""
    net.output(made[0])
    net.output(made[3])
    model = net.model()
    result = onnx_attn.expand(model)
    assert not any(node.op_type == "Attention" for node in result.model.graph.node)
    assert_same(model, result.model)


def test_command_takes_apart_and_says_so(tmp_path: Path) -> None:
    model, out, told = EXPORTS / f"{FILES[0]}.onnx", tmp_path / "apart.onnx", tmp_path / "report.json"
    done = run_command("expand", str(model), "-o", str(out), "--json", str(told))
    assert done.code == 0, done.stderr
    assert "2 attention sites, 2 taken apart" in done.stdout
    report = json.loads(told.read_text())
    assert (report["sites"], report["expanded"], report["refused"]) == (2, 2, 0)
    assert run_command("verify", str(model), str(out)).code == 0
    assert run_command("expand", str(model), "-o", str(out), "--site", "site-9").code == 2
    assert run_command("expand", str(model), "-o", str(tmp_path / "low.onnx"), "--opset", "7").code == 1
    assert not (tmp_path / "low.onnx").exists()


@pytest.mark.parametrize("name", FILES)
def test_one_site_runs_by_itself(name: str, tmp_path: Path) -> None:
    path = tmp_path / "site.onnx"
    report = onnx_attn.extract(EXPORTS / f"{name}.onnx", "site-0", path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    inputs = model_inputs(model, worlds_of(model)[0])
    assert list(inputs) == report["inputs"]
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(report["outputs"], inputs)
    assert found.size
    assert np.isfinite(found).mean() > 0.5
    again = onnx_attn.inspect(path)
    assert (again["sites"], again["refused"]) == (1, 0)
    wanted = onnx_attn.inspect(EXPORTS / f"{name}.onnx")["candidates"][0]
    assert again["candidates"][0]["projection"] == wanted["projection"]


def test_a_site_of_a_fused_model_is_cut_out(tmp_path: Path) -> None:
    case = ATTENTION_CASES["multi-head"]
    onnx.save(onnx_attn.fuse(case.model()).model, tmp_path / "fused.onnx")
    done = run_command("extract", str(tmp_path / "fused.onnx"), "--site", "site-0", "-o", str(tmp_path / "site.onnx"))
    assert done.code == 0, done.stderr
    assert onnx_attn.inspect(tmp_path / "site.onnx")["candidates"][0]["heads"] == N
    done = run_command("extract", str(tmp_path / "fused.onnx"), "--site", "site-3", "-o", str(tmp_path / "other.onnx"))
    assert done.code == 2
