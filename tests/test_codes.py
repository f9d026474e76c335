"""Every verdict code is asserted somewhere, and explained to the reader."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnx_attn import CODES

TESTS = Path(__file__).parent
README = TESTS.parent / "README.md"


def asserted_texts(source: str) -> Iterator[str]:
    """Text constants in `assert` statements and in calls of this suite's `assert_…` helpers."""
    for node in ast.walk(ast.parse(source)):
        helper = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.startswith("assert_")
        if helper or isinstance(node, ast.Assert):
            yield from (n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str))


ASSERTED = {text for path in TESTS.glob("test_*.py") for text in asserted_texts(path.read_text(encoding="utf-8"))}


def codes_of_the_readme() -> set[str]:
    """What the first column of the table of codes names."""
    table = README.read_text(encoding="utf-8").split("| code | when |\n")[1].split("\n\n")[0]
    return {name for row in table.splitlines()[1:] for name in re.findall(r"`([^`]+)`", row.split("|")[1])}


@pytest.mark.parametrize("code", CODES)
def test_every_code_is_asserted_by_a_test(code: str) -> None:
    assert code in ASSERTED


def test_readme_explains_every_code_and_no_other() -> None:
    assert codes_of_the_readme() == CODES.keys()
