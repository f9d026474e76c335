"""Every code block of README and of the pages under docs/ is run, in the order of its page, in a folder with the page's models.

Blocks that need torch run in the live suite, and so does what follows them, on what they export; elsewhere they are compiled,
and checked-in exports of the same models stand for theirs. Blocks that install something are run by `.ci/run`; those that
need a GPU are held against the options that there are.
"""

from __future__ import annotations

import ast
import json
import re
import runpy
import shutil
import subprocess
import sys
import tokenize
import tomllib
from collections import Counter
from contextlib import redirect_stdout
from importlib import util
from io import StringIO
from pathlib import Path
from typing import Any

import onnx.parser
import pytest
from commands import SMALLEST
from pages import PAGES, ROOT, Block, Command, blocks, commands, missing, models, options_of
from quantised import two_layers
from support import EXPORTS
from typer.testing import CliRunner

import onnx_attn
from onnx_attn.cli import app
from onnx_attn.engine.compile import compile_model
from onnx_attn.engine.kernels import Engine

LANGUAGES = {"python", "sh", "console", "json", "onnx"}
NEEDS = {"torch": {"python"}, "gpu": {"sh"}, "network": {"sh"}}
"""What a block may need that a test has not, and in which languages."""
INSTALLED = {"demo", "test"}
"""Marks of README's blocks that `.ci/run` reads from it and runs."""

MADE = {"two_layers": two_layers}
"""Models of pages that are no export."""

EVERY = [block for page in PAGES for block in blocks(page)]
COMPILED = re.compile(r"onnx-attn land|\.land\(|--search|tools/")
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
WITH_EXPORTS = [page for page in PAGES if any(block.needs == "torch" for block in blocks(page))]


class Reader:
    """Somebody who does what a page says, from top to bottom, in a folder of their own."""

    def __init__(self, page: Path, folder: Path, live: bool = False) -> None:
        self.blocks = blocks(page)
        self.live = live
        self.names: dict[str, Any] = {"__name__": "__main__"}
        for name, source in models(page).items():
            made = MADE[source](folder) if source in MADE else EXPORTS / source
            shutil.copy(made, folder / name)

    def read(self) -> None:
        for block in self.blocks:
            if block.mark in INSTALLED:
                check_installed(block)
            elif block.needs and not (self.live and block.needs == "torch"):
                {"torch": check_compiles, "gpu": check_options, "network": check_extras}[block.needs](block)
            else:
                getattr(self, block.language)(block)

    def python(self, block: Block) -> None:
        """Runs it; an expression with a literal behind it in a comment has that value."""
        tree = ast.parse(block.text)
        ast.increment_lineno(tree, block.line - 1)
        told = comments(block)
        for statement in tree.body:
            if isinstance(statement, ast.Expr):
                value = eval(compile(ast.Expression(statement.value), block.place, "eval"), self.names)
                if statement.end_lineno in told:
                    assert value == told[statement.end_lineno], f"{block.place}: {ast.unparse(statement)}"
            else:
                exec(compile(ast.Module([statement], []), block.place, "exec"), self.names)

    def sh(self, block: Block) -> None:
        for command in commands(block):
            code, output = outcome(command)
            assert code == command.code, f"{command.place}: exit code {code}: {output}"
            line = missing(command.shown, output)
            assert line is None, f"{command.place}: no such line in order: {line}\n{output}"

    console = sh

    def json(self, block: Block) -> None:
        """Part of a file that a command of the page has written."""
        assert block.mark.startswith("in: "), f"{block.place}: of which file?"
        real = json.loads(Path(block.mark.removeprefix("in: ")).read_text(encoding="utf-8"))
        assert_part(json.loads(block.text), real, block.place)

    def onnx(self, block: Block) -> None:
        onnx_attn.inspect(onnx.parser.parse_model(block.text))


def comments(block: Block) -> dict[int, Any]:
    """Literals in comments, by the line of the page."""
    found = {}
    for token in tokenize.generate_tokens(StringIO(block.text).readline):
        if token.type == tokenize.COMMENT:
            try:
                found[token.start[0] + block.line - 1] = ast.literal_eval(token.string.lstrip("# "))
            except (ValueError, SyntaxError):
                continue
    return found


