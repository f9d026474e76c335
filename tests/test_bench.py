"""tools/bench.py: the same judge for every tool, whatever a tool does; and what is said of what was measured."""

from __future__ import annotations

import json
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper, numpy_helper
from support import EXPORTS
from test_tools import tool

import onnx_attn

MHA = EXPORTS / "mha.torchscript.17.static.onnx"
OPERATORS = EXPORTS / "sdpa.dynamo.23.static.onnx"

Note = dict[str, Any]


@pytest.fixture(autouse=True)
def _parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(EXPORTS.parent.parent / "tools")


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Note:
    """One small model, ours beside tools of which one is not everywhere."""
    folder = tmp_path_factory.mktemp("bench")
    words = ("--parts", "models", "--tools", "onnx_attn,onnxslim", "--repeat", "1", "--seconds", "0.05", "--no-compile")
    done = tool(folder, "bench", "-o", "out", MHA, *words)
    assert done.returncode == 0, done.stderr
    assert "| onnx-attn | 1 of 1 | 1 of 1 | 0 | 0 |" in done.stdout
    found: Note = json.loads((folder / "out/bench.json").read_text())
    return found


def test_a_model_is_rewritten_judged_and_run(measured: Note) -> None:
    (row,) = measured["models"]["rows"]
    assert (row["file"], row["true_sites"], row["attention"]) == ("mha.torchscript.17.static", 1, 0)
    ours = row["tools"]["onnx_attn"]
    assert ours["right"] and ours["attention"] == 1 and ours["nodes"] < row["nodes"]
    assert 0 < ours["seconds"] <= ours["call"] and ours["proved"] > 0
    assert 0 < ours["imports"] <= ours["peak"] <= ours["peak_proved"]
    assert set(row["inference"]["ratios"]) >= {"itself", "onnx_attn"}


def test_a_tool_that_is_not_installed_is_said_to_be_so(measured: Note) -> None:
    (row,) = measured["models"]["rows"]
    told = row["tools"]["onnxslim"]
    try:
        metadata.version("onnxslim")
    except metadata.PackageNotFoundError:
        assert told == {"failure": "not installed"}
    else:
        assert told["right"] and told["attention"] == 0


def test_versions_date_and_load_are_kept(measured: Note) -> None:
    about = measured["models"]
    assert about["versions"]["onnx-attn"] == onnx_attn.__version__
    assert about["asked"] == {"repeat": 1, "timeout": 300.0, "seconds": 0.05, "sm": None}
    assert about["date"][:2] == "20" and about["load"] >= 0


def test_attention_is_counted_alike_whoever_wrote_it() -> None:
    from _bench.judge import attention_nodes

    assert attention_nodes(onnx.load(MHA)) == 0
    assert attention_nodes(onnx.load(OPERATORS)) == 1
    assert attention_nodes(onnx_attn.fuse(MHA, verify=False).model) == 1
    by_runtime = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["o"], domain="com.microsoft", num_heads=2)
    of_another = helper.make_node("Attention", ["q"], ["p"], domain="somebody.else")
    branch = helper.make_graph([by_runtime, of_another], "branch", [], [])
    either = helper.make_node("If", ["c"], ["r"], then_branch=branch, else_branch=branch)
    assert attention_nodes(helper.make_model(helper.make_graph([either], "g", [], []))) == 2


def test_a_result_with_other_numbers_is_wrong_and_one_that_does_not_load_too(tmp_path: Path) -> None:
    from _bench.judge import verdict

    model = onnx.load(MHA)
    assert verdict(MHA, MHA) == {"right": True, "max_rel": 0.0, "why": None}
    (weight, *_) = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 2]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight) * 2, weight.name))
    onnx.save(model, tmp_path / "other.onnx")
    told = verdict(MHA, tmp_path / "other.onnx")
    assert (told["right"], told["why"]) == (False, "outputs differ")
    model.graph.node[-1].op_type = "Nothing"
    onnx.save(model, tmp_path / "invalid.onnx")
    told = verdict(MHA, tmp_path / "invalid.onnx")
    assert told["right"] is False and "Nothing" in told["why"]
    assert verdict(tmp_path / "invalid.onnx", MHA)["right"] is None


def test_what_a_process_dies_of_is_its_items_and_the_others_are_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from _bench import apart

    asked: list[list[str]] = []

    def process(request: Note, told: Path, _: str) -> subprocess.CompletedProcess[str]:
        asked.append(request["items"])
        answers = [item for item in request["items"][:1] if item == "good"]
        told.write_text("".join(json.dumps([item, {"found": item}]) + "\n" for item in answers))
        return subprocess.CompletedProcess([], -11 if len(asked) == 1 else -14, "", "")

    monkeypatch.setattr(apart, "_process", process)
    found = apart.each("judge", ["good", "crashes", "hangs"], 5)
    assert asked == [["good", "crashes", "hangs"], ["hangs"]]
    assert found["good"] == {"found": "good"}
    assert found["crashes"] == {"failure": "crash: SIGSEGV"}
    assert found["hangs"] == {"failure": "timeout: stopped after 5 s"}


def row(file: str = "a", ours: float = 0.01, **tools: Any) -> Note:
    """A model of two sites; each tool a dict of what is not as usual."""
    usual = {"right": True, "seconds": 0.02, "nodes": 50, "attention": 2, "peak": 90.0, "max_rel": 0.0, "why": None}
    every = {"onnx_attn": {"seconds": ours, "call": 2 * ours, "proved": 3 * ours}, **tools}
    told = {key: values if "failure" in values else usual | values for key, values in every.items()}
    return {"file": file, "true_sites": 2, "attention": 0, "nodes": 100, "tools": told}


