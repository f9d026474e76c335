"""The report for people: what was found, what was done, and why not where it was not."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.markup import escape as escape_markup
from rich.table import Table

from onnx_attn.errors import printable
from onnx_attn.report.reading import heads_text, masks_text, projection_text, rotary_text, window_text
from onnx_attn.report.removed import show_removed

Report = dict[str, Any]


def escape(text: str) -> str:
    """Text from a model, with neither markup nor control characters."""
    return escape_markup(printable(text))


def show_inspection(report: Report, console: Console) -> None:
    _show_head(report, console, "")
    _show_sites(report, console)
    _show_expectations(report, console)
    _show_left_alone(report, console)
    _show_spelled(report["spelled"], console)


def show_fusion(report: Report, output: str, console: Console) -> None:
    untouched = report["nodes_after"] == report["nodes_before"] and not _certificates(report)
    already = "already " if untouched and report["fused"] else ""
    done = f", {report['fused']} {already}fused" if report["sites"] else ""
    _show_head(report, console, done)
    _show_sites(report, console)
    _show_expectations(report, console)
    _show_left_alone(report, console)
    _show_changes_left(report, console)
    _show_spelled(report["spelled"], console)
    _show_search(report["search"], console)
    _show_batch(report["dynamic_batch"], console)
    if report["nodes_after"] != report["nodes_before"]:
        console.print(f"nodes   {report['nodes_before']} → {report['nodes_after']}")
    elif report["fused"] == 0 and report["dynamic_batch"] is None and not report["spelled"]:
        console.print("nothing to change")
    show_removed(report["stats"], console)
    console.print(f"proof   {_proof_line(report)}")
    _show_truth(report, console)
    seconds = report["seconds"]
    phases = ", ".join(f"{phase} {time:.2f}" for phase, time in seconds.items())
    console.print(f"seconds {sum(seconds.values()):.2f} ({phases})")
    console.print(f"wrote   {escape(output)}")


def show_expansion(report: Report, output: str, console: Console) -> None:
    asked = f" of {len(report['asked'])} asked for" if report["asked"] is not None else ""
    console.print(f"[bold]{escape(report['model'])}[/]")
    console.print(f"{_count(report['sites'], 'attention site')}, {report['expanded']} taken apart{asked}")
    _show_sites(report, console)
    _show_left_alone(report, console)
    _show_spelled(report["spelled"], console)
    if report["opset_raised"]:
        console.print(f"opset   {' → '.join(map(str, report['opset_raised']))}")
    console.print(f"nodes   {report['nodes_before']} → {report['nodes_after']}")
    console.print(f"proof   {_proof_line(report)}")
    _show_truth(report, console)
    console.print(f"wrote   {escape(output)}")


def show_extraction(report: Report, output: str, console: Console) -> None:
    console.print(f"[bold]{escape(report['site'])}[/] ({escape(report['softmax'])}) of {escape(report['model'])}")
    console.print(f"reads   {', '.join(map(escape, report['inputs']))}")
    console.print(f"gives   {', '.join(map(escape, report['outputs']))}, in {_count(report['nodes'], 'node')}")
    console.print(f"wrote   {escape(output)}")


def show_verification(report: Report, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for column in ("output", "max_abs", "max_rel", "NaN and ±inf", ""):
        table.add_column(column)
    for output in report["outputs"]:
        table.add_row(
            escape(output["name"]),
            f"{output['max_abs']:.1e}",
            f"{output['max_rel']:.1e}",
            "agree" if output["agrees"] else "[bold red]differ[/]",
            "" if output["ok"] else "[bold red]DIFFERS[/]",
        )
    console.print(table)
    for shapes in report["shapes"]:
        inputs = (f"{escape(name)} {'×'.join(map(str, shape))}" for name, shape in shapes.items())
        console.print(f"inputs  {', '.join(inputs)}")
    for each in report["certificates"] or ():
        _show_rechecked(each, console)
    verdict = "[green]the same[/]" if report["ok"] else "[bold red]different[/]"
    console.print(
        f"{verdict}: {_count(report['cases'], 'case')}, max_rel {report['max_rel']:.1e}, allowed {report['rtol']:.0e}"
    )


def _show_rechecked(found: Report, console: Console) -> None:
    name = f"{found['site']} ({escape(found['softmax'])})"
    if found["ok"] is None:
        console.print(f"{name} [yellow]not checked by itself[/]: {escape(found['reason'])}")
        return
    verdict = "[green]holds[/]" if found["ok"] else "[bold red]DOES NOT HOLD[/]"
    truth = found["error_against_float64"]
    told = (
        f"; off float64 by {truth['after']['max_rel']:.1e}, before by {truth['before']['max_rel']:.1e}" if truth else ""
    )
    console.print(
        f"{name} {verdict}: {_count(found['cases'], 'case')}, max_rel {found['max_rel']:.1e}, allowed {found['bound']:.0e}{told}"
    )


def _show_head(report: Report, console: Console, done: str) -> None:
    version = f" {report['target_version']}" if report["target_version"] else ""
    console.print(f"[bold]{escape(report['model'])}[/] for {report['target']}{version}")
    if not report["sites"]:
        console.print("no attention in this model")
    else:
        plural = "s" if report["sites"] != 1 else ""
        console.print(f"{report['sites']} attention site{plural}{done}, {report['refused']} refused")


def _show_sites(report: Report, console: Console) -> None:
    """Equal sites on one line: a model has layers, and layers are alike."""
    sites = [candidate for candidate in report["candidates"] if candidate["status"] == "site"]
    if not sites:
        return
    groups: dict[tuple[str, ...], list[Report]] = {}
    for site in sites:
        groups.setdefault(_row(site), []).append(site)
    table = Table(box=None, pad_edge=False)
    fused = any(site.get("form") for site in sites)
    shown = [name for name in ("window", "rotary") if any(site[name] for site in sites)]
    columns = ("sites", "heads", "size", "scale", "masks", *shown, "projection")
    for column in (*columns, *(("form", "max_rel") if fused else ())):
        table.add_column(column, overflow="fold")
    for row, members in groups.items():
        found = [m["certificate"]["max_rel"] for m in members if m.get("certificate")]
        name = _span([member["id"] for member in members])
        *cells, window, rotary, projection, form = row
        cells += [cell for name, cell in (("window", window), ("rotary", rotary)) if name in shown]
        cells.append(projection)
        cells += [form, f"{max(found):.1e}" if found else ""] if fused else []
        table.add_row(name, *cells)
    console.print(table)


def _show_expectations(report: Report, console: Console) -> None:
    """Sites that the table of targets expects on no attention kernel, by reason."""
    groups: dict[tuple[str, str | None], list[str]] = {}
    for site in report["candidates"]:
        if site["status"] == "site" and site["landing"] and not site["landing"]["expected"]:
            groups.setdefault((site["landing"]["reason"], site["landing"]["remedy"]), []).append(site["id"])
    for (reason, remedy), names in groups.items():
        console.print(f"[yellow]{_span(names)} will not reach an attention kernel[/]: {escape(reason)}")
        if remedy:
            console.print(f"        → {escape(remedy)}")


def _show_changes_left(report: Report, console: Console) -> None:
    """Sites that were written without a change that was asked for, by change and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for site in report["candidates"]:
        for change, reason in site["changes_left"].items():
            groups.setdefault((change, reason), []).append(site["id"])
    for (change, reason), names in groups.items():
        console.print(f"[yellow]{_span(names)} without {change}[/]: {escape(reason)}")


