"""Sites for people: equal ones on one line, or each by itself with its certificate."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from onnx_attn.report.lines import count, escape, say, show_table, span, table_of
from onnx_attn.report.reading import heads_text, masks_text, projection_text, rotary_text, window_text

Report = dict[str, Any]


def show_sites(report: Report, console: Console, verbose: bool) -> None:
    sites = [candidate for candidate in report["candidates"] if candidate["status"] == "site"]
    if verbose:
        for site in sites:
            _show_site(site, console)
    elif sites:
        _show_grouped(sites, console)


def _show_grouped(sites: list[Report], console: Console) -> None:
    """Equal sites on one line: a model has layers, and layers are alike."""
    groups: dict[tuple[str, ...], list[Report]] = {}
    for site in sites:
        groups.setdefault(tuple(_cells(site).values()), []).append(site)
    names = list(_cells(sites[0]))
    shown = [place for place, name in enumerate(names) if name not in MAYBE or any(row[place] for row in groups)]
    fused = any(site.get("form") for site in sites)
    table = table_of("sites", *(names[place] for place in shown), *(("max_rel",) if fused else ()))
    for row, members in groups.items():
        found = [m["certificate"]["max_rel"] for m in members if m.get("certificate")]
        worst = [f"{max(found):.1e}" if found else ""] if fused else []
        table.add_row(span([member["id"] for member in members]), *(row[place] for place in shown), *worst)
    show_table(table, console)


def _show_site(site: Report, console: Console) -> None:
    """Everything that the report knows of one site."""
    console.print(f"[bold]{site['id']}[/]  {escape(site['softmax'])}")
    say(console, "", ", ".join(f"{name} {cell}" for name, cell in _cells(site).items() if cell))
    certificate = site.get("certificate")
    if certificate is not None:
        say(console, "", f"proof: {_certificate(certificate)}")
    if site.get("algebra"):
        say(console, "", f"algebra: {', '.join(site['algebra'])}")
    for kind in ("algebra_left", "changes_left"):
        for name, reason in site.get(kind, {}).items():
            say(console, "", f"[yellow]without {name}[/]: {escape(reason)}")
    if site.get("unpacked_because"):
        say(console, "", f"[yellow]without packing[/]: {escape(site['unpacked_because'])}")
    if site.get("folded"):
        say(console, "", f"folded: {', '.join('×'.join(map(str, shape)) or 'a scalar' for shape in site['folded'])}")
    for note in site.get("notes", ()):
        say(console, "", escape(note))


def _certificate(found: Report) -> str:
    text = f"max_rel {found['max_rel']:.1e} in {count(found['cases'], 'case')} (allowed {found['bound']:.0e})"
    if found["like"]:
        text = f"that of {escape(found['like'])}, which is like it: max_rel {found['max_rel']:.1e}"
    truth = found["error_against_float64"]
    if truth:
        before, after = (truth[when]["max_rel"] for when in ("before", "after"))
        text += f"; off float64 by {after:.1e}, as exported by {before:.1e}"
    if found["reduced"]:
        text += f"; shorter lengths: {', '.join(f'{length} → {to}' for length, to in found['reduced'].items())}"
    return text


MAYBE = ("window", "rotary", "form")
"""What a table has a column for only where some site has it."""


def _cells(site: Report) -> dict[str, str]:
    return {
        "heads": heads_text(site),
        "size": str(site["head_dim"]),
        "scale": f"{site['scale']:.6g}",
        "masks": escape(masks_text(site)),
        "window": window_text(site["window"]),
        "rotary": rotary_text(site["rotary"]),
        "projection": projection_text(site),
        "form": ", ".join([site["form"], *site["changes"]]) if site.get("form") else "",
    }
