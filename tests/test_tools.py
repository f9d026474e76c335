"""The scripts under tools/, run as a user runs them: as processes of their own, in a folder of their own."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from importlib import util
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from support import EXPORTS

from onnx_attn.errors import OnnxAttnError

pytest.importorskip("polygraphy")

ROOT = EXPORTS.parent.parent
BERT = EXPORTS / "bert.dynamo.18.static.eager.half.onnx"
HALF = EXPORTS / "handwritten.dynamo.18.static.half.onnx"
DYNAMIC = EXPORTS / "bert.dynamo.23.dynamic.onnx"
FLOAT_OPERATOR = EXPORTS / "sdpa.dynamo.23.static.onnx"
"""Attention operators in float32, which the compiler has no kernel for and does not decompose."""

needs_compiler = pytest.mark.skipif(util.find_spec("tensorrt_rtx") is None, reason="needs tensorrt_rtx")


def command(folder: Path, *words: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    whole = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run([str(word) for word in words], cwd=folder, env=whole, capture_output=True, text=True)


def tool(folder: Path, name: str, *words: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a script; whatever happens there is no traceback, and an error is one line."""
    done = command(folder, sys.executable, ROOT / "tools" / f"{name}.py", *words)
    assert "Traceback" not in done.stdout + done.stderr
    if done.returncode not in (0, 4):
        assert [line[:7] for line in done.stderr.splitlines()] == ["error: "], done.stderr
    return done


