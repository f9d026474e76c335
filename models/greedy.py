"""Greedy decoding as a proof: decoders exported with their caches, fused, and run beside the originals for ten tokens.

    python -m models greedy -o DIR [--names gpt2,t5,llama_static] [--exporters torchscript:17,dynamo:18] [--attn both]

Exports that vary in batch and past only: a file for one length of the past cannot go on. Writes DIR/greedy.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from models.decoding import STEPS, compare
from models.matrix import EXPORTERS, exporters
from models.reference import Attn, Exporter, Size

_DECODERS = ("gpt2", "llama", "mistral", "qwen2", "falcon", "phi")
LOOPS: dict[str, tuple[str, ...]] = {
    **{name: (f"{name}_prefill", f"{name}_decode") for name in _DECODERS},
    **{f"{name}_continue": (f"{name}_continue",) for name in _DECODERS},
    **{name: (f"{name}_decoder_first", f"{name}_decoder_step") for name in ("t5", "marian", "pegasus", "whisper")},
    "llama_static": ("llama_static",),
}
"""The references that a loop runs: the first once, the last at each step."""


@dataclass
class Told:
    """What came of one loop by one exporter. sites: of each file, true, found and fused ones, and codes of the refused."""

    name: str
    column: str
    attn: str
    sites: list[dict[str, Any]] = field(default_factory=list)
    failure: str = ""
    tokens: list[list[int]] = field(default_factory=list)
    max_rel: float | None = None
    ok: bool = False

    @property
    def unmet(self) -> bool:
        """Whether a file that torch wrote, and ONNX Runtime runs, is not fused whole, or what was fused says something else."""
        if self.failure:
            return not self.failure.startswith(("export", "run"))
        return not self.ok or any(not each["true"] == each["found"] == each["fused"] for each in self.sites)

    @property
    def entry(self) -> str:
        """Its cell of the table."""
        if self.failure:
            return f"no {self.failure.partition(':')[0]}"
        counts = " + ".join(f"{each['true']}/{each['found']}/{each['fused']}" for each in self.sites)
        return f"{'**' if self.unmet else ''}{counts}, {self.max_rel:.1e}{'**' if self.unmet else ''}"


def run(name: str, folder: Path, exporter: Exporter, opset: int, attn: Attn, size: Size) -> Told:
    """Export, fuse and decode."""
    import onnx_attn
    from models.export import ExportError, export
    from onnx_attn.runtime import CannotRun

    told = Told(name, f"{exporter} {opset}", attn)
    originals, results = [], []
    for reference in LOOPS[name]:
        path = folder / f"{reference}.{exporter}.{opset}.{attn}.onnx"
        fused = path.with_suffix(".fused.onnx")
        try:
            made = export(reference, path, exporter, opset, True, False, attn, size)
            report = onnx_attn.fuse(path, fused).report
        except ExportError as error:
            told.failure = f"export: {reference}: {error}"
            return told
        except CannotRun as error:
            told.failure = f"run: {reference}: {error}"
            return told
        except onnx_attn.OnnxAttnError as error:
            told.failure = f"fuse: {reference}: {error}"
            return told
        refused = Counter(each["code"] for each in report["candidates"] if each["status"] == "refused")
        told.sites.append(
            {"true": made.true_sites, "found": report["sites"], "fused": report["fused"], "refused": dict(refused)}
        )
        originals.append(path)
        results.append(fused)
    outcome = compare((originals[0], originals[-1]), (results[0], results[-1]))
    told.tokens, told.max_rel, told.ok = outcome.tokens.tolist(), outcome.max_rel, outcome.ok
    return told


def table(every: list[Told]) -> str:
    """The markdown of all loops."""
    columns = list(dict.fromkeys(told.column for told in every))
    rows = list(dict.fromkeys((told.name, told.attn) for told in every))
    by_place = {(told.name, told.attn, told.column): told.entry for told in every}
    lines = [
        f"Each cell: true / found / fused sites of each file, worst max_rel of logits and presents over {1 + STEPS} runs.",
        "",
        f"| model | {' | '.join(columns)} |",
        f"|---|{'---|' * len(columns)}",
    ]
    for name, attn in rows:
        cells = (by_place.get((name, attn, column), "") for column in columns)
        lines.append(f"| {name} {attn} | {' | '.join(cells)} |")
    lines += ["", *(f"- {told.name} {told.attn}, {told.column}: {told.failure}" for told in every if told.failure)]
    refused = [(told, each["refused"]) for told in every for each in told.sites if each["refused"]]
    lines += [f"- {told.name} {told.attn}, {told.column}: refused {codes}" for told, codes in refused]
    return "\n".join([*lines, f"- loops: {len(every)}, unmet: {sum(told.unmet for told in every)}", ""])


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in LOOPS]:
        raise argparse.ArgumentTypeError(f"no loop named {', '.join(unknown)}; known: {', '.join(LOOPS)}")
    return names


def parser() -> argparse.ArgumentParser:
    """The options of `python -m models greedy`."""
    top = argparse.ArgumentParser(prog="python -m models greedy", description=(__doc__ or "").splitlines()[0])
    top.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    top.add_argument("--names", type=_names, default=list(LOOPS), help="separated by commas; default: every one")
    top.add_argument("--exporters", type=exporters, default=exporters(EXPORTERS), help=f"default: {EXPORTERS}")
    top.add_argument("--size", choices=("full", "tiny"), default="tiny")
    top.add_argument("--attn", choices=("eager", "sdpa", "both"), default="both")
    return top


def main(arguments: list[str]) -> int:
    """Run every loop that was asked for, print and write the table; 3 if a site is left or the two say different things."""
    options = parser().parse_args(arguments)
    ways: tuple[Attn, ...] = ("sdpa", "eager") if options.attn == "both" else (options.attn,)
    every = []
    for name in options.names:
        for attn in ways:
            for exporter, opset in options.exporters:
                told = run(name, options.output, exporter, opset, attn, options.size)
                every.append(told)
                print(f"{name} {attn} {told.column}: {told.failure or told.entry}", file=sys.stderr, flush=True)
    text = table(every)
    (options.output / "greedy.md").write_text(text)
    (options.output / "greedy.json").write_text(json.dumps([asdict(told) for told in every], indent=1))
    print(text)
    return 3 if any(told.unmet for told in every) else 0
