"""onnx-attn and what else rewrites ONNX models, side by side on the same files, in one run.

    python tools/bench.py -o DIR [MODEL ...] [--all | --full NAME ...] [--parts models,nodes,weights] [--docs DIR] [--readme F]

Each tool rewrites each model in a process of its own, through its public interface. Measured: attention written as one operator
(only where every output is what the original gives, in ONNX Runtime), nodes, seconds and peak memory of rewriting; what TensorRT
for RTX makes of every tool's result (half precision, static shapes); inference of ONNX Runtime on the CPU as ratios to the
original; and how time and memory grow with nodes and weights. Without models: representative ones of tests/exports; `--all`
takes all of these, `--full` references of models/ at full size (needs the `export` extra). Tools that are not installed are
said to be so.

DIR/bench.json holds everything. Parts and, of models, tools that are not asked for stay there as they were. `--docs` writes
peers.md, its plots and these figures (needs the `bench` extra), `--readme` puts the summary between `<!-- peers -->` and
`<!-- /peers -->`; with `--parts none` from what is there.
"""

from __future__ import annotations

import json
import os
import platform
import tempfile
from argparse import BooleanOptionalAction, Namespace
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from _bench.files import File, checked_in, full_size, given
from _bench.measure import Asked, measured
from _bench.peers import OURS_RUNTIME, TOOLS, Tool
from _bench.scale import by_nodes, by_weights
from _commands import Parser, check_json, run, write_whole

from onnx_attn.engine.compile import compiler, toolkits
from onnx_attn.errors import InputError, UsageError

PARTS = ("models", "nodes", "weights")


def parser() -> Parser:
    top = Parser(__doc__)
    top.add_argument("models", nargs="*", type=Path, metavar="MODEL")
    top.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    top.add_argument("--all", action="store_true", help="all exports under tests/exports")
    top.add_argument("--full", nargs="+", default=[], metavar="NAME", help="references of models/ at full size")
    top.add_argument("--parts", default=",".join(PARTS), help="what is measured; 'none' for nothing")
    top.add_argument("--tools", default=",".join(TOOLS), help=f"of {', '.join(TOOLS)}")
    top.add_argument("--repeat", type=int, default=3, help="the best of so many rewritings counts")
    top.add_argument("--timeout", type=float, default=300.0, help="seconds for each step of each tool")
    top.add_argument("--seconds", type=float, default=2.0, help="of inference for each model; 0 for none")
    top.add_argument("--sm", type=int, default=89)
    top.add_argument("--compile", action=BooleanOptionalAction, default=True)
    top.add_argument("--docs", type=Path, metavar="DIR", help="write peers.md and its plots there")
    top.add_argument("--readme", type=Path, metavar="FILE", help="put the summary between the two marks")
    return top


def main(words: Sequence[str]) -> int:
    """Measure, and show. Raises UsageError, InputError, OutputError."""
    options = parser().parse_args(words)
    parts, tools = _chosen(options.parts, PARTS), [TOOLS[key] for key in _chosen(options.tools, tuple(TOOLS))]
    place = options.output / "bench.json"
    check_json(place)
    found: dict[str, Any] = json.loads(place.read_text()) if place.exists() else {}
    asked = Asked(options.repeat, options.timeout, options.seconds, options.sm if _compiles(options) else None)
    options.output.mkdir(parents=True, exist_ok=True)
    files = given(options.models)
    with tempfile.TemporaryDirectory(prefix="onnx-attn-") as folder:
        for part in parts:
            about, before = _circumstances(tools, asked), found.get(part)
            if part == "models":
                found[part] = _beside(before, about) if len(tools) < len(TOOLS) else about | {"rows": []}
                _models(found, _files(options, files, Path(folder)), tools, asked, Path(folder), place)
            else:
                measure = {"nodes": by_nodes, "weights": by_weights}[part]
                grown = [tool for tool in tools if tool.key != OURS_RUNTIME]
                found[part] = about | {"rows": measure(grown, asked, Path(folder))}
            _write(place, found)
    return _shown(found, options)


def _beside(before: dict[str, Any] | None, about: dict[str, Any]) -> dict[str, Any]:
    """What some of the tools are measured in addition to: other tools' answers stay, and when these were measured is told."""
    if before is None:
        return about | {"rows": []}
    again = {key: about[key] for key in ("tools", "date", "load")}
    return before | {"versions": before["versions"] | about["versions"], "again": [*before.get("again", []), again]}


def _models(
    found: dict[str, Any], files: Sequence[File], tools: Sequence[Tool], asked: Asked, folder: Path, place: Path
) -> None:
    """Every model; what is known is written after each, for whoever looks or stops it."""
    rows = {row["file"]: row for row in found["models"]["rows"]}
    for number, file in enumerate(files, 1):
        rows[file.name] = _merged(rows.get(file.name, {}), measured(file, tools, asked, folder))
        found["models"]["rows"] = list(rows.values())
        _write(place, found)
        print(f"{file.name}: {number} of {len(files)}", flush=True)


def _merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Every ratio of inference is to the original's run beside it, so that those of two times may stand together."""
    both = {key: old.get(key, {}) | new.get(key, {}) for key in ("tools", "compiled", "inference")}
    if "ratios" in old.get("inference", {}) and "ratios" in new.get("inference", {}):
        both["inference"]["ratios"] = old["inference"]["ratios"] | new["inference"]["ratios"]
    return old | new | {key: value for key, value in both.items() if value}


def _files(options: Namespace, models: list[File], folder: Path) -> list[File]:
    if options.full:
        models = models + list(full_size(options.full, folder))
    return models or checked_in(options.all)


def _chosen(text: str, known: tuple[str, ...]) -> list[str]:
    names = [] if text == "none" else [name.strip() for name in text.split(",")]
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"unknown '{unknown[0]}'; choose of {', '.join(known)}, with commas between")
    return names


def _compiles(options: Namespace) -> bool:
    return bool(options.compile and toolkits())


def _circumstances(tools: Sequence[Tool], asked: Asked) -> dict[str, Any]:
    """When, on what, and with which versions."""
    packages = {"torch", "onnx", "onnx-ir", "numpy"} | {package for tool in tools for package in tool.packages}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": f"{os.cpu_count()} cores of {platform.machine()}, {platform.system()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
        "tools": [tool.label for tool in tools],
        "versions": {name: version for name in sorted(packages) if (version := _version(name))},
        "compiler": compiler() if asked.sm is not None else None,
        "asked": asked.__dict__,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _write(place: Path, found: dict[str, Any]) -> None:
    write_whole(place, json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def _shown(found: dict[str, Any], options: Namespace) -> int:
    from _bench.show import page, summary

    if "models" not in found:
        return 0
    print(summary(found))
    if options.docs is not None:
        from _bench.plots import draw

        draw(found, options.docs / "peers")
        write_whole(
            options.docs / "peers/bench.json", json.dumps(found, ensure_ascii=False, separators=(",", ":")) + "\n"
        )
        write_whole(options.docs / "peers.md", page(found))
    if options.readme is not None:
        from models.landing import with_table

        marks = ("<!-- peers -->", "<!-- /peers -->")
        try:
            written = with_table(options.readme.read_text(encoding="utf-8"), summary(found), marks)
        except ValueError as error:
            raise InputError(f"{options.readme}: {error}") from error
        write_whole(options.readme, written)
    return 0


if __name__ == "__main__":
    run(main)