@pytest.fixture
def refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., OnnxAttnError]:
    """What a script raises for these words, in this process (which saves starting one), in an empty folder."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.setenv("POLYGRAPHY_USE_TENSORRT_RTX", "0")
    monkeypatch.chdir(tmp_path)

    def call(name: str, *words: str | Path) -> OnnxAttnError:
        with pytest.raises(OnnxAttnError) as caught:
            importlib.import_module(name).main([str(word) for word in words])
        assert "\n" not in str(caught.value)
        assert list(tmp_path.iterdir()) == []
        return caught.value

    return call


def by_hand(stdout: str, program: str) -> list[str]:
    """The printed commands of this program."""
    lines = [line for line in stdout.partition("The same by hand:\n")[2].splitlines() if not line.startswith("#")]
    return [line for line in lines if program in [Path(word).name for word in shlex.split(line)[:3]]]


def pasted(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    """Run a printed command, its programs being those of this environment."""
    words = shlex.split(text)
    settings = dict(word.split("=", 1) for word in words[:1] if "=" in word)
    words = words[len(settings) :]
    entry = {
        "python": [],
        "polygraphy": ["-c", "from polygraphy.tools._main import main; raise SystemExit(main())"],
    }.get(words[0], ["-c", "from onnx_attn.cli import app; app()"])
    return command(folder, sys.executable, *entry, *words[1:], **settings)


@pytest.fixture
def changed(tmp_path: Path) -> Path:
    """BERT with one number of its last weight, which only the second output sees, moved by 1."""
    model = onnx.load(BERT)
    (pooler,) = [node for node in model.graph.node if node.output[0] == model.graph.output[1].name]
    readers = {name: node for node in model.graph.node for name in node.output}
    dense = readers[pooler.input[0]]
    (weight,) = [tensor for tensor in model.graph.initializer if tensor.name in dense.input and len(tensor.dims) == 1]
    values = numpy_helper.to_array(weight).copy()
    values[5] += 1
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "changed.onnx")
    return tmp_path / "changed.onnx"


@pytest.mark.skipif(util.find_spec("tensorrt") is not None, reason="TensorRT is installed")
def test_a_runner_that_cannot_run_here_must_not_look_as_if_it_had(tmp_path: Path) -> None:
    done = tool(tmp_path, "compare", HALF, HALF, "--runner", "trt")
    assert done.returncode == 1
    assert "tensorrt is not installed; leave it out" in done.stderr


def test_a_model_and_itself_are_the_same(tmp_path: Path) -> None:
    done = tool(tmp_path, "compare", HALF, HALF)
    assert done.returncode == 0
    assert "0.0e+00  same" in done.stdout
    assert "max_rel 2e-03" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_a_second_model_the_surgery_comes_first_and_can_be_kept(tmp_path: Path) -> None:
    done = tool(
        tmp_path, "compare", DYNAMIC, "-o", "kept.onnx", "--shapes", "input_ids:2x6", "--shapes", "input_ids:3x9"
    )
    assert done.returncode == 0
    assert "2 of 2 sites fused" in done.stdout
    assert "input_ids 2x6, attention_mask 2x6; input_ids 3x9, attention_mask 3x9" in done.stdout
    assert "max_rel 1e-05" in done.stdout
    assert onnx.load(tmp_path / "kept.onnx").functions
    assert by_hand(done.stdout, "trtexec")[1].endswith(
        "--onnx=kept.onnx --stronglyTyped --shapes=input_ids:3x9,attention_mask:3x9"
    )


def test_the_first_differing_output_is_named(tmp_path: Path, changed: Path) -> None:
    done = tool(tmp_path, "compare", BERT, changed)
    assert done.returncode == 4
    rows = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines() if line.startswith("  ")}
    assert rows["last_hidden_state"] == "same"
    assert rows["pooler_output"] == "DIFFERS"
    (named,) = [line for line in done.stdout.splitlines() if line.startswith("first differing output: ")]
    assert named.startswith("first differing output: pooler_output: max_abs ")
    assert ", 5]" in named


@pytest.mark.parametrize("bound", ["--rtol", "--atol"])
def test_a_bound_decides(tmp_path: Path, changed: Path, bound: str) -> None:
    assert tool(tmp_path, "compare", BERT, changed, bound, "10").returncode == 0


def test_a_missing_model_and_wrong_usage_have_their_codes(tmp_path: Path) -> None:
    missing = tool(tmp_path, "compare", "missing.onnx")
    assert missing.returncode == 1
    assert missing.stderr == "error: missing.onnx: no such file; pass the path of an ONNX model\n"
    assert tool(tmp_path, "compare", HALF, "--shapes", "x:1x").returncode == 2


def test_seeds_make_other_inputs_that_stay_valid(tmp_path: Path) -> None:
    done = tool(tmp_path, "compare", BERT, BERT, "--seed", "3", "--iterations", "2", "--save-inputs", "saved.json")
    assert done.returncode == 0
    from polygraphy.json import load_json

    first, second = load_json(str(tmp_path / "saved.json"))
    words = next(tensor for tensor in onnx.load(BERT).graph.initializer if "word_embeddings" in tensor.name)
    assert not np.array_equal(first["input_ids"], second["input_ids"])
    for case in (first, second):
        assert case["input_ids"].max() < words.dims[0]
        assert set(np.unique(case["attention_mask"])) <= {0, 1}
        assert case["attention_mask"].any(axis=-1).all()


def test_values_of_the_callers_own(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal(shape).astype(np.float16) for name, shape in inputs_of(HALF).items()}
    np.savez(tmp_path / "values.npz", **values)
    done = tool(tmp_path, "compare", HALF, "--inputs", "values.npz")
    assert done.returncode == 0
    assert "--inputs values.npz --save-inputs" in by_hand(done.stdout, "compare.py")[0]


def inputs_of(path: Path) -> dict[str, list[int]]:
    graph = onnx.load(path).graph
    return {value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in graph.input}


@pytest.mark.parametrize("same", [True, False])
def test_the_printed_commands_of_polygraphy_come_to_the_same_verdict(tmp_path: Path, changed: Path, same: bool) -> None:
    """Pasted one after the other, as they stand: the inputs, two runs, the comparison."""
    done = tool(tmp_path, "compare", BERT, *([] if same else [changed, "--save-inputs", "saved.json"]))
    lines = [*by_hand(done.stdout, "onnx-attn"), *by_hand(done.stdout, "compare.py")]
    lines += by_hand(done.stdout, "polygraphy")
    assert len(lines) == (4 if same else 2)
    for text in lines[:-1]:
        ran = pasted(tmp_path, text)
        assert ran.returncode in (0, 4 if "compare.py" in text else 0), ran.stdout + ran.stderr
    last = pasted(tmp_path, lines[-1])
    assert (last.returncode == 0) == same, last.stdout
    assert ("PASSED" if same else "FAILED") in last.stdout


@pytest.mark.parametrize(
    ("code", "words", "says"),
    [
        (1, ["missing.onnx"], "missing.onnx: no such file"),
        (1, [HALF, EXPORTS / "gpt2.dynamo.23.static.onnx"], "is in one model only"),
        (1, [HALF, "--inputs", "missing.npz"], "missing.npz"),
        (1, [HALF, "-o", "nowhere/out.onnx"], "folder 'nowhere' does not exist"),
        (1, [HALF, "-o", HALF], "is the input itself"),
        (2, [HALF, "--shapes", "x:1x"], "write NAME:1x3x224x224"),
        (2, [HALF, "--shapes", "y:1x2x3"], "has no input 'y'"),
        (2, [HALF, HALF, "-o", "out.onnx"], "leave it out"),
        (2, [HALF, "--rtol", "-1"], "not negative"),
        (2, [HALF, "--inputs", "v.npz", "--seed", "1"], "leave out"),
        (2, [HALF, "--runner", "trt", "--runner", "trt-rtx"], "in turn"),
        (2, [HALF, "--unknown"], "unrecognized"),
    ],
)
def test_what_compare_refuses(
    refused: Callable[..., OnnxAttnError], code: int, words: list[str | Path], says: str
) -> None:
    error = refused("compare", *words)
    assert error.exit_code == code
    assert says in str(error)


@needs_compiler
def test_an_engine_of_the_fused_model_and_its_kernels(tmp_path: Path) -> None:
    done = tool(tmp_path, "build_engine", BERT, "-o", "bert.engine", "--fuse", "--layer-info", "layers.json")
    assert done.returncode == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert.engine", "layers.json"]
    size = (tmp_path / "bert.engine").stat().st_size
    assert size > 0
    assert f"bert.engine: {size:,} bytes, tensorrt_rtx" in done.stdout
    assert "attention kernels  2 (2 of 2 sites fused)" in done.stdout
    layers = json.loads((tmp_path / "layers.json").read_text())["Layers"]
    assert sum("_mha" in layer["Name"] for layer in layers) == 2
    assert f"kernels            {len(layers)}" in done.stdout


@needs_compiler
def test_layer_info_reads_as_what_tensorrts_inspector_writes(tmp_path: Path) -> None:
    from onnx_attn.engine.inspector import parse_inspector

    assert tool(tmp_path, "build_engine", HALF, "-o", "e", "--layer-info", "layers.json").returncode == 0
    kernels = parse_inspector(json.loads((tmp_path / "layers.json").read_text()))
    (attention,) = [kernel for kernel in kernels if kernel.is_attention]
    assert any("Softmax" in name or "softmax" in name for name in attention.onnx_layers)
    assert {tensor.datatype for tensor in attention.inputs} == {"Half"}


@needs_compiler
def test_the_printed_command_of_polygraphy_builds_an_engine(tmp_path: Path) -> None:
    words = [
        DYNAMIC,
        "-o",
        "d.engine",
        "--shapes",
        "input_ids:1x8",
        "--shapes",
        "input_ids:4x16",
        "--sm",
        "86",
        "--fuse",
    ]
    done = tool(tmp_path, "build_engine", *words)
    assert done.returncode == 0
    (tmp_path / "d.engine").unlink()
    fuse, convert, comment, rtx = done.stdout.partition("by hand:\n")[2].splitlines()
    assert comment.startswith("# or, with")
    assert pasted(tmp_path, fuse).returncode == 0
    built = pasted(tmp_path, convert)
    assert built.returncode == 0, built.stdout
    assert (tmp_path / "d.engine").stat().st_size > 0
    assert "--minShapes=input_ids:1x8,attention_mask:1x8" in rtx
    assert "--optShapes=input_ids:4x16,attention_mask:4x16" in rtx
    assert "--computeCapabilities=86" in rtx


@needs_compiler
def test_a_build_that_fails_leaves_nothing_and_gives_the_compilers_words(tmp_path: Path) -> None:
    done = tool(tmp_path, "build_engine", FLOAT_OPERATOR, "-o", "x.engine", "--layer-info", "layers.json")
    assert done.returncode == 1
    assert "not supported by a dedicated kernel" in done.stderr
    assert "try --fuse" in done.stderr
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_a_failed_build_leaves_the_engine_of_before(tmp_path: Path) -> None:
    (tmp_path / "x.engine").write_bytes(b"before")
    done = tool(tmp_path, "build_engine", HALF, "-o", "x.engine", "--timeout", "0.01")
    assert done.returncode == 1
    assert "stopped after 0.01 seconds" in done.stderr
    assert (tmp_path / "x.engine").read_bytes() == b"before"


@needs_compiler
def test_a_compiler_that_crashes_is_an_error_of_one_line(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT16, [1, 4, 16, 64])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT16, [1, 4, 16, 64])
    node = helper.make_node("Attention", ["x", "x", "x"], ["y"], "attention")
    graph = helper.make_graph([node], "g", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11), tmp_path / "m.onnx")
    done = tool(tmp_path, "build_engine", "m.onnx", "-o", "m.engine")
    if done.returncode:  # a later compiler may have learnt it
        assert "m.onnx: tensorrt_rtx" in done.stderr
        assert not (tmp_path / "m.engine").exists()


@needs_compiler
@pytest.mark.parametrize(
    ("code", "words", "says"),
    [
        (1, ["missing.onnx", "-o", "e"], "missing.onnx: no such file"),
        (1, [HALF, "-o", "nowhere/e"], "folder 'nowhere' does not exist"),
        (1, [HALF, "-o", HALF], "is the input itself"),
        (2, [HALF], "-o"),
        (2, [HALF, "-o", "e", "--layer-info", "e"], "is asked for twice"),
        (2, [HALF, "-o", "e", "--shapes", "x=1"], "write NAME:1x3x224x224"),
        (2, [HALF, "-o", "e", "--shapes", "x:1x2"], "3 dimensions, 2 were given"),
        (2, [DYNAMIC, "-o", "e"], "such as --shapes input_ids:2x"),
        (2, [DYNAMIC, "-o", "e", "--shapes", "input_ids:4x16", "--shapes", "input_ids:1x8"], "do not grow"),
        (2, [HALF, "-o", "e", "--sm", "90"], "no target SM 90"),
        (2, [HALF, "-o", "e", "--timing-cache", "t"], "TensorRT for RTX"),
        (2, [HALF, "-o", "e", "--optimization-level", "9"], "invalid choice"),
    ],
)
def test_what_build_engine_refuses(
    refused: Callable[..., OnnxAttnError], code: int, words: list[str | Path], says: str
) -> None:
    error = refused("build_engine", *words)
    assert error.exit_code == code
    assert says in str(error)


@pytest.mark.skipif(util.find_spec("tensorrt") is not None, reason="tensorrt is installed here")
def test_a_compiler_that_is_not_installed_is_named_with_what_to_install(tmp_path: Path) -> None:
    done = tool(tmp_path, "build_engine", HALF, "-o", "e", "--compiler", "tensorrt")
    assert done.returncode == 1
    assert "pip install tensorrt" in done.stderr
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_json_does_not_replace_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"\x01\x02")
    for name, option in (("compare", "--save-inputs"), ("build_engine", "--layer-info")):
        words = [] if name == "compare" else ["-o", "e"]
        done = tool(tmp_path, name, HALF, *words, option, "weights.bin")
        assert done.returncode == 2
        assert "would be lost" in done.stderr
    assert (tmp_path / "weights.bin").read_bytes() == b"\x01\x02"


@pytest.mark.parametrize(("version", "typed"), [("8.6.1", False), ("10.13.0", True), ("11.4.1", False)])
def test_trtexecs_flags_follow_its_version(monkeypatch: pytest.MonkeyPatch, version: str, typed: bool) -> None:
    """TensorRT 8 has no --stronglyTyped, TensorRT 11 no other way. A name with a colon stands in quotes of its own."""
    monkeypatch.syspath_prepend(ROOT / "tools")
    script = importlib.import_module("build_engine")
    words = ["m.onnx", "-o", "m.engine", "--timing-cache", "t", "--layer-info", "l.json", "--optimization-level", "4"]
    shapes = {"x:0": ((1, 8), (4, 16), (8, 32))}
    (text,) = script._by_hand(script._options(words), "tensorrt", version, 0, shapes)
    flags = shlex.split(text)
    assert ("--stronglyTyped" in flags) == typed
    assert {
        "--onnx=m.onnx",
        "--saveEngine=m.engine",
        "--minShapes='x:0':1x8",
        "--optShapes='x:0':4x16",
        "--maxShapes='x:0':8x32",
        "--builderOptimizationLevel=4",
        "--timingCacheFile=t",
        "--profilingVerbosity=detailed",
        "--exportLayerInfo=l.json",
    } <= set(flags)


@needs_compiler
def test_the_table_of_defaults_says_where_a_search_finds_better(tmp_path: Path) -> None:
    model = EXPORTS / "decoder_layer_pre.torchscript.17.static.half.onnx"
    outcome = command(tmp_path, sys.executable, ROOT / "tools/search_defaults.py", model)
    assert outcome.returncode == 0, outcome.stderr
    head, _, row = outcome.stdout.splitlines()
    assert head.startswith("| model | kinds |")
    assert row.startswith(f"| {model.stem} | 2 |") and "algebra [" in row
    wrong = command(tmp_path, sys.executable, ROOT / "tools/search_defaults.py", model, "--sm", "eighty")
    assert wrong.returncode == 2 and wrong.stderr.startswith("error: ")
