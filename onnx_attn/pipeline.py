"""load → recognize → plan → apply → prove → save: the arrows of the design, one after the other."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from onnx_attn.errors import DifferenceError, ExpectationError, UsageError
from onnx_attn.forms.write import write_site
from onnx_attn.graph.compose import compose
from onnx_attn.graph.edit import Names, SiteEdit
from onnx_attn.graph.load import Loaded, load
from onnx_attn.graph.save import check_output, commit, staged, write
from onnx_attn.graph.view import GraphView
from onnx_attn.plan import Decision, Plan, make_plan
from onnx_attn.prove.cut import Cutter
from onnx_attn.prove.inputs import model_inputs
from onnx_attn.prove.runtime import CannotRun
from onnx_attn.prove.site import Certificate, prove_site
from onnx_attn.prove.whole import WholeProof, compare_models, default_rtol
from onnx_attn.recognize.candidates import recognize
from onnx_attn.site import Written
from onnx_attn.targets.table import Target, parse_target


@dataclass(frozen=True)
class Options:
    """What `fuse` was asked for."""

    target: Target = field(default_factory=lambda: parse_target("tensorrt"))
    form: str = "auto"
    pack: bool = True
    expect: int | None = None
    verify: bool = True


@dataclass
class Fusion:
    """What `fuse` did: the plan, the edits and certificates (by the plan's keys), the proof of the whole, the time."""

    name: str
    target: Target
    view: GraphView
    plan: Plan
    nodes_before: int
    nodes_after: int = 0
    edits: dict[str, SiteEdit] = field(default_factory=dict)
    certificates: dict[str, Certificate] = field(default_factory=dict)
    proof: WholeProof | None = None
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def clock(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start


def inspect_model(loaded: Loaded, target: Target) -> tuple[GraphView, Plan]:
    """Recognise and plan, nothing more."""
    view = GraphView(loaded.proto)
    return view, make_plan(view, recognize(view), target)


def fuse_file(path: Path, output: Path, options: Options) -> tuple[Fusion, onnx.ModelProto]:
    """Fuse the model at `path` into `output`, which is written whole or not at all.

    Raises InputError, OutputError, ExpectationError, DifferenceError, UsageError as the interface's exit codes say.
    """
    check_output(output, path)
    with staged(output) as draft:
        start = time.perf_counter()
        loaded = load(path)
        fusion, model = rewrite(loaded, options, time.perf_counter() - start)
        with fusion.clock("save"):
            if fusion.edits:
                write(model, draft, loaded.external)
            elif loaded.external:
                write(model, draft, True)
            else:
                shutil.copyfile(path, draft)
        if options.verify:
            with fusion.clock("prove"):
                fusion.proof = _prove_whole(fusion, model, (path, str(path)), (draft, f"{output} (fused)"))
        with fusion.clock("save"):
            commit(draft, output)
    return fusion, model


def fuse_proto(proto: onnx.ModelProto, name: str, options: Options) -> tuple[Fusion, onnx.ModelProto]:
    """Fuse a model in memory; `proto` stays as it is."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    fusion, model = rewrite(Loaded(copy, name, None, False), options, 0.0)
    if options.verify:
        with fusion.clock("prove"):
            fusion.proof = _prove_whole(fusion, model, (proto, name), (model, f"{name} (fused)"))
    return fusion, model


def rewrite(loaded: Loaded, options: Options, seconds_load: float) -> tuple[Fusion, onnx.ModelProto]:
    """Recognise, plan, apply, prove each site and roll back those that fail; the model of `loaded` is changed."""
    start = time.perf_counter()
    view = GraphView(loaded.proto)
    imported = time.perf_counter()
    candidates = recognize(view)
    recognized = time.perf_counter()
    plan = make_plan(view, candidates, options.target, options.form, options.pack)
    fusion = Fusion(loaded.name, options.target, view, plan, len(loaded.proto.graph.node))
    fusion.seconds = {
        "load": seconds_load + imported - start,
        "recognize": recognized - imported,
        "plan": time.perf_counter() - recognized,
    }
    with fusion.clock("apply"):
        names = Names(loaded.proto)
        for decision in plan.decisions:
            edit = write_site(view, names, decision.site, decision.form, decision.packing)
            fusion.edits[decision.key] = edit
    if options.verify:
        with fusion.clock("prove"):
            _prove_sites(fusion, view)
    _check_expectation(fusion, options)
    with fusion.clock("apply"):
        model = compose(loaded.proto, list(fusion.edits.values()))
    fusion.nodes_after = len(model.graph.node)
    return fusion, model


def fused_sites(fusion: Fusion) -> int:
    """Sites that are written in a form of ours, those that were before included."""
    entries = fusion.plan.entries
    return sum(isinstance(e, Written) or (isinstance(e, Decision) and e.key in fusion.edits) for e in entries)


def _prove_sites(fusion: Fusion, view: GraphView) -> None:
    cutter = Cutter(view)
    for decision in fusion.plan.decisions:
        certificate = prove_site(view, cutter, decision.site, fusion.edits[decision.key])
        fusion.certificates[decision.key] = certificate
        if not certificate.ok:
            del fusion.edits[decision.key]


def _check_expectation(fusion: Fusion, options: Options) -> None:
    found = fused_sites(fusion)
    if options.expect is not None and found != options.expect:
        raise ExpectationError(
            f"{fusion.name}: --expect {options.expect}, but {found} sites can be fused; nothing was written; "
            f"`onnx-attn inspect` says why others are left"
        )


def _prove_whole(
    fusion: Fusion, model: onnx.ModelProto, before: tuple[onnx.ModelProto | Path, str], after: tuple[onnx.ModelProto | Path, str]
) -> WholeProof:
    """Compare on two batch sizes where the batch is dynamic. A model that was not changed needs no run."""
    if not fusion.edits:
        return WholeProof({}, 0, default_rtol([model]), 0.0)
    inputs = [model_inputs(model, world) for world in fusion.view.worlds]
    try:
        proof = compare_models(before, after, inputs, default_rtol([model]))
    except CannotRun as error:
        raise CannotRun(f"{error}; pass --no-verify to rewrite without proof") from error
    except UsageError as error:
        raise CannotRun(f"{fusion.name}: {error}") from error
    if not proof.ok:
        worst = proof.worst
        raise DifferenceError(
            f"{fusion.name}: the fused model differs at output '{proof.failing[0]}' "
            f"(max_rel {worst.max_rel:.1e}, allowed {proof.rtol:.0e}); nothing was written; please report this"
        )
    return proof