def _show_search(search: Report | None, console: Console) -> None:
    if search is None:
        return
    export, default, chosen = (
        f"{cost['kernels']} kernels and {cost['moved_bytes'] / 1e6:.4g} MB" if cost else "does not build"
        for cost in (search["export"], search["default"], search["chosen"])
    )
    console.print(f"search  {chosen} chosen; {default} by default; {export} as exported")
    console.print(f"        {_count(search['builds'], 'build')} by {search['compiler']} for SM {search['sm']}")


def _show_spelled(spelled: Report | None, console: Console) -> None:
    """What was done with ONNX Runtime's own operators, and which of them stay, for what reason."""
    if spelled is None:
        return
    counts = [f"{count} × {escape(operator)}" for operator, count in spelled["operators"].items()]
    if counts:
        console.print(f"in plain nodes: {', '.join(counts)}")
    reasons = Counter((left["operator"], left["reason"]) for left in spelled["left"])
    for (operator, reason), count in reasons.items():
        console.print(f"left as it is: {count} × {escape(operator)}: {escape(reason)}")


def _show_batch(batch: Report | None, console: Console) -> None:
    if batch is not None:
        inputs = ", ".join(map(escape, batch["inputs"]))
        console.print(f"batch   {batch['was']} → {escape(batch['name'])}, the first axis of {inputs}")


