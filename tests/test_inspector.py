"""Reading the JSON of full TensorRT's engine inspector, on samples written by hand after its documentation: no GPU here."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from commands import error_line, run_command, says_what_to_do
from graphs import Net, heads_in

import onnx_attn
from onnx_attn.engine.inspector import parse_inspector
from onnx_attn.engine.kernels import Engine, TensorInfo

ENGINES = Path(__file__).parent / "engines"


def sample(name: str) -> Any:
    return json.loads((ENGINES / f"synthetic_{name}.json").read_text())


def engine(name: str) -> Engine:
    return Engine("tensorrt", 89, True, parse_inspector(sample(name)), ())


@pytest.mark.parametrize("path", sorted(ENGINES.glob("*.json")), ids=lambda path: path.stem)
def test_every_sample_says_that_it_is_synthetic_and_cites_what_it_follows(path: Path) -> None:
    sources = json.loads(path.read_text())["_written_by_hand_after"]
    assert path.stem.startswith("synthetic_")
    assert sources and all("https://" in source or "measured" in source for source in sources.values())


def test_events_and_repeated_profiles_are_no_kernels() -> None:
    assert [kernel.name for kernel in engine("10").kernels] == [
        "Reformatting CopyNode for Input Tensor 0 to /attn/MatMul",
        "__myl_Tran_myl0_0",
        "_gemm_mha_v2_myl0_1",
        "/head/Gemm",
    ]


def test_types_are_read_from_words_sentences_and_fields_of_their_own() -> None:
    reformat, _, attention, head = engine("10").kernels
    assert [tensor.datatype for tensor in (*reformat.inputs, *reformat.outputs)] == ["Half", "Half"]
    assert attention.constants == (TensorInfo("scale", (1,), "Float"),)
    assert head.outputs == (TensorInfo("logits", (1, 10), "Float"),)
    last = engine("11").kernels[-1]
    assert [tensor.datatype for tensor in last.constants] == ["FP8", "BFloat16"]


def test_bytes_are_summed_where_every_size_is_known() -> None:
    part = 2 * 4 * 17 * 24
    assert engine("10").moved_bytes == 2 * part + 2 * part + 4 * part + 4 + part + 4 * 10
    assert engine("11").moved_bytes is None


@pytest.mark.parametrize(
    ("name", "node"),
    [("10", "/attn/Softmax"), ("10", "/attn/MatMul_1"), ("10", "layer1/attn"), ("11", "attention_0")],
)
def test_a_site_lands_whatever_separates_the_names(name: str, node: str) -> None:
    assert engine(name).landed(node)


@pytest.mark.parametrize(("name", "node"), [("10", "/attn/Transpose"), ("10", "/head/Gemm"), ("11", "fc_add")])
def test_what_is_on_another_kernel_has_not_landed(name: str, node: str) -> None:
    assert not engine(name).landed(node) and engine(name).kernel_of(node) is not None


def test_the_tactic_tells_an_attention_kernel_too() -> None:
    layers = sample("10")["Layers"]
    layers[3]["Name"] = "{ForeignNode[/attn/Transpose.../attn/MatMul_1]}"
    assert parse_inspector(layers)[2].is_attention


ODD = [
    {"Name": "a", key: odd} for key in ("LayerType", "Inputs", "Metadata", "TacticName") for odd in ([1], {"a": 1}, 3)
]


@pytest.mark.parametrize("layer", ODD, ids=str)
def test_fields_of_another_type_are_refused_or_read_over(layer: dict[str, Any]) -> None:
    """Never anything but an answer or a ValueError."""
    with contextlib.suppress(ValueError):
        assert len(parse_inspector([layer])) == 1


@pytest.mark.parametrize("broken", [{}, {"Layers": None}, {"Layers": [{}]}, {"Layers": [3]}, 3, None])
def test_what_is_no_layer_information_is_refused(broken: Any) -> None:
    with pytest.raises(ValueError, match=r"layer"):
        parse_inspector(broken)


def test_names_alone_are_refused_with_the_flag_that_helps() -> None:
    with pytest.raises(ValueError, match="profilingVerbosity=detailed"):
        parse_inspector(sample("names_only"))


def attention_model() -> Any:
    net = Net()
    query, key, value = heads_in(net)
    scores = net.op("MatMul", query, key, name="/attn/MatMul")
    net.output(net.op("MatMul", net.op("Softmax", scores, name="/attn/Softmax", axis=-1), value, name="/attn/MatMul_1"))
    return net.model()


def test_land_reads_a_file_of_layers_in_place_of_a_compiler() -> None:
    report = onnx_attn.land(attention_model(), layer_info=ENGINES / "synthetic_10.json")
    assert (report["built"], report["sites"], report["landed"], report["kernels"]) == (True, 1, 1, 4)
    assert report["per_site"][0]["kernel"] == "_gemm_mha_v2_myl0_1"
    assert report["compiler"] == "layer information synthetic_10.json"


def test_layers_of_another_model_are_refused(tmp_path: Path) -> None:
    model = attention_model()
    for node in model.graph.node:
        node.name = f"other/{node.name}"
    with pytest.raises(onnx_attn.InputError, match="of an engine built from this very model"):
        onnx_attn.land(model, layer_info=ENGINES / "synthetic_10.json")


@pytest.mark.parametrize("content", ["{", "[1]", "[" * 100000, json.dumps({"Layers": ["a"]})])
def test_a_file_of_layers_that_cannot_be_read_is_one_clear_line(content: str, tmp_path: Path) -> None:
    import onnx

    onnx.save(attention_model(), tmp_path / "model.onnx")
    (tmp_path / "layers.json").write_text(content)
    outcome = run_command("land", tmp_path / "model.onnx", "--layer-info", tmp_path / "layers.json")
    assert says_what_to_do(error_line(outcome, 1, "layers.json"), tmp_path)
