"""What a terminal shows, what it does not when piped or quiet, and what help promises."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import shutil
from collections import Counter
from pathlib import Path

import onnx
import pytest
from commands import DEMO, MASKED, NO_ATTENTION, error_line, run_command
from rich.console import Console
from support import EXPORTS
from terminals import ESCAPE, shown, terminal

import onnx_attn
from onnx_attn.report.lines import show_table, span, table_of

__all__ = ["terminal"]
VIT = EXPORTS / "vit_b_16.torchscript.17.static.half.onnx"
SWIN = EXPORTS / "swin_t.dynamo.18.static.half.onnx"
COMMANDS = ("inspect", "fuse", "verify", "land", "expand", "extract", "stats", "demo")
"""In an order in which each finds what the examples of those before it have written."""


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