def about(*rows: Note) -> Note:
    asked = {"repeat": 1, "timeout": 5.0, "seconds": 0.0, "sm": 89}
    where = {"date": "2030-01-01", "machine": "2 cores", "python": "3.11", "load": 0.5, "compiler": "tensorrt_rtx 1.7"}
    return where | {"versions": {"onnx": "1.23"}, "asked": asked, "rows": list(rows)}


def test_wrong_sites_do_not_count_and_a_better_tool_is_named() -> None:
    from _bench import figures

    rows = [row(onnxscript={"right": False}), row("b", onnxscript={"attention": 3, "nodes": 49})]
    rows[1]["tools"]["onnx_attn"]["attention"] = 1
    found = figures.summed(rows, "onnxscript")
    assert (found.sites, found.true, found.whole, found.wrong, found.failed) == (2, 4, 1, 1, 0)
    assert figures.ahead(rows) == [
        "onnxscript takes 2.00 × the time of recognising, planning and applying, 1.00 × that of our whole call without proof; "
        "the goal is 3",
        "onnxscript leaves fewer nodes in 1 of 1 models",
        "b: onnxscript fuses 2 sites, onnx-attn 1",
    ]


def test_fewer_kernels_after_another_tool_are_named() -> None:
    from _bench import figures

    one = row(onnxslim={"attention": 0, "seconds": 1.0})
    engine = {"parsed": True, "built": True, "landed": 2, "kernels": 20, "moved_bytes": 5_000_000}
    one["compiled"] = {"exported": engine, "onnx_attn": engine, "onnxslim": engine | {"kernels": 19}}
    assert figures.ahead([one]) == ["a: 19 kernels after onnxslim, 20 after onnx-attn"]
    assert figures.engine_ratio([one], "onnxslim", "kernels") == pytest.approx(19 / 20)


def everything() -> Note:
    crash = {"failure": "crash: SIGSEGV"}
    first = row(ort_optimizer={"right": False, "why": "outputs | differ", "max_rel": 0.5}, onnxslim=crash)
    spread = {"median": 1.0, "low": 0.8, "first": 0.9, "third": 1.1, "high": 1.2}
    ratios = {"itself": spread, "onnx_attn": spread | {"median": 0.5}, "ort_optimizer": {"failure": "no"}}
    first["inference"] = {"milliseconds": 2.0, "rounds": 15, "ratios": ratios}
    grown = [
        {"nodes": n, "sites": n // 50, "tools": {"onnx_attn": {"seconds": n / 1e5, "peak": 99.0}, "onnxslim": crash}}
        for n in (1_000, 10_000, 100_000)
    ]
    return {"models": about(first), "nodes": about(*grown)}


def test_the_page_says_what_failed_and_how_time_grows() -> None:
    from _bench.show import page

    text = page(everything())
    assert "| a | 100 | 2 | 2 (50) | **2 (50)** | crash |" in text
    assert "- a, ORT optimizer: outputs / differ (max_rel 5.0e-01)\n- a, onnxslim: crash: SIGSEGV" in text
    assert "| a | 2 | 1.00 (0.90–1.10) | 0.50 (0.90–1.10) | does not run | – |" in text
    assert "- onnx-attn: time grows with nodes to the power 1.00; 10 µs a node at 100,000" in text
    assert "| 1,000 | 20 | 0.01 / 99 | crash |" in text


def test_equal_figures_give_equal_plots(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the bench extra")
    from _bench.plots import draw

    for folder in ("first", "second"):
        draw(everything(), tmp_path / folder)
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == ["inference.svg", "nodes.svg", "seconds.svg", "sites.svg"]
    for name in names:
        first, second = ((tmp_path / folder / name).read_bytes() for folder in ("first", "second"))
        assert first == second and b"<text" in first


def test_the_stack_is_the_block_again_and_again(tmp_path: Path) -> None:
    from _bench.scale import stacked

    graph = onnx.load(stacked(200, tmp_path / "stack.onnx")).graph
    assert 150 <= len(graph.node) <= 200
    assert onnx_attn.inspect(tmp_path / "stack.onnx")["sites"] == sum(node.op_type == "Softmax" for node in graph.node)


def test_other_tools_answers_stay_where_some_are_measured_again() -> None:
    import bench

    old, new = row(onnxslim={}), row(ours=0.005)
    old["inference"] = {"milliseconds": 2.0, "ratios": {"itself": 1, "onnxslim": 2}}
    new["inference"] = {"milliseconds": 3.0, "ratios": {"itself": 3, "onnx_attn": 4}}
    found = bench._merged(old, new)
    assert found["tools"] == {"onnx_attn": new["tools"]["onnx_attn"], "onnxslim": old["tools"]["onnxslim"]}
    assert found["inference"] == {"milliseconds": 3.0, "ratios": {"itself": 3, "onnxslim": 2, "onnx_attn": 4}}
    assert "compiled" not in found
    assert bench._merged({}, new) == new


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--parts", "model"], "unknown 'model'"),
        (["--tools", "onnx_attn,other"], "unknown 'other'"),
        (["no.onnx"], "no.onnx: cannot be read as an ONNX model"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_any_work(tmp_path: Path, words: list[str], reason: str) -> None:
    import bench

    with pytest.raises(onnx_attn.OnnxAttnError, match=reason):
        bench.main(["-o", str(tmp_path), *words])
    assert list(tmp_path.iterdir()) == []
