"""The mutants of a file: one condition changed in one function, and how its code takes the place of the function's own."""

from __future__ import annotations

import ast
import copy
import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

ROOT = Path(__file__).parent.parent
PROBE = "_probe_of_mutants"

OTHER: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
LEAVES = (ast.Return, ast.Continue, ast.Break, ast.Raise)


@dataclass(frozen=True)
class Mutant:
    """function: the qualified name of the outermost function around the change, and `code` that function's code with it.
    statement: the line at which the statement begins that is changed."""

    file: str
    line: int
    statement: int
    function: str
    before: str
    after: str
    code: CodeType

    def __str__(self) -> str:
        return f"{Path(self.file).relative_to(ROOT)}:{self.line} {self.change}"

    @property
    def change(self) -> str:
        """What it is, wherever the line has gone."""
        return f"{self.function}: {self.before}  →  {self.after}"


def mutants(file: Path) -> Iterator[Mutant]:
    """All mutants of the functions and methods of a module."""
    tree = ast.parse(file.read_text())
    for path, function in _functions(tree.body):
        for parent, field, number, node, statement in list(_places(function)):
            for new in _variants(node, parent):
                _put(parent, field, number, ast.copy_location(new, node))
                code = _code_of(tree, file, path)
                _put(parent, field, number, node)
                line = getattr(node, "lineno", statement)
                yield Mutant(str(file), line, statement, path, ast.unparse(node), ast.unparse(new), code)


def _functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _functions(node.body, f"{prefix}{node.name}.")


Place = tuple[ast.AST, str, int | None, ast.AST, int]


def _places(function: ast.FunctionDef) -> Iterator[Place]:
    """Every node of a function's statements, where it hangs, and the line of the statement it is of; what is asserted, and
    annotations, are no conditions."""
    queue: list[Place] = [(function, "body", number, node, node.lineno) for number, node in enumerate(function.body)]
    while queue:
        queue_from = queue.pop(0)
        *_, node, line = queue_from
        if isinstance(node, ast.Assert):
            continue
        yield queue_from
        for field, value in ast.iter_fields(node):
            if field not in ("annotation", "returns"):
                each = value if isinstance(value, list) else [value]
                queue += [
                    (node, field, number if isinstance(value, list) else None, part, _line(part, line))
                    for number, part in enumerate(each)
                    if isinstance(part, ast.AST)
                ]


def _line(node: ast.AST, around: int) -> int:
    return node.lineno if isinstance(node, ast.stmt) else around


def _put(parent: ast.AST, field: str, place: int | None, node: ast.AST) -> None:
    if place is None:
        setattr(parent, field, node)
    else:
        getattr(parent, field)[place] = node


def _variants(node: ast.AST, parent: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    match node:
        case ast.Compare():
            yield from _compared(node)
        case ast.BoolOp():
            for number in range(len(node.values)):
                rest = [each for other, each in enumerate(node.values) if other != number]
                yield rest[0] if len(rest) == 1 else ast.BoolOp(node.op, rest)
        case ast.UnaryOp(op=ast.Not()):
            yield node.operand
        case ast.Call(func=ast.Name(id="all" | "any" as name)):
            yield ast.Call(ast.Name("any" if name == "all" else "all", ast.Load()), node.args, node.keywords)
        case ast.Call():
            yield from _swapped(node)
    is_leaving = isinstance(parent, ast.If) and isinstance(parent.body[-1], LEAVES) and node is parent.test
    is_choice = isinstance(parent, ast.IfExp | ast.comprehension) and (
        node is getattr(parent, "test", None) or node in getattr(parent, "ifs", ())
    )
    if is_leaving or is_choice:
        yield ast.Constant(True)
        yield ast.Constant(False)


def _compared(node: ast.Compare) -> Iterator[ast.AST]:
    for number, operator in enumerate(node.ops):
        if type(operator) in OTHER:
            operators = [*node.ops[:number], OTHER[type(operator)](), *node.ops[number + 1 :]]
            yield ast.Compare(node.left, operators, node.comparators)
    for number, operand in enumerate((node.left, *node.comparators)):
        if isinstance(operand, ast.Constant) and type(operand.value) is int:
            operands = [node.left, *node.comparators]
            operands[number] = ast.Constant(operand.value + 1)
            yield ast.Compare(operands[0], node.ops, operands[1:])


def _swapped(node: ast.Call) -> Iterator[ast.AST]:
    for number, (first, second) in enumerate(zip(node.args, node.args[1:], strict=False)):
        names = [each.id for each in (first, second) if isinstance(each, ast.Name)]
        if len(names) == 2 and names[0] != names[1] and "view" not in names:
            args = [*node.args]
            args[number], args[number + 1] = second, first
            yield ast.Call(copy.deepcopy(node.func), args, node.keywords)


def probed(file: Path) -> Iterator[tuple[str, CodeType]]:
    """Every function of a module with a call `PROBE(file, line)` before each statement."""
    tree = ast.parse(file.read_text())
    functions = list(_functions(tree.body))
    for _, function in functions:
        _probe(function, str(file))
    for path, _ in functions:
        yield path, _code_of(tree, file, path)


def _probe(node: ast.AST, file: str) -> None:
    for child in [*ast.iter_child_nodes(node)]:
        _probe(child, file)
    for field, value in ast.iter_fields(node):
        if isinstance(value, list) and value and isinstance(value[0], ast.stmt):
            body = []
            for each in value:
                call = ast.parse(f"{PROBE}({file!r}, {each.lineno})").body[0]
                body += [ast.copy_location(call, each), each]
            setattr(node, field, body)


def _code_of(tree: ast.Module, file: Path, path: str) -> CodeType:
    code = compile(ast.fix_missing_locations(tree), str(file), "exec")
    for name in path.split("."):
        code = [each for each in code.co_consts if isinstance(each, CodeType) and each.co_name == name][-1]
    return code


def install(file: str, function: str, code: CodeType) -> None:
    """Give a function of this process other code."""
    function_of(file, function).__code__ = code


def function_of(file: str, function: str) -> FunctionType:
    """A function of this process, by its qualified name."""
    module = Path(file).relative_to(ROOT).with_suffix("").parts
    found: Any = importlib.import_module(".".join(module).removesuffix(".__init__"))
    for name in function.split("."):
        found = inspect.getattr_static(found, name)
    for field in ("fget", "func", "__func__"):  # property, cached_property, staticmethod
        found = getattr(found, field, found) if not isinstance(found, FunctionType) else found
    return inspect.unwrap(found)
