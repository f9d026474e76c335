"""`polygraphy run --fuse-attention` and the loaders, with the polygraphy that is installed."""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
from commands import DEMO, NO_ATTENTION, SMALLEST
from support import EXPORTS

import onnx_attn
from onnx_attn.forms.adaptation import ISLANDS
from onnx_attn.targets.editions import RUNTIMES
from onnx_attn.targets.lookup import ON_REQUEST, WRITTEN

polygraphy = pytest.importorskip("polygraphy")

from polygraphy.exception import PolygraphyException  # noqa: E402
from polygraphy.tools import main  # noqa: E402

from onnx_attn.polygraphy import (  # noqa: E402
    FuseAttention,
    FuseAttentionToFile,
    fuse_attention,
    fuse_attention_to_file,
)

DYNAMIC = EXPORTS / "sdpa_mask.dynamo.18.dynamic.onnx"

has_plugin = any(entry.name == "onnx-attn" for entry in metadata.entry_points(group="polygraphy.run.plugins"))
needs_plugin = pytest.mark.skipif(
    not has_plugin, reason="onnx-attn was installed here before it had a plugin for polygraphy; install it again"
)


class Run(NamedTuple):
    code: int
    told: str


Runs = Callable[..., Run]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Runs:
    """`polygraphy run …` in this process."""

    def runs(*words: str | Path) -> Run:
        try:
            code = main(["run", *map(str, words)])
        except SystemExit as error:  # argparse
            code = error.code
        told = capfd.readouterr()
        return Run(int(code), told.out + told.err)

    return runs


@needs_plugin
def test_one_command_compares_the_original_with_the_fused_model(run: Runs) -> None:
    found = run(DEMO, "--onnxrt", "--fuse-attention", "--fuse-attention-expect", "2")
    assert found.code == 0, found.told
    assert "2 of 2 attention sites fused for tensorrt" in found.told
    assert "vs. fuse-attention | Passed: 1/1 iterations" in found.told


@needs_plugin
def test_options_reach_the_fusion_and_a_difference_fails(run: Runs) -> None:
    """Half-precision islands are beyond the bounds that polygraphy has by itself, and within others."""
    islands = (DEMO, "--onnxrt", "--fuse-attention", "--fuse-attention-precision", "fp16")
    found = run(*islands)
    assert found.code == 1 and "exceeds tolerance" in found.told
    assert run(*islands, "--atol", "2e-3").code == 0


@needs_plugin
def test_inputs_are_kept_and_given_back_and_the_fused_model_is_kept(run: Runs, tmp_path: Path) -> None:
    inputs, fused = tmp_path / "inputs.json", tmp_path / "fused.onnx"
    shapes = [f"{value.name}:[2,4,8,24]" for value in onnx.load(DYNAMIC).graph.input[:3]]
    mask = onnx.load(DYNAMIC).graph.input[3]
    given = (*shapes, f"{mask.name}:{[2, 1, 8, 8][-len(mask.type.tensor_type.shape.dim) :]}".replace(" ", ""))
    both = ("--onnxrt", "--fuse-attention")
    assert run(DYNAMIC, *both, "--input-shapes", *given, "--save-inputs", inputs).code == 0
    found = run(DYNAMIC, *both, "--load-inputs", inputs, "--fuse-attention-save", fused)
    assert found.code == 0 and "(2, 4, 8, 24)" in found.told
    assert onnx_attn.verify(DYNAMIC, fused)["ok"]


