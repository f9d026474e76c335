"""What is told of the work while it goes on: to listeners stages and sites, to a terminal one line, to others nothing."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from commands import MASKED
from graphs import Net, heads_in
from rich.console import Console
from support import EXPORTS
from terminals import ESCAPE, shown, terminal
from test_traps_scope import attention_nodes, branch

import onnx_attn
from onnx_attn.progress import listening
from onnx_attn.report import progress_line
from onnx_attn.report.progress_line import Watch

__all__ = ["terminal"]
VIT = EXPORTS / "vit_b_16.torchscript.17.static.half.onnx"
SWIN = EXPORTS / "swin_t.dynamo.18.static.half.onnx"


@dataclass
class Heard:
    """A listener that remembers: stages in order, and of each the labels of its steps."""

    stages: list[str] = field(default_factory=list)
    steps: dict[str, list[tuple[int, int, str]]] = field(default_factory=dict)

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def step(self, number: int, total: int, label: str) -> None:
        self.steps.setdefault(self.stages[-1], []).append((number, total, label))


def test_fusing_tells_its_stages_and_sites(tmp_path: Path) -> None:
    heard = Heard()
    with listening(heard):
        report = onnx_attn.fuse(VIT, tmp_path / "fused.onnx").report
    inside = ["stats", "recognize", "plan", "apply", "save", "prove whole"]
    assert sorted(dict.fromkeys(filter(None, heard.stages))) == sorted(["load", "prove", *inside])
    assert [heard.stages.index(name) for name in inside] == sorted(map(heard.stages.index, inside))
    assert heard.stages[-1] == ""
    names = [site["softmax"] for site in report["candidates"]]
    assert heard.steps["prove"] == heard.steps["apply"] == [(1, 2, names[0]), (2, 2, names[1])]
    assert heard.steps["prove whole"][0] == (1, 2, str(VIT))
    assert heard.steps["prove whole"][-1] == (2, 2, f"{VIT} (fused)")


def test_a_body_tells_where_it_is() -> None:
    net, heard = Net(), Heard()
    q, kt, v = heads_in(net)
    sides = [branch(name, attention_nodes(name, q, kt, v), f"{name}y") for name in ("yes", "no")]
    net.output(net.op("If", net.input("flag", dtype=bool), name="c", then_branch=sides[0], else_branch=sides[1]))
    with listening(heard):
        assert onnx_attn.fuse(net.model()).report["fused"] == 2
    assert heard.steps["body 1 of 2, prove"] == heard.steps["body 2 of 2, prove"] == [(1, 1, "softmax")]
    assert heard.stages[-1] == ""


def test_a_search_tells_the_kinds_of_sites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard = Heard()
    monkeypatch.setattr("onnx_attn.search.search.choose_toolkit", lambda _: "tensorrt_rtx")
    monkeypatch.setattr("onnx_attn.search.ask.Compiler.name", "none")
    monkeypatch.setattr("onnx_attn.search.ask.Compiler._build", lambda *_: None)
    with listening(heard):
        onnx_attn.fuse(SWIN, tmp_path / "fused.onnx", search=True, verify=False)
    assert heard.steps["search"] == [(1, 2, "node_softmax"), (2, 2, "node_softmax_1"), (0, 0, "the whole model")]


def test_the_last_stage_is_told_to_be_over_after_an_error_too(tmp_path: Path) -> None:
    heard, broken = Heard(), tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with listening(heard), pytest.raises(onnx_attn.InputError):
        onnx_attn.inspect(broken)
    assert heard.stages == ["load", ""]


def test_python_callers_are_told_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    onnx_attn.fuse(MASKED, tmp_path / "fused.onnx")
    assert capfd.readouterr() == ("", "")


def test_progress_is_on_a_terminal_alone_and_not_when_quiet(terminal: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = ("fuse", VIT, "-o", tmp_path / "fused.onnx")
    report, progress = shown(terminal, *words)
    assert re.search(r"(begin|load|stats|prove|recognize|plan|apply|save).* 0:0\d", progress)
    assert progress.endswith(f"{ESCAPE}[1A{ESCAPE}[2K")  # The line is taken back.
    assert progress.count(f"{ESCAPE}[?25l") <= progress.count(f"{ESCAPE}[?25h")  # The cursor is there again.
    assert "0:0" not in report
    assert shown(terminal, *words, piped="stderr")[1] == ""
    assert shown(terminal, *words, "--quiet") == ("", "")
    terminal.setattr(progress_line, "PATIENCE", 60.0)
    assert shown(terminal, *words)[1] == ""
    terminal.setattr(progress_line, "PATIENCE", 0.0)
    terminal.setenv("TERM", "dumb")
    assert shown(terminal, *words)[1] == ""


@pytest.mark.parametrize("width", [30, 60, 120])
def test_the_line_fits_and_shows_the_end_of_a_name(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, color_system=None)
    watch = Watch(console)
    watch.stage("prove")
    watch.step(3, 12, "/encoder/layers/encoder_layer_2/self\x1b[31m_attention/Softmax")
    console.print(watch.line())
    [line] = console.file.getvalue().splitlines()
    assert len(line.rstrip()) <= width and ESCAPE not in line
    assert line.startswith("prove ")
    assert "3 of 12" in line
    assert re.search(r"max 0:00 *$", line)