def _span(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}"


def _row(site: Report) -> tuple[str, ...]:
    return (
        heads_text(site),
        str(site["head_dim"]),
        f"{site['scale']:.6g}",
        escape(masks_text(site)),
        window_text(site["window"]),
        rotary_text(site["rotary"]),
        projection_text(site),
        ", ".join([site.get("form") or "", *site["changes"]]),
    )


def _show_left_alone(report: Report, console: Console) -> None:
    """Refusals of one code on one line, with the first node that blocks; then what is no attention."""
    groups: dict[tuple[str, str | None], list[Report]] = {}
    for candidate in report["candidates"]:
        if candidate["status"] == "refused":
            groups.setdefault((candidate["code"], candidate["remedy"]), []).append(candidate)
    for (code, remedy), members in groups.items():
        first = members[0]
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        console.print(f"[yellow]{first['id']}{more} refused[/] {code} at {escape(first['node'])}")
        console.print(f"        {escape(first['reason'])}")
        if remedy:
            console.print(f"        → {escape(remedy)}")
    if groups and report["target"] == "tensorrt":
        console.print("[dim]what is left as it is may land all the same: onnx-attn land tells[/]")
    others = Counter(c["code"] for c in report["candidates"] if c["status"] == "not_attention")
    for code, count in others.items():
        console.print(f"[dim]{count} × not attention: {code}[/]")


def _proof_line(report: Report) -> str:
    proof = report["proof"]
    if proof is None:
        return f"none: {report['proof_left']}"
    if not proof["cases"]:
        return "not needed, nothing was changed"
    certificates = _certificates(report)
    cases, alike = sum(each["cases"] for each in certificates), sum(each["like"] is not None for each in certificates)
    return (
        f"whole model max_rel {proof['max_rel']:.1e} on {_count(proof['cases'], 'input set')} (allowed {proof['rtol']:.0e}); "
        f"{_count(cases, 'case')} on the sites" + (f", {_count(alike, 'site')} by another like it" if alike else "")
    )


def _show_truth(report: Report, console: Console) -> None:
    """How far sites are from float64, before and after: the worst of each."""
    told = [each["error_against_float64"] for each in _certificates(report) if each["error_against_float64"]]
    if told:
        before, after = (max(each[when]["max_rel"] for each in told) for when in ("before", "after"))
        shorter = {length: to for each in _certificates(report) for length, to in (each["reduced"] or {}).items()}
        if shorter:
            lengths = ", ".join(f"{length} → {to}" for length, to in shorter.items())
            console.print(f"        sites too large to be run as they are were run with shorter lengths: {lengths}")
        console.print(f"        against float64 sites are off by {after:.1e} at most, as exported by {before:.1e}")


def _certificates(report: Report) -> list[Report]:
    return [c["certificate"] for c in report["candidates"] if c.get("certificate")]


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
