"""The pages of the documentation as their blocks: what a reader would run, in order, and what the page says comes of it.

A page names the models that it talks of in a comment, `<!-- models: vit.onnx = FILE of tests/exports, … -->`. What a block needs
that not every machine has stands in a comment in front of it, `<!-- needs: torch -->`.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from typer.main import get_command

from onnx_attn.cli import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

_MARK = re.compile(r"<!-- (.+?) -->")
_MODELS = re.compile(r"<!-- models: (.+?) -->", re.DOTALL)
_CODE = re.compile(r"\s+# exit code (\d)$")


def at(page: Path, line: int) -> str:
    """A line of a page, as messages say it."""
    return f"{page.relative_to(ROOT) if page.is_relative_to(ROOT) else page.name}:{line}"


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the line of the page where the text starts, and the comment in front of it."""

    page: Path
    line: int
    language: str
    text: str
    mark: str

    @property
    def place(self) -> str:
        return at(self.page, self.line)

    @property
    def needs(self) -> str:
        """What the block needs that a test has not: "torch", "network", "gpu" or nothing."""
        return self.mark.removeprefix("needs: ") if self.mark.startswith("needs: ") else ""


@dataclass(frozen=True)
class Command:
    """One command of a block, the exit code that the page gives it, and the lines that it shows of the output."""

    words: list[str]
    code: int
    shown: list[str]
    place: str


def blocks(page: Path) -> list[Block]:
    """The page's blocks. A fence that is not closed, or code that is indented instead, is an error."""
    found: list[Block] = []
    language, start, mark, text = "", 0, "", list[str]()
    lines = page.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, 1):
        if start and line == "```":
            found.append(Block(page, start, language, "\n".join(text), mark))
            start, mark = 0, ""
        elif start:
            text.append(line)
        elif line.startswith("```"):
            language, start, text = line[3:], number + 1, []
            assert language, f"{page}:{number}: a block without a language"
        else:
            blank = number > 1 and not lines[number - 2].strip()
            assert not (blank and line.startswith("    ") and line.strip()), f"{page}:{number}: code without a fence"
            marked = _MARK.fullmatch(line)
            mark = marked[1] if marked else "" if line.strip() else mark
    assert not start, f"{page}:{start}: a block that is not closed"
    return found


def models(page: Path) -> dict[str, str]:
    """Names of the page's models, each with the checked-in export that it stands for."""
    listed = _MODELS.findall(page.read_text(encoding="utf-8"))
    pairs = [pair.split("=") for text in listed for pair in text.split(",")]
    return {name.strip(): file.strip() for name, file in pairs}


def commands(block: Block) -> list[Command]:
    """The commands of a `sh` block, one a line; of a `console` block those behind `$`, each with what it shows."""
    found: list[Command] = []
    text, begun = "", 0
    for number, line in enumerate(block.text.splitlines(), block.line):
        if block.language == "console" and not text and not line.startswith("$ "):
            assert found, f"{block.place}: output without a command"
            found[-1].shown.extend([line] if line.strip() else [])
            continue
        text += line.removeprefix("$ ") if not text else f" {line.strip()}"
        begun = begun or number
        if text.endswith("\\"):
            text = text[:-1].rstrip()
            continue
        code = _CODE.search(text)
        words = shlex.split(text, comments=True)
        if words:
            found.append(Command(words, int(code[1]) if code else 0, [], at(block.page, begun)))
        text, begun = "", 0
    assert not text, f"{block.place}: a command that goes on"
    return found


_MASKED = re.compile(r"\d+(?:\.\d+)?e[-+]\d+")
"""Differences between two runs, which another processor or version of the runtime moves."""


def plain(line: str) -> str:
    """A line of output as far as it is the same everywhere."""
    return _MASKED.sub("#", " ".join(line.split()))


def missing(shown: list[str], output: str) -> str | None:
    """The first shown line that the output does not hold, in order; `…` stands for anything."""
    rest = [plain(line) for line in output.splitlines()]
    for line in shown:
        pattern = re.compile(".*".join(map(re.escape, plain(line).split("…"))))
        place = next((number for number, real in enumerate(rest) if pattern.fullmatch(real)), None)
        if place is None:
            return line
        rest = rest[place + 1 :]
    return None


def options_of(command: str) -> list[list[str]]:
    """The names of every option of one of our commands, as they are typed."""
    found = get_command(app).commands[command]  # type: ignore[attr-defined]
    return [parameter.opts for parameter in found.params if parameter.opts[0].startswith("-")]