@needs_plugin
def test_the_script_that_polygraphy_writes_does_the_same(
    run, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "compare.py"
    words = ("--fuse-attention-no-pack", "--fuse-attention-no-verify", "--fuse-attention-target", "onnxruntime")
    assert run(DEMO, "--onnxrt", "--fuse-attention", *words, "--gen-script", script).code == 0
    assert f"FuseAttention('{DEMO}', target='onnxruntime', pack=False, verify=False)" in script.read_text()
    runpy.run_path(str(script))
    assert "Passed: 1/1 iterations" in capfd.readouterr().out


@needs_plugin
def test_values_that_polygraphy_marks_as_outputs_are_compared_too(run: Runs) -> None:
    name = next(node.output[0] for node in onnx.load(DEMO).graph.node if "ln_1" in node.output[0])
    found = run(DEMO, "--onnxrt", "--fuse-attention", "--fuse-attention-expect", "2", "--onnx-outputs", "logits", name)
    assert found.code == 0 and f"Comparing Output: '{name}'" in found.told, found.told


@needs_plugin
def test_a_model_without_attention_is_compared_and_said_to_show_nothing(run: Runs) -> None:
    found = run(NO_ATTENTION, "--onnxrt", "--fuse-attention")
    assert found.code == 0
    assert "[W] onnx-attn" in found.told and "0 of 0 attention sites fused" in found.told


@needs_plugin
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (("--fuse-attention-expect", "5"), 1, "but 2 sites can be fused"),
        (("--fuse-attention-form", "contrib"), 1, "does not take the form 'contrib'"),
        (("--fuse-attention-target", "toaster"), 2, "invalid choice: 'toaster'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(
    run: Runs, words: tuple[str, ...], code: int, told: str
) -> None:
    found = run(DEMO, "--fuse-attention", *words)
    assert found.code == code
    assert told in found.told and "Traceback" not in found.told


@needs_plugin
def test_a_file_that_is_no_model(run: Runs, tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_text("hello")
    found = run(path, "--fuse-attention")
    assert found.code == 1
    assert "is not an ONNX model" in found.told and "Traceback" not in found.told


def test_the_choices_are_those_of_the_package() -> None:
    """Which the plugin does not import."""
    from onnx_attn.polygraphy_plugin import CHOICES

    assert set(CHOICES["target"]) == set(RUNTIMES)
    assert set(CHOICES["form"]) == {"auto", *WRITTEN, *ON_REQUEST}
    assert set(CHOICES["precision"]) == {"keep", *ISLANDS}


def test_the_plugin_brings_in_nothing_but_itself() -> None:
    """polygraphy loads it at every call, whatever it is called for."""
    program = (
        "import sys; import polygraphy.tools.run.run; import onnx_attn.polygraphy_plugin; "
        "assert onnx_attn.polygraphy_plugin.argument_groups(); "
        "print([m for m in sys.modules if m.split('.')[0] in ('onnx_attn', 'onnx', 'numpy', 'onnxruntime')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "['onnx_attn', 'onnx_attn.polygraphy_plugin']"


def test_a_loader_takes_what_polygraphy_s_loaders_give(tmp_path: Path) -> None:
    from polygraphy.backend.onnx import BytesFromOnnx, OnnxFromPath

    wanted = onnx_attn.fuse(SMALLEST).model
    assert fuse_attention(str(SMALLEST)) == wanted
    assert BytesFromOnnx(FuseAttention(OnnxFromPath(str(SMALLEST)), expect=1))() == wanted.SerializeToString()
    saved = FuseAttentionToFile(OnnxFromPath(str(SMALLEST)), tmp_path / "fused.onnx", verify=False)()
    assert saved == str(tmp_path / "fused.onnx") and onnx.load(saved) == wanted
    assert onnx.load(fuse_attention_to_file(SMALLEST, tmp_path / "again.onnx")) == wanted


def test_a_loader_says_what_is_wrong() -> None:
    with pytest.raises(PolygraphyException, match=r"onnx-attn: nowhere\.onnx: no such file") as raised:
        fuse_attention("nowhere.onnx")
    assert isinstance(raised.value.__cause__, onnx_attn.InputError)
    with pytest.raises(TypeError, match="packs"):
        FuseAttention(SMALLEST, packs=False)


def test_without_polygraphy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polygraphy", None)
    monkeypatch.delitem(sys.modules, "onnx_attn.polygraphy")
    with pytest.raises(ImportError, match=r"pip install 'onnx-attn\[tensorrt\]'"):
        importlib.import_module("onnx_attn.polygraphy")
