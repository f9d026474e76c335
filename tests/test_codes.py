"""Every verdict code is asserted somewhere, and explained to the reader."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import onnx.parser
import pytest

import onnx_attn
from onnx_attn import CODES

TESTS = Path(__file__).parent
PAGE = TESTS.parent / "docs" / "codes.md"


def asserted_texts(source: str) -> Iterator[str]:
    """Text constants in `assert` statements and in calls of this suite's `assert_…` helpers."""
    for node in ast.walk(ast.parse(source)):
        helper = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.startswith("assert_")
        if helper or isinstance(node, ast.Assert):
            yield from (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))


ASSERTED = {text for path in TESTS.glob("test_*.py") for text in asserted_texts(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_asserted_by_a_test(code: str) -> None:
    assert code in ASSERTED


@pytest.fixture(scope="module")
def maker() -> Iterator[ModuleType]:
    """The script that makes the page of codes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TESTS.parent / "tools")
        yield importlib.import_module("codes_page")


def test_the_page_of_codes_is_the_table(maker: ModuleType) -> None:
    made = "make it again: python tools/codes_page.py > docs/codes.md"
    assert PAGE.read_text(encoding="utf-8") == maker.page(), made


def test_examples_and_notes_are_of_codes_that_there_are(maker: ModuleType) -> None:
    assert CODES.keys() >= maker.EXAMPLES.keys() | maker.NOTES.keys()


@pytest.mark.parametrize("code", CODES)
def test_the_example_of_a_code_gets_it(code: str, maker: ModuleType) -> None:
    if code not in maker.EXAMPLES:
        assert code in ("value-head-size", "left-by-plan", "already-fused", "proof-failed"), "has no example"
        return
    example = maker.EXAMPLES[code]
    words = iter(example.options.removeprefix("--").split())
    options = dict(zip(words, words, strict=True))
    report = onnx_attn.fuse(onnx.parser.parse_model(str(example)), **options).report
    assert code in {candidate["code"] for candidate in report["candidates"]}
