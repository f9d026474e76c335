"""One cell of the matrix: export a reference one way, fuse it, compile both, and note what came of it.

`python -m models.cell REQUEST.json ANSWER.json` is a process of its own: torch keeps memory, and ONNX Runtime and
the compiler can crash. The answer is written anew before each stage, so that it tells how far a crash came.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # torch is needed to run a cell, and not to read what came of it
    from models.reference import Attn, Exporter, Size


@dataclass(frozen=True)
class Cell:
    """What is exported, and whether it is compiled too."""

    name: str
    exporter: Exporter
    opset: int
    dynamic: bool
    attn: Attn
    size: Size
    half: bool
    land: bool
    marked: bool
    """Whether the attention implementation is a choice of this reference, and so part of the row's name."""
    target_version: str | None = None
    """The version of TensorRT that is fused for; the usual one if left out."""
    sm: int = 89
    """The compute capability, times ten, that is compiled for."""

    @property
    def row(self) -> str:
        """The row of the table."""
        return " ".join(filter(None, (self.name, self.attn if self.marked else "", self._varying)))

    @property
    def column(self) -> str:
        """The column of the table."""
        return f"{self.exporter} {self.opset}"

    @property
    def key(self) -> str:
        """The stem of its files."""
        eager = "eager" if self.attn == "eager" else ""
        parts = (self.name, self.exporter, str(self.opset), self._varying, eager, "half" if self.half else "")
        return ".".join(filter(None, parts))

    @property
    def _varying(self) -> str:
        return "dynamic" if self.dynamic else "static"


Note = dict[str, Any]


def _export(cell: Cell, original: Path, _: Path, note: Note) -> None:
    from models.export import export

    result = export(cell.name, original, cell.exporter, cell.opset, cell.dynamic, cell.half, cell.attn, cell.size)
    note.update(true_sites=result.true_sites, export_seconds=round(result.seconds, 3))


def _count(cell: Cell, _: Path, __: Path, note: Note) -> None:
    """The true sites of what torch cannot export: they count as much as the others."""
    from models.census import count_sites
    from models.quiet import quiet
    from models.registry import build

    with quiet():
        built = build(cell.name, cell.size, cell.attn, cell.half, cell.dynamic)
        note["true_sites"] = count_sites(built.module, built.args)


def _runs(original: Path) -> bool:
    """Whether ONNX Runtime runs the export at all: torch writes files that it does not."""
    import onnx_attn
    from onnx_attn.runtime import CannotRun

    try:
        onnx_attn.verify(str(original), str(original))
    except CannotRun:
        return False
    return True


def _read(_: Cell, original: Path, __: Path, note: Note) -> None:
    """What is found in an export that nothing runs, and so nothing can be proved of."""
    import onnx_attn

    note["sites_read"] = onnx_attn.inspect(str(original))["sites"]


def _fuse(cell: Cell, original: Path, fused: Path, note: Note) -> None:
    import onnx_attn

    result = onnx_attn.fuse(str(original), str(fused), target="tensorrt", target_version=cell.target_version)
    report = result.report
    candidates = report["candidates"]
    proof = report["proof"] or {}
    certificates = [entry["certificate"] for entry in candidates if entry.get("certificate")]
    note.update(
        sites=report["sites"],
        fused=report["fused"],
        packed=sum(bool(entry.get("packed")) for entry in candidates),
        refusals=dict(Counter(entry["code"] for entry in candidates if entry["status"] == "refused")),
        not_attention=dict(Counter(entry["code"] for entry in candidates if entry["status"] == "not_attention")),
        proof_ok=bool(proof.get("ok")) and all(certificate["ok"] for certificate in certificates),
        max_rel=proof.get("max_rel"),
        certificate_max_rel=max((certificate["max_rel"] for certificate in certificates), default=None),
        seconds=report["seconds"],
        seconds_sum=round(sum(report["seconds"].values()), 3),
        nodes_before=report["nodes_before"],
        nodes_after=report["nodes_after"],
    )


def _land(cell: Cell, original: Path, fused: Path, note: Note) -> None:
    import onnx_attn

    start = time.perf_counter()
    report = onnx_attn.land(str(fused), baseline=str(original), sm=cell.sm)
    note["versions"]["compiler"] = report["compiler"]
    for moment, told in (("before", report["baseline"]), ("after", report)):
        if not told["built"]:
            note[f"compile_{moment}"] = told["errors"][0] if told["errors"] else "no reason given"
            continue
        moved = told["moved_bytes"]
        note[f"kernels_{moment}"] = told["kernels"]
        note[f"landed_{moment}"] = told["landed"]
        note[f"bytes_{moment}"] = moved
        note[f"mb_{moment}"] = None if moved is None else round(moved / 1e6, 3)
    note["land_seconds"] = round(time.perf_counter() - start, 3)


def _versions() -> dict[str, str]:
    import onnx_attn

    return {"torch": metadata.version("torch"), "onnx": metadata.version("onnx"), "onnx_attn": onnx_attn.__version__}


def _first_line(error: BaseException) -> str:
    lines = (line.strip() for line in str(error).splitlines())
    text = next((line for line in lines if line), "")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def main(request: str, answer: str) -> int:
    """Run the stages of one cell; a stage that fails ends it, with the first line of the reason."""
    asked = json.loads(Path(request).read_text())
    cell, folder = Cell(**asked["cell"]), Path(asked["folder"])
    paths = folder / f"{cell.key}.onnx", folder / f"{cell.key}.fused.onnx"
    stages: list[tuple[str, Callable[[Cell, Path, Path, Note], None]]] = [("export", _export), ("fuse", _fuse)]
    if cell.land:
        stages.append(("land", _land))
    note: Note = {"cell": asdict(cell), "failure": None, "versions": _versions()}

    def write(stage: str) -> None:
        Path(answer).write_text(json.dumps({**note, "stage": stage}))

    for stage, run in stages:
        write(stage)
        try:
            run(cell, *paths, note)
        except Exception as error:  # whatever stops a stage is noted, never dropped
            note["failure"] = {"stage": stage, "reason": _first_line(error)}
            if stage == "export":
                _count(cell, *paths, note)
            elif stage == "fuse" and not _runs(paths[0]):
                note["failure"]["stage"] = "run"
                _read(cell, *paths, note)
            break
    write("done")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
