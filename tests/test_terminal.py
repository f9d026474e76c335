"""What a terminal shows while a command works and afterwards, what it does not when piped or quiet, and what help promises."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import onnx
import pytest
from commands import DEMO, MASKED, NO_ATTENTION, error_line, run_command
from graphs import Net, heads_in
from rich.console import Console
from support import EXPORTS
from test_traps_scope import attention_nodes, branch

import onnx_attn
from onnx_attn.cli import app
from onnx_attn.progress import listening
from onnx_attn.report import progress_line
from onnx_attn.report.lines import show_table, span, table_of
from onnx_attn.report.progress_line import Watch

VIT = EXPORTS / "vit_b_16.torchscript.17.static.half.onnx"
SWIN = EXPORTS / "swin_t.dynamo.18.static.half.onnx"
COMMANDS = ("inspect", "fuse", "verify", "land", "expand", "extract", "stats", "demo")
"""In an order in which each finds what the examples of those before it have written."""
ESCAPE = "\x1b"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Both streams are terminals of 80 columns, and nobody waits for a line of progress."""
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(progress_line, "PATIENCE", 0.0)
    return monkeypatch


def shown(terminal: pytest.MonkeyPatch, *arguments: str | Path, piped: str = "") -> tuple[str, str]:
    """What stands on stdout and stderr, of which one may be a pipe."""
    streams = {name: io.StringIO() if name == piped else Terminal() for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        terminal.setattr(sys, name, stream)
    app([str(argument) for argument in arguments], standalone_mode=False)
    return streams["stdout"].getvalue(), streams["stderr"].getvalue()


# Help.


def examples(command: str) -> list[str]:
    lines = [line.strip() for line in run_command(*filter(None, [command]), "--help").stdout.splitlines()]
    return [line for line in lines if line.startswith("onnx-attn ")]


def test_help_begins_with_the_two_commands_that_matter() -> None:
    assert [words.split()[1] for words in examples("")] == ["inspect", "fuse"]


def test_every_example_of_help_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("tensorrt_rtx")
    shutil.copy(VIT, tmp_path / "model.onnx")
    monkeypatch.chdir(tmp_path)
    for command in COMMANDS:
        assert examples(command), command
        for example in examples(command):
            words = shlex.split(example)[1:]
            assert words[0] == command
            outcome = run_command(*words)
            assert (outcome.code, outcome.stderr) == (0, ""), (example, outcome)
    assert set(os.listdir()) >= {"fused.onnx", "half.onnx", "report.json", "plain.onnx", "site.onnx", "stats.json"}


def test_every_command_has_help_with_an_example() -> None:
    listed = run_command("--help").stdout
    commands = re.findall(r"^│ (\w+) ", listed[listed.index("Commands") :], re.MULTILINE)
    assert sorted(commands) == sorted(COMMANDS)


# Quiet and verbose.


def test_quiet_says_nothing_but_errors_and_the_json_that_was_asked_for(tmp_path: Path) -> None:
    fused = tmp_path / "fused.onnx"
    for arguments in (
        ["inspect", MASKED],
        ["fuse", MASKED, "-o", fused],
        ["verify", MASKED, fused],
        ["expand", fused, "-o", tmp_path / "plain.onnx"],
        ["extract", MASKED, "--site", "site-0", "-o", tmp_path / "site.onnx"],
        ["stats", MASKED],
        ["demo"],
    ):
        outcome = run_command(*arguments, "--quiet")
        assert (outcome.code, outcome.stdout, outcome.stderr) == (0, "", ""), arguments
    outcome = run_command("inspect", MASKED, "-q", "--json", "-")
    assert (json.loads(outcome.stdout)["sites"], outcome.stderr) == (1, "")
    error_line(run_command("fuse", MASKED, "-o", fused, "-q", "--expect", "7"), 3, "--expect 7")
    error_line(run_command("verify", MASKED, NO_ATTENTION, "-q"), 1)


@pytest.mark.parametrize("command", ["inspect", "stats"])
def test_quiet_and_verbose_are_wrong_usage(command: str) -> None:
    error_line(run_command(command, MASKED, "-q", "-v"), 2, "--quiet", "--verbose", "leave one")


def test_verbose_shows_every_site_with_its_certificate(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    words = ("fuse", DEMO, "-o", tmp_path / "fused.onnx")
    told = " ".join(run_command(*words, "-v", "--json", report).stdout.split())
    short = " ".join(run_command(*words).stdout.split())
    for site in json.loads(report.read_text())["candidates"]:
        certificate = site["certificate"]
        truth = certificate["error_against_float64"]
        for text in (
            f"{site['id']} {site['softmax']}",
            f"max_rel {certificate['max_rel']:.1e} in {certificate['cases']} cases (allowed {certificate['bound']:.0e})",
            f"off float64 by {truth['after']['max_rel']:.1e}, as exported by {truth['before']['max_rel']:.1e}",
            f"algebra: {', '.join(site['algebra'])}",
            *(f"without {name}: {reason}" for name, reason in site["algebra_left"].items()),
        ):
            assert text in told
            assert text not in short
        assert site["algebra"] and site["algebra_left"]


def test_verbose_names_what_is_no_attention_and_the_time_of_each_stage() -> None:
    told = run_command("inspect", NO_ATTENTION, "-v").stdout
    [other] = onnx_attn.inspect(NO_ATTENTION)["candidates"]
    for text in (other["id"], other["softmax"], other["code"], other["reason"], "seconds", "recognize"):
        assert text in told
    short = run_command("inspect", NO_ATTENTION).stdout
    assert other["softmax"] not in short and "seconds" not in short


# Operators before and after.


def operators(path: Path) -> Counter[str]:
    """By an own count, of a model without functions that are inlined and without bodies."""
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize("command", ["fuse", "expand"])
def test_operators_are_set_side_by_side(command: str, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    before = operators(SWIN)
    told, short = (run_command(command, SWIN, "-o", out, *more).stdout for more in (["-v"], []))
    after = operators(out)
    changed = {kind: after[kind] - before[kind] for kind in before | after if after[kind] != before[kind]}
    rows = re.findall(r"^(\w+) +(\d+) +(\d+) +([+-]\d+)$", told, re.MULTILINE)
    assert {kind: (int(a), int(b), int(c)) for kind, a, b, c in rows} == {
        kind: (before[kind], after[kind], change) for kind, change in changed.items()
    }
    assert [abs(int(change)) for *_, change in rows] == sorted(map(abs, changed.values()), reverse=True)
    few = re.findall(r"^(\w+) +\d+ +\d+ +[+-]\d+$", short, re.MULTILINE)
    assert len(few) == 10 < len(rows)
    assert {kind for kind in changed if "Window" in kind or "Scaled" in kind} <= set(few)
    assert f"and {len(rows) - 10} operators more: --verbose" in short


def test_the_change_of_operators_is_coloured(terminal: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told, _ = shown(terminal, "fuse", SWIN, "-o", tmp_path / "out.onnx")
    assert f"{ESCAPE}[32m-18{ESCAPE}[0m" in told
    assert f"{ESCAPE}[33m+1{ESCAPE}[0m" in told


# Colours, pipes, widths.


def test_no_color_leaves_no_escape_codes_and_a_pipe_has_none(terminal: pytest.MonkeyPatch) -> None:
    assert ESCAPE in shown(terminal, "inspect", MASKED)[0]
    assert ESCAPE not in shown(terminal, "inspect", MASKED, piped="stdout")[0]
    terminal.setenv("FORCE_COLOR", "1")
    assert ESCAPE in shown(terminal, "inspect", MASKED, piped="stdout")[0]
    assert shown(terminal, "inspect", MASKED, piped="stderr")[1] == ""  # Colours are no progress.
    terminal.setenv("NO_COLOR", "1")
    assert ESCAPE not in shown(terminal, "inspect", MASKED)[0]
    assert ESCAPE not in shown(terminal, "inspect", MASKED, piped="stdout")[0]


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_nothing_is_wider_than_the_terminal_and_no_word_is_broken(
    columns: int, terminal: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    terminal.setenv("COLUMNS", str(columns))
    terminal.setenv("NO_COLOR", "1")
    terminal.chdir(tmp_path)
    shutil.copy(SWIN, "swin.onnx")
    for arguments, words in (
        (["fuse", "swin.onnx", "-o", "out.onnx"], ["projection", "tokens-first", "relative_bias", "max_rel"]),
        (["stats", "swin.onnx"], ["primitives", "intermediates", "operations", "materialised"]),
    ):
        told, _ = shown(terminal, *arguments)
        assert max(map(len, told.splitlines())) <= columns
        assert [word for word in words if word not in told] == []


def test_a_table_too_wide_for_its_words_becomes_lines() -> None:
    def lines(width: int) -> list[str]:
        table = table_of("site", ">heads", "masks")
        table.add_row("site-0", "12", "additive relative_bias")
        file = io.StringIO()
        show_table(table, Console(file=file, width=width))
        return [line.rstrip() for line in file.getvalue().splitlines()]

    assert lines(60) == ["site    heads  masks", "site-0     12  additive relative_bias"]
    assert lines(30) == ["site    heads  masks", "site-0     12  additive", "               relative_bias"]
    assert lines(27) == ["site-0", "        heads 12, masks", "        additive", "        relative_bias"]


def test_a_span_tells_where_others_lie_between() -> None:
    assert span(["site-3"]) == "site-3"
    assert span(["site-9", "site-10", "site-11"]) == "site-9 … site-11"
    assert span(["site-0", "site-2", "site-4"]) == "site-0 … site-4 (3)"


# Progress.


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
