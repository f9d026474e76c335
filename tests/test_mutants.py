"""The mutants that tools/mutate.py makes of conditions."""

from __future__ import annotations

import ast
import json
from pathlib import Path

from tools._mutants import ROOT, mutants
from tools.mutate import EXPLAINED

SOURCE = """
def refuses(first, second, names):
    if first is None or second > 3:
        return False
    assert first != second
    return all(name in names for name in larger(first, second)) and not names


class Holder:
    def kept(self, values):
        return [value for value in values if value]
"""

EXPECTED = {
    ("first is None or second > 3", "second > 3"),
    ("first is None or second > 3", "first is None"),
    ("first is None or second > 3", "True"),
    ("first is None or second > 3", "False"),
    ("first is None", "first is not None"),
    ("second > 3", "second >= 3"),
    ("second > 3", "second > 4"),
    ("larger(first, second)", "larger(second, first)"),
    ("name in names", "name not in names"),
    ("not names", "names"),
    ("value", "True"),
    ("value", "False"),
}


def test_conditions_are_changed_one_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(SOURCE)
    made = list(mutants(path))
    changes = {(mutant.before, mutant.after) for mutant in made}
    assert changes >= EXPECTED
    assert not any("assert" in before or "first != second" in before for before, _ in changes)
    assert {mutant.function for mutant in made} == {"refuses", "Holder.kept"}
    assert len({mutant.code for mutant in made}) == len(made)


def test_a_mutant_has_the_code_that_it_says(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text("def least(a, b):\n    return a if a < b else b\n")
    results = set()
    for mutant in mutants(path):
        namespace: dict[str, object] = {}
        exec("def least(a, b): pass", namespace)
        namespace["least"].__code__ = mutant.code  # type: ignore[attr-defined]
        results.add((mutant.after, namespace["least"](1, 1), namespace["least"](1, 2)))  # type: ignore[operator]
    assert results == {("a <= b", 1, 1), ("True", 1, 1), ("False", 1, 2)}


def test_explained_mutants_are_still_there() -> None:
    """An explanation of a condition that has gone is to go too: each names a function, and an expression in it."""
    for file, changes in json.loads(EXPLAINED.read_text()).items():
        functions = dict(_functions(ast.parse((ROOT / file).read_text()).body))
        for change, why in changes.items():
            name, _, rest = change.partition(": ")
            before, after = rest.split("  →  ")
            assert before in functions[name], (file, change)
            assert before != after
            assert len(why) > 20, (file, change)


def _functions(body: list[ast.stmt], prefix: str = "") -> list[tuple[str, str]]:
    """Names and text of a module's functions and methods."""
    found = []
    for node in body:
        if isinstance(node, ast.FunctionDef):
            found.append((prefix + node.name, ast.unparse(node)))
        elif isinstance(node, ast.ClassDef):
            found += _functions(node.body, f"{prefix}{node.name}.")
    return found
