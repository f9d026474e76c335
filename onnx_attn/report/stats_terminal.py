"""The report of `stats` for people: nodes by role, operations and bytes, then the sites."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from onnx_attn.report.lines import count, escape, find, say, show_table, span, table_of
from onnx_attn.report.removed import exposed_line, megabytes

Report = dict[str, Any]


def show_stats(report: Report, console: Console, verbose: bool = False) -> None:
    console.print(f"[bold]{escape(report['model'])}[/]{_sizes(report)}")
    number = report["sites"]
    if number:
        exposed = exposed_line(report["operations_exposed"])
        console.print(f"{count(number, 'attention site')}, {exposed} operations exposed each")
    else:
        console.print("no attention in this model")
    parameters = report["parameters"]
    console.print(f"parameters {parameters['count']:,} ({megabytes(parameters['bytes'])})")
    _show_roles(report, console, verbose)
    _show_flops(report["flops"], console)
    _show_memory(report["memory"], console)
    _show_sites(report["per_site"], console, verbose)


def _sizes(report: Report) -> str:
    if report["sizes"] is None:
        return f", in {escape(', '.join(report['dimensions']))}"
    given = ", ".join(f"{escape(name)} {size}" for name, size in report["sizes"].items())
    return f", {given}" if given else ""


def _show_roles(report: Report, console: Console, verbose: bool) -> None:
    """The operators of each role, the most frequent first."""
    table = table_of("nodes", f">{report['nodes']['total']}", "")
    for role, number in report["nodes"]["by_role"].items():
        found = [(kind, by.get(role, 0)) for kind, by in report["nodes"]["by_operator"].items() if by.get(role)]
        found.sort(key=lambda pair: -pair[1])
        named = found if verbose else found[:MOST]
        more = f", and {len(found) - len(named)} more" if len(named) < len(found) else ""
        table.add_row(role, str(number), ", ".join(f"{each} {escape(kind)}" for kind, each in named) + more)
    show_table(table, console)


MOST = 7
"""Operators that are named in one line."""


def _show_flops(flops: Report, console: Console) -> None:
    table = table_of("FLOPs", _figure(flops["total"]))
    shown = {"products": flops["products"], **{f"  {role}": n for role, n in flops["by_role"].items() if n != 0}}
    for name, figure in {**shown, "elementwise": flops["elementwise"]}.items():
        table.add_row(name, _figure(figure))
    show_table(table, console)
    for kind, number in flops["uncounted"].items():
        console.print(f"[yellow]not counted[/] {number} × {escape(kind)}")
    if flops["reason"]:
        find(console, "[yellow]FLOPs not counted[/]", flops["reason"])


def _show_memory(memory: Report, console: Console) -> None:
    if "materialised" in memory:
        table = table_of("bytes", "peak", "at", "in a site", "all intermediates")
        for way in ("materialised", "fused"):
            each = memory[way]
            figures = (each["attention_peak"], each["intermediates"])
            table.add_row(way, _bytes(each["peak"]), escape(each["peak_at"] or ""), *map(_bytes, figures))
        show_table(table, console)
        say(console, "scores", f"where written out {_bytes(memory['scores'])}; inputs {_bytes(memory['inputs'])}")
    if memory["reason"]:
        console.print(f"[dim]{escape(memory['reason'])}[/]")


def _show_sites(sites: list[Report], console: Console, verbose: bool) -> None:
    """Equal sites on one line: a model has layers, and layers are alike. Or each on its own, with its name."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for site in sites:
        memory = site["memory"] or dict.fromkeys(("peak", "scores"))
        row: tuple[str, ...] = (
            site["written_as"],
            str(site["operations"]),
            _figure(site["flops"]["products"]),
            _bytes(memory["peak"]),
            _bytes(memory["scores"]),
            site["softmax"] if verbose else "",
            site["id"] if verbose else "",
        )
        groups.setdefault(row, []).append(site["id"])
    if not groups:
        return
    last = ("softmax",) if verbose else ()
    table = table_of("sites", "written as", "operations", "FLOPs of products", "peak inside", "scores", *last)
    for row, names in groups.items():
        table.add_row(span(names), *map(escape, row[: 5 + len(last)]))
    show_table(table, console)


def _figure(value: int | str | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else escape(value)


def _bytes(value: int | str | None) -> str:
    return megabytes(value) if isinstance(value, int) else _figure(value)
