"""Command line: list the references, export one, count its true attention sites."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable


def _list(_: argparse.Namespace) -> int:
    from models.registry import REGISTRY

    width = max(map(len, REGISTRY))
    for reference in REGISTRY.values():
        line = f"{reference.name:{width}}  {reference.summary}"
        if reference.leave_alone:
            line += f"; left alone: {reference.leave_alone}"
        if reference.fixed_sequence:
            line += f"; sequence fixed by {', '.join(reference.fixed_sequence)}"
        print(line)
    return 0


def _export(options: argparse.Namespace) -> int:
    from models.export import ExportError, export

    try:
        result = export(
            options.name,
            options.output,
            options.exporter,
            options.opset,
            options.dynamic,
            options.half,
            options.attn,
            options.size,
        )
    except ExportError as error:
        print(f"{options.name}: {options.exporter} cannot export: {error}", file=sys.stderr)
        return 1
    size = result.path.stat().st_size
    print(
        f"{options.name} exporter={result.exporter} opset={result.opset} true_sites={result.true_sites} "
        f"file={result.path} size={size}"
    )
    return 0


def _count(options: argparse.Namespace) -> int:
    from models.census import count_sites
    from models.quiet import quiet
    from models.registry import build

    with quiet():
        built = build(options.name, options.size, options.attn)
        sites = count_sites(built.module, built.args)
    print(sites)
    return 0


def _fixtures(_: argparse.Namespace) -> int:
    from models.fixtures import main as make

    return make()


def _name(text: str) -> str:
    from models.registry import REGISTRY

    if text not in REGISTRY:
        raise argparse.ArgumentTypeError(f"no reference named {text!r}; known: {', '.join(REGISTRY)}")
    return text


_OWN = {
    "matrix": ("models.matrix", "the table of references and exporters"),
    "greedy": ("models.greedy", "decoders with caches, fused and as they were, token by token"),
    "landing": ("models.landed", "what the compiler makes of the references, for docs/landing-table.md"),
}
"""Commands with a parser of their own: the module, and what they do."""


def _run_own(command: str, arguments: list[str]) -> int:
    from importlib import import_module

    return int(import_module(_OWN[command][0]).main(arguments))


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", type=_name, metavar="NAME")
    parser.add_argument("--attn", choices=("eager", "sdpa"), default="sdpa", help="attention implementation")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")


_EXTRA = frozenset({"torch", "torchvision", "timm", "transformers", "onnxscript"})
"""What the `export` extra brings."""


def parser() -> argparse.ArgumentParser:
    """The parser of every command but those that have their own."""
    top = argparse.ArgumentParser(prog="python -m models", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(run=run)
        return command

    add("list", _list, "list the references")
    exporting = add("export", _export, "export one reference to an ONNX file")
    _common(exporting)
    exporting.add_argument("--exporter", choices=("torchscript", "dynamo"), default="torchscript")
    exporting.add_argument("--opset", type=int, help="default: 17 for torchscript, 18 for dynamo")
    exporting.add_argument("--dynamic", action="store_true", help="batch and sequence vary")
    exporting.add_argument("--half", action="store_true", help="half precision parameters and inputs")
    exporting.add_argument("-o", "--output", required=True, metavar="F")
    _common(add("count", _count, "count the true attention sites"))
    add("fixtures", _fixtures, "make the small exports under tests/exports again")
    for command, (_, text) in _OWN.items():
        commands.add_parser(command, help=text, add_help=False)
    return top


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        if given and given[0] in _OWN:
            return _run_own(given[0], given[1:])
        options = parser().parse_args(given)
        return int(options.run(options))
    except ModuleNotFoundError as error:
        if error.name not in _EXTRA:
            raise
        print(f"models: {error.name} is not installed; install the extra: pip install '.[export]'", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
