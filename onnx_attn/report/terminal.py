"""The reports of what reads and rewrites for people: what was found, what was done, and why not where it was not."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from onnx_attn.report.landed_terminal import show_landing
from onnx_attn.report.left_terminal import show_left
from onnx_attn.report.lines import count, escape, say, show_seconds
from onnx_attn.report.operators_terminal import show_operators
from onnx_attn.report.removed import show_removed
from onnx_attn.report.sites_terminal import show_sites

Report = dict[str, Any]


def show_inspection(report: Report, console: Console, verbose: bool = False) -> None:
    _show_head(report, console, "")
    show_sites(report, console, verbose)
    show_left(report, console, verbose)


def show_fusion(report: Report, console: Console, verbose: bool = False, *, output: str) -> None:
    untouched = report["nodes_after"] == report["nodes_before"] and not _certificates(report)
    already = "already " if untouched and report["fused"] else ""
    _show_head(report, console, f", {report['fused']} {already}fused" if report["sites"] else "")
    show_sites(report, console, verbose)
    show_left(report, console, verbose)
    _show_search(report["search"], console)
    _show_batch(report["dynamic_batch"], console)
    if report["nodes_after"] != report["nodes_before"]:
        say(console, "nodes", f"{report['nodes_before']} → {report['nodes_after']}")
    elif report["fused"] == 0 and report["dynamic_batch"] is None and not report["spelled"]:
        console.print("nothing to change")
    show_operators(report["stats"], console, verbose)
    show_removed(report["stats"], console)
    _show_proof(report, console)
    show_seconds(report["seconds"], console)
    say(console, "wrote", escape(output))
    if report.get("land"):
        show_landing(report["land"], console, verbose)


def show_expansion(report: Report, console: Console, verbose: bool = False, *, output: str) -> None:
    asked = f" of {len(report['asked'])} asked for" if report["asked"] is not None else ""
    console.print(f"[bold]{escape(report['model'])}[/]")
    console.print(f"{count(report['sites'], 'attention site')}, {report['expanded']} taken apart{asked}")
    show_sites(report, console, verbose)
    show_left(report, console, verbose)
    if report["opset_raised"]:
        say(console, "opset", " → ".join(map(str, report["opset_raised"])))
    say(console, "nodes", f"{report['nodes_before']} → {report['nodes_after']}")
    show_operators(report["stats"], console, verbose)
    _show_proof(report, console)
    show_seconds(report["seconds"], console)
    say(console, "wrote", escape(output))


def show_extraction(report: Report, console: Console, verbose: bool = False, *, output: str) -> None:
    console.print(f"[bold]{escape(report['site'])}[/] ({escape(report['softmax'])}) of {escape(report['model'])}")
    say(console, "reads", ", ".join(map(escape, report["inputs"])))
    say(console, "gives", f"{', '.join(map(escape, report['outputs']))}, in {count(report['nodes'], 'node')}")
    say(console, "wrote", escape(output))


def _show_head(report: Report, console: Console, done: str) -> None:
    version = f" {report['target_version']}" if report["target_version"] else ""
    console.print(f"[bold]{escape(report['model'])}[/] for {report['target']}{version}")
    sites, refused = report["sites"], report["refused"]
    console.print(
        f"{count(sites, 'attention site')}{done}, {refused} refused" if sites else "no attention in this model"
    )


def _show_search(search: Report | None, console: Console) -> None:
    if search is None:
        return
    export, default, chosen = (
        f"{cost['kernels']} kernels and {cost['moved_bytes'] / 1e6:.4g} MB" if cost else "does not build"
        for cost in (search["export"], search["default"], search["chosen"])
    )
    say(console, "search", f"{chosen} chosen; {default} by default; {export} as exported")
    say(console, "", f"{count(search['builds'], 'build')} by {search['compiler']} for SM {search['sm']}")


def _show_batch(batch: Report | None, console: Console) -> None:
    if batch is not None:
        inputs = ", ".join(map(escape, batch["inputs"]))
        say(console, "batch", f"{batch['was']} → {escape(batch['name'])}, the first axis of {inputs}")


def _show_proof(report: Report, console: Console) -> None:
    """The whole model, the sites, and how far these are from float64, before and after: the worst of each."""
    say(console, "proof", _proof_line(report))
    certificates = _certificates(report)
    told = [each["error_against_float64"] for each in certificates if each["error_against_float64"]]
    shorter = {length: to for each in certificates for length, to in (each["reduced"] or {}).items()}
    if shorter:
        lengths = ", ".join(f"{length} → {to}" for length, to in shorter.items())
        say(console, "", f"sites too large to be run as they are were run with shorter lengths: {lengths}")
    if told:
        before, after = (max(each[when]["max_rel"] for each in told) for when in ("before", "after"))
        say(console, "", f"against float64 sites are off by {after:.1e} at most, as exported by {before:.1e}")


def _proof_line(report: Report) -> str:
    proof = report["proof"]
    if proof is None:
        return f"none: {escape(report['proof_left'])}"
    if not proof["cases"]:
        return "not needed, nothing was changed"
    certificates = _certificates(report)
    cases, alike = sum(each["cases"] for each in certificates), sum(each["like"] is not None for each in certificates)
    return (
        f"whole model max_rel {proof['max_rel']:.1e} on {count(proof['cases'], 'input set')} (allowed {proof['rtol']:.0e}); "
        f"{count(cases, 'case')} on the sites" + (f", {count(alike, 'site')} by another like it" if alike else "")
    )


def _certificates(report: Report) -> list[Report]:
    return [c["certificate"] for c in report["candidates"] if c.get("certificate")]
