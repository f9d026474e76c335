"""Pages that list what there is list all of it: options, keys of reports, functions, parts of the package."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import pytest
from pages import ROOT, options_of
from support import EXPORTS

import onnx_attn

SWIN = EXPORTS / "swin_t.dynamo.18.static.half.onnx"
COMMANDS = ("inspect", "fuse", "verify", "land", "expand", "extract", "stats", "demo")
OPTION = re.compile(r"(?<![\w-])-(?:-[a-z][a-z-]+|[a-z])(?![\w-])")
DATA = {
    "seconds",
    "by_role",
    "by_operator",
    "by_type",
    "formulas",
    "sizes",
    "shapes",
    "algebra_left",
    "masks",
    "between",
}
"""Keys beneath which names of the model stand, or of steps, roles and types, in place of keys of the report."""


def page(name: str) -> str:
    return (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")


def named(text: str) -> set[str]:
    """What stands in code marks."""
    return set(re.findall(r"`([^`\n]+)`", text))


def sections() -> dict[str, str]:
    """The page of commands by command."""
    return {part.partition("\n")[0]: part for part in page("commands").split("\n## ")[1:]}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_a_command_is_told(command: str) -> None:
    text = sections()[command] + (page("landing") if command == "land" else "")
    told = set(OPTION.findall(text)) | {"--json", "--html", "--quiet", "--verbose", "--help"}  # told once for all
    assert [names for names in options_of(command) if not told.intersection(names)] == []


def test_every_option_that_is_told_exists() -> None:
    known = {name for command in COMMANDS for names in options_of(command) for name in names}
    assert set(OPTION.findall(page("commands"))) <= known | {"--help", "--version"}


def keys(report: Any) -> Iterator[str]:
    """Every key of a report, at any depth."""
    if isinstance(report, dict):
        for key, value in report.items():
            yield key
            yield from () if key in DATA else keys(value)
    elif isinstance(report, list):
        for entry in report:
            yield from keys(entry)


def test_every_key_of_every_report_is_told(tmp_path: Path) -> None:
    fused, certificates = tmp_path / "fused.onnx", tmp_path / "report.json"
    fusion = onnx_attn.fuse(SWIN, fused).report
    certificates.write_text(json.dumps(fusion), encoding="utf-8")
    reports = [
        onnx_attn.inspect(SWIN),
        {**fusion, "stats": None},  # told with the figures of a model
        onnx_attn.extract(SWIN, "site-0", tmp_path / "site.onnx"),
        onnx_attn.verify(SWIN, fused, certificate=certificates),
        onnx_attn.stats(fused),
    ]
    reports += [onnx_attn.land(fused)] if util.find_spec("tensorrt_rtx") is not None else []
    assert {key for report in reports for key in keys(report)} <= named(page("report"))


@pytest.mark.parametrize("name", ["inspect", "fuse", "expand", "extract", "verify", "land", "stats"])
def test_functions_have_the_parameters_that_are_told(name: str) -> None:
    (told,) = re.findall(rf"^- `{name}\((.+?)\)`", page("python"), re.MULTILINE)
    words = [word.partition("=")[0] for word in told.split(", ") if word != "*"]
    assert words == list(inspect.signature(getattr(onnx_attn, name)).parameters)


def test_the_parts_that_are_told_are_those_of_the_package() -> None:
    told = set(re.findall(r"^\| `([\w/.]+)` \|", page("how-it-works").partition("## How it is built")[2], re.MULTILINE))
    package = ROOT / "onnx_attn"
    assert all((package / part).exists() for part in told)
    folders = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert folders - told == {"demo/"}
