"""Every reference by every exporter: exported, fused, and (on request) compiled; run by hand, resumable.

    python -m models matrix -o DIR [--size tiny] [--half --land] [--names vit_b_16,bert] …

DIR keeps one JSON a cell and table.md. A cell whose JSON is there is not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from models.cell import Cell, Note
from models.landing import worse
from models.reference import Attn, Exporter
from models.registry import REGISTRY
from models.table import is_unmet, stopped, table

EXPORTERS = "torchscript:17,dynamo:18,dynamo:23"
_ROOT = Path(__file__).parents[1]


def exporters(text: str) -> list[tuple[Exporter, int]]:
    """What `torchscript:17,dynamo:18` names."""
    pairs = []
    for part in text.split(","):
        name, _, opset = part.partition(":")
        if name not in get_args(Exporter) or not opset.isdigit():
            raise argparse.ArgumentTypeError(f"{part!r} is not EXPORTER:OPSET, as in {EXPORTERS}")
        pairs.append((name, int(opset)))
    return pairs  # type: ignore[return-value]


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in REGISTRY]:
        raise argparse.ArgumentTypeError(f"no reference named {', '.join(unknown)}; known: {', '.join(REGISTRY)}")
    return names


def common(command: str, text: str | None) -> argparse.ArgumentParser:
    """The options of every command that runs cells; the first line of `text` describes it."""
    top = argparse.ArgumentParser(prog=f"python -m models {command}", description=(text or "").splitlines()[0])
    top.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    top.add_argument("--names", type=_names, default=list(REGISTRY), help="separated by commas; default: every one")
    top.add_argument("--exporters", type=exporters, default=exporters(EXPORTERS), help=f"default: {EXPORTERS}")
    top.add_argument("--size", choices=("full", "tiny"), default="full")
    top.add_argument("--attn", choices=("eager", "sdpa", "both"), default="both", help="where a reference has both")
    top.add_argument("--keep", action="store_true", help="keep the exported and the fused files, in DIR/files")
    top.add_argument("--retry", action="store_true", help="run cells again that failed, left a site, or are worse")
    top.add_argument("--timeout", type=float, default=1800, metavar="SECONDS", help="for one cell")
    return top


def parser() -> argparse.ArgumentParser:
    """The options of `python -m models matrix`."""
    top = common("matrix", __doc__)
    top.add_argument("--half", action="store_true", help="half precision")
    top.add_argument("--dynamic", choices=("static", "dynamic", "both"), default="both")
    top.add_argument("--land", action="store_true", help="compile static cells before and after; needs --half")
    top.set_defaults(target_version=None, sm=89)
    return top


def _ways(name: str, asked: str) -> tuple[Attn, ...]:
    ways: tuple[Attn, ...] = ("sdpa", "eager") if REGISTRY[name].both_ways else ("sdpa",)
    return tuple(way for way in ways if asked in (way, "both")) or ways


def cells(options: argparse.Namespace) -> list[Cell]:
    """The cells that were asked for, row by row."""
    moments = {"static": [False], "dynamic": [True], "both": [False, True]}[options.dynamic]
    return [
        Cell(
            name,
            exporter,
            opset,
            dynamic,
            attn,
            options.size,
            options.half,
            options.land and not dynamic,
            REGISTRY[name].both_ways,
            options.target_version,
            options.sm,
        )
        for name in options.names
        for dynamic in moments
        for attn in _ways(name, options.attn)
        for exporter, opset in options.exporters
    ]


def _died(status: int, noise: bytes) -> str:
    if status < 0:
        return f"the process crashed with signal {signal.Signals(-status).name}"
    lines = [line.strip() for line in noise.decode(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else f"the process ended with status {status}"


@contextmanager
def _folder(options: argparse.Namespace) -> Iterator[Path]:
    """Where the files of a cell go: kept, or removed with it."""
    if options.keep:
        kept = options.output / "files"
        kept.mkdir(parents=True, exist_ok=True)
        yield kept
        return
    passing = Path(tempfile.mkdtemp(prefix=".files-", dir=options.output))
    try:
        yield passing
    finally:
        shutil.rmtree(passing, ignore_errors=True)


def _run(cell: Cell, options: argparse.Namespace, folder: Path, scratch: Path) -> Note:
    """Run a cell in a process of its own; what kills the process is a failure of the stage it was in."""
    request, answer = scratch / "request.json", scratch / "answer.json"
    request.write_text(json.dumps({"cell": asdict(cell), "folder": str(folder.resolve())}))
    paths = [str(_ROOT), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-m", "models.cell", str(request), str(answer)]
    start = time.perf_counter()
    try:
        run = subprocess.run(command, env=environment, capture_output=True, timeout=options.timeout)
        reason = _died(run.returncode, run.stderr) if run.returncode else None
    except subprocess.TimeoutExpired:
        reason = f"stopped after {options.timeout:g} seconds"
    note: Note = json.loads(answer.read_text()) if answer.exists() else {"cell": asdict(cell), "stage": "start"}
    if reason is not None:
        note["failure"] = note.get("failure") or {"stage": note["stage"], "reason": reason}
    note.update(leave_alone=REGISTRY[cell.name].leave_alone, wall_seconds=round(time.perf_counter() - start, 1))
    return note


def _stored(path: Path, cell: Cell, retry: bool) -> Note | None:
    """The result of an earlier run of this very cell, if it is to be taken."""
    if not path.exists():
        return None
    note: dict[str, Any] = json.loads(path.read_text())
    same = Cell(**note["cell"]) == cell
    again = retry and (stopped(note) or worse(note) or is_unmet(note))
    return None if not same or again else note


def _result(cell: Cell, options: argparse.Namespace) -> tuple[Note, bool]:
    """The note of a cell, and whether it was run now."""
    path = options.output / f"{cell.key}.json"
    stored = _stored(path, cell, options.retry)
    if stored is not None:
        return stored, False
    with _folder(options) as folder, tempfile.TemporaryDirectory(prefix="matrix-") as scratch:
        note = _run(cell, options, folder, Path(scratch))
    draft = path.with_suffix(".json.part")
    draft.write_text(json.dumps(note, indent=1))
    draft.replace(path)
    return note, True


def run_cells(wanted: list[Cell], options: argparse.Namespace) -> list[Note]:
    """The notes of the cells; what is not in the folder already is run now, and told as it goes."""
    options.output.mkdir(parents=True, exist_ok=True)
    notes = []
    for count, cell in enumerate(wanted, 1):
        note, fresh = _result(cell, options)
        notes.append(note)
        if fresh:
            failure = note["failure"]
            state = f"{failure['stage']}: {failure['reason'][:80]}" if failure else f"fused {note.get('fused')}"
            print(f"[{count}/{len(wanted)}] {cell.key}: {state}", file=sys.stderr, flush=True)
    return notes


def main(arguments: list[str]) -> int:
    """Run what is missing, print and write the table; 3 if a site is left, a proof fails, or too much is fused."""
    top = parser()
    options = top.parse_args(arguments)
    if options.land and not options.half:
        top.error("--land compiles half precision: give --half too")
    notes = run_cells(cells(options), options)
    text = table(notes)
    (options.output / "table.md").write_text(text)
    print(text)
    return 3 if any(is_unmet(note) for note in notes) else 0
