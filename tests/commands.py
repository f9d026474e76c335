"""Run the command line in this process and look at what it leaves: exit code, streams, folder."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from support import EXPORTS
from typer.testing import CliRunner

from onnx_attn.cli import app

SMALLEST = EXPORTS / "sdpa_scale.torchscript.17.static.onnx"
"""One site and nothing else, under 1 KB."""
MASKED = EXPORTS / "sdpa_mask.dynamo.18.dynamic.onnx"
NO_ATTENTION = EXPORTS / "no_attention.torchscript.17.static.onnx"
DEMO = EXPORTS.parent.parent / "onnx_attn" / "demo" / "vit_b_16_tiny.onnx"

WAY_OUT = re.compile(
    r"\b(pass|put|choose|create|name|give|write|use|export|install|make|try|see|check|save|start|report|add|leave|remove|free"
    r"|re-export|says why)\b"
)


@dataclass(frozen=True)
class Outcome:
    """What a command left behind."""

    code: int
    stdout: str
    stderr: str


def run_command(*arguments: str | Path) -> Outcome:
    """Run `onnx-attn ARGUMENTS`. An exception that is not the command line's own exit is raised here."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Outcome(result.exit_code, result.stdout, result.stderr)


def error_line(outcome: Outcome, code: int, *mentions: str) -> str:
    """The single line of an error, after checking that it is one, has the exit code and names what it is about."""
    assert outcome.code == code, outcome
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1, outcome
    assert lines[0].startswith("error: "), outcome
    assert "Traceback" not in outcome.stdout + outcome.stderr
    for mention in mentions:
        assert mention in lines[0], (mention, lines[0])
    return lines[0]


def says_what_to_do(line: str, *about: str | Path) -> bool:
    """True if a way out is named, in words that are not part of a file's name."""
    for text in about:
        line = line.replace(str(text), "")
    return ";" in line and WAY_OUT.search(line.split(";", 1)[1]) is not None