def outcome(command: Command) -> tuple[int, str]:
    """Exit code and output of a command that a page may have."""
    program, *words = command.words
    if program == "onnx-attn":
        result = CliRunner().invoke(app, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output
    if program == "polygraphy":
        start = "from polygraphy.tools._main import main; raise SystemExit(main())"
        done = subprocess.run([sys.executable, "-c", start, *words], capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr
    assert program == "python", f"{command.place}: nobody runs {program}"
    if words[0] == "-m":
        output = StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(output):
            patch.setattr("sys.argv", words[1:])
            runpy.run_module(words[1], run_name="__main__")
        return 0, output.getvalue()
    done = subprocess.run([sys.executable, ROOT / words[0], *words[1:]], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def assert_part(shown: Any, real: Any, place: str) -> None:
    """What is shown is there: keys and entries may be left out, and differences (`max_…`) are of this machine."""
    if isinstance(shown, dict):
        assert isinstance(real, dict) and shown.keys() <= real.keys(), f"{place}: {shown} of {real}"
        for key, value in shown.items():
            if not key.startswith("max_"):
                assert_part(value, real[key], f"{place}, {key}")
    elif isinstance(shown, list):
        assert isinstance(real, list) and len(shown) <= len(real), f"{place}: {shown} of {real}"
        for value, entry in zip(shown, real, strict=False):
            assert_part(value, entry, place)
    else:
        assert shown == (pytest.approx(real, rel=1e-3) if isinstance(real, float) else real), place


def check_compiles(block: Block) -> None:
    compile(block.text, block.place, "exec")


def check_options(block: Block) -> None:
    """Options of ours are those of the command, options of trtexec those that `tools/build_engine.py` gives it."""
    engine = "".join(
        (ROOT / "tools" / name).read_text(encoding="utf-8") for name in ("build_engine.py", "_commands.py")
    )
    for command in commands(block):
        program, *words = command.words
        options = {word.partition("=")[0] for word in words if word.startswith("-")}
        if program == "onnx-attn":
            assert options <= set().union(*options_of(words[0])), command.place
        else:
            assert program == "trtexec" and all(option in engine for option in options), command.place


def check_extras(block: Block) -> None:
    """The extras that a block installs exist."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for command in commands(block):
        assert command.words[0].endswith("pip"), f"{command.place}: nobody runs it"
        named = [
            name for word in command.words for name in re.findall(r"[\w-]+", "".join(re.findall(r"\[(.*)\]", word)))
        ]
        assert named and project["optional-dependencies"].keys() >= set(named), command.place


def check_installed(block: Block) -> None:
    assert block.page.name == "README.md", block.place
    assert f"$(readme {block.mark}" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


COMPILED_ONCE: dict[tuple[Any, ...], Engine] = {}


@pytest.fixture(autouse=True)
def compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages speak of the same few models, and a compilation takes a second: each is compiled once for all of them."""

    def cached(path: Path, sm: int, shapes: Any, *rest: Any, **options: Any) -> Engine:
        key = (Path(path).read_bytes(), sm, repr(shapes))
        if key not in COMPILED_ONCE:
            COMPILED_ONCE[key] = compile_model(path, sm, shapes, *rest, **options)
        return COMPILED_ONCE[key]

    monkeypatch.setattr("onnx_attn.landing.compile_model", cached)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_what_a_page_says_is_what_happens(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if util.find_spec("tensorrt_rtx") is None and any(COMPILED.search(block.text) for block in blocks(page)):
        pytest.skip("needs tensorrt_rtx")
    monkeypatch.chdir(tmp_path)
    Reader(page, tmp_path).read()


@pytest.mark.live
@pytest.mark.parametrize("page", WITH_EXPORTS, ids=lambda page: page.stem)
def test_a_page_with_exports_is_right_about_fresh_ones(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Reader(page, tmp_path, live=True).read()


def test_every_block_is_of_a_kind_that_is_run() -> None:
    for block in EVERY:
        assert block.language in NEEDS.get(block.needs, LANGUAGES), block.place
        assert block.needs in NEEDS or block.mark in INSTALLED or re.fullmatch("(in: .+)?", block.mark), block.place


def test_no_other_block_waits_for_what_tests_have_not() -> None:
    """Who adds one says so here."""
    waiting = Counter((block.page.stem, block.needs) for block in EVERY if block.needs)
    exported = ("vit", "swin", "bert", "gpt2", "cross-attention", "python")
    assert waiting == {
        **{(page, "torch"): 1 for page in exported},
        ("README", "network"): 1,
        ("index", "network"): 1,
        ("landing", "gpu"): 1,
        ("jetson-tensorrt-8", "gpu"): 1,
    }


WRONG = {
    "an exit code": "```sh\nonnx-attn fuse m.onnx -o f.onnx --expect 2\n```",
    "another exit code": "```sh\nonnx-attn fuse m.onnx -o f.onnx --expect 1  # exit code 3\n```",
    "a count": "```console\n$ onnx-attn inspect m.onnx\n2 attention sites, 0 refused\n```",
    "the order": "```console\n$ onnx-attn inspect m.onnx\n1 attention site, 0 refused\nm.onnx for tensorrt 10.0\n```",
    "a value": "```python\nlen('four')  # 5\n```",
    "a name": "```python\nimport onnx_attn\nonnx_attn.melt('m.onnx')\n```",
    "a key": '```sh\nonnx-attn inspect m.onnx --json r.json\n```\n\n<!-- in: r.json -->\n```json\n{"sights": 1}\n```',
    "a number": '```sh\nonnx-attn inspect m.onnx --json r.json\n```\n\n<!-- in: r.json -->\n```json\n{"sites": 2}\n```',
    "an option": "<!-- needs: gpu -->\n```sh\nonnx-attn land m.onnx --fast\n```",
    "an extra": "<!-- needs: network -->\n```sh\npip install '.[tensort]'\n```",
    "a program": "```sh\nnetron m.onnx\n```",
    "a block without a language": "```\nanything\n```",
    "code without a fence": "Text:\n\n    onnx-attn inspect m.onnx",
}


@pytest.mark.parametrize("what", WRONG)
def test_a_page_that_is_wrong_is_noticed(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text(f"<!-- models: m.onnx = {SMALLEST.name} -->\n\n{WRONG[what]}\n", encoding="utf-8")
    with pytest.raises((AssertionError, AttributeError)):
        Reader(page, tmp_path).read()
