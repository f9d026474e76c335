"""From a model to a proved model: a file or a message in, rewritten, run whole before and after, written whole or not at all."""

from __future__ import annotations

import gc
import shutil
import time
from dataclasses import replace
from pathlib import Path

import onnx

from onnx_attn.errors import DifferenceError
from onnx_attn.graph.load import Loaded, copied, load
from onnx_attn.graph.save import check_data, check_output, commit, staged, write
from onnx_attn.options import Options
from onnx_attn.pipeline import PlanDocument, Report, Trial, rewrite
from onnx_attn.progress import stage
from onnx_attn.prove.inputs import flags_off
from onnx_attn.prove.whole import Model, WholeProof, compare_models
from onnx_attn.prove.whole_quantised import compare_quantised
from onnx_attn.report.document import proof_document
from onnx_attn.runtime import CannotRun

LARGE = 2**26
"""Bytes of a file from which on what was held of it is looked for, to be given up before the file is run: that takes a tenth of a
second, which is as long as a small model takes."""


def fuse_file(source: Path | Loaded, output: Path, options: Options) -> tuple[Report, PlanDocument]:
    """Fuse a model, in a file or in memory, into `output`, which is written whole or not at all; `source` stays as it is.

    What is proved is the very file that will be delivered; the model in memory is given up before it is run.

    Raises InputError, OutputError, ExpectationError, DifferenceError, UsageError as the interface's exit codes say.
    """
    check_output(output, source if isinstance(source, Path) else None)
    with staged(output) as draft:
        report, trial = _write_draft(source, output, draft, options)
        if trial.left is None:
            if draft.stat().st_size >= LARGE:
                gc.collect()  # graphsurgeon's nodes and tensors refer to each other, and through them to the weights.
            _prove_whole(report, trial, source if isinstance(source, Path) else source.proto, draft)
        start = time.perf_counter()
        with stage("save"):
            commit(draft, output)
        _add_seconds(report, "save", start)
    return report, trial.plan


def fuse_proto(loaded: Loaded, options: Options) -> tuple[Report, PlanDocument, onnx.ModelProto]:
    """Fuse a model in memory; `loaded` stays as it is."""
    report, trial, model = rewrite(loaded.copy(), options)
    if not trial.changed:
        model = copied(loaded.proto)
    if trial.left is None:
        _prove_whole(report, trial, loaded.proto, model)
    return report, trial.plan, model


def _own(source: Path | Loaded) -> Loaded:
    return load(source) if isinstance(source, Path) else source.copy()


def _write_draft(source: Path | Loaded, output: Path, draft: Path, options: Options) -> tuple[Report, Trial]:
    start = time.perf_counter()
    loaded = _own(source)
    check_data(output, loaded.data_files)
    if loaded.external:
        loaded = replace(loaded, made=draft.parent / "made")
    seconds = time.perf_counter() - start
    report, trial, model = rewrite(loaded, options)
    report["seconds"]["load"] += seconds
    start = time.perf_counter()
    with stage("save"):
        if trial.changed:
            write(model, draft, loaded.external)
        elif isinstance(source, Path) and not loaded.external:
            shutil.copyfile(source, draft)
        else:
            write(_own(source).proto, draft, loaded.external)
    _add_seconds(report, "save", start)
    return report, trial


def _prove_whole(report: Report, trial: Trial, before: Model, after: Model) -> None:
    """Run the whole model before and after. One that was not changed needs no run."""
    start = time.perf_counter()
    proof = WholeProof({}, 0, trial.rtol, 0.0)
    if trial.changed:
        try:
            named = (before, trial.name), (after, f"{trial.name} (fused)")
            others = flags_off(trial.inputs)
            with stage("prove whole"):
                proof = compare_models(*named, trial.inputs, trial.rtol, slices=trial.slices, also=others)
                if not proof.ok:
                    proof = compare_quantised(*named, trial.inputs, proof, trial.slices)
        except CannotRun as error:
            raise CannotRun(f"{error}; pass --no-verify to rewrite without proof") from error
    if not proof.ok:
        raise DifferenceError(f"{trial.name}: {_told(proof, report)}")
    report["proof"] = proof_document(proof)
    _add_seconds(report, "prove", start)


def _told(proof: WholeProof, report: Report) -> str:
    """Where and by how much the whole model differs, and the way out."""
    name = proof.failing[0]
    by = proof.outputs[name].told(proof.rtol)
    changed = any(candidate.get("algebra") for candidate in report["candidates"])
    way = "with --no-algebra biases and scales stay where they are; " if changed else ""
    return f"the fused model differs at output '{name}' ({by}); nothing was written; {way}please report this"


def _add_seconds(report: Report, phase: str, start: float) -> None:
    report["seconds"][phase] = round(report["seconds"].get(phase, 0.0) + time.perf_counter() - start, 4)
