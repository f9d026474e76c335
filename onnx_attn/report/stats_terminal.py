"""The report of `stats` for people: nodes by role, operations and bytes, then the sites."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from onnx_attn.report.removed import exposed_line, megabytes
from onnx_attn.report.terminal import escape

Report = dict[str, Any]


def show_stats(report: Report, console: Console) -> None:
    console.print(f"[bold]{escape(report['model'])}[/]{_sizes(report)}")
    number = report["sites"]
    if number:
        plural = "s" if number > 1 else ""
        exposed = exposed_line(report["operations_exposed"])
        console.print(f"{number} attention site{plural}, {exposed} operations exposed each")
    else:
        console.print("no attention in this model")
    parameters = report["parameters"]
    console.print(f"parameters {parameters['count']:,} ({megabytes(parameters['bytes'])})")
    _show_roles(report, console)
    _show_flops(report["flops"], console)
    _show_memory(report["memory"], console)
    _show_sites(report["per_site"], console)


def _sizes(report: Report) -> str:
    if report["sizes"] is None:
        return f", in {escape(', '.join(report['dimensions']))}"
    given = ", ".join(f"{escape(name)} {size}" for name, size in report["sizes"].items())
    return f", {given}" if given else ""


def _show_roles(report: Report, console: Console) -> None:
    """The operators of each role, the most frequent first."""
    table = Table(box=None, pad_edge=False)
    table.add_column("nodes")
    table.add_column(str(report["nodes"]["total"]), justify="right")
    table.add_column("", overflow="fold")
    for role, count in report["nodes"]["by_role"].items():
        found = [(kind, by.get(role, 0)) for kind, by in report["nodes"]["by_operator"].items() if by.get(role)]
        found.sort(key=lambda pair: -pair[1])
        more = f", and {len(found) - MOST} more" if len(found) > MOST else ""
        table.add_row(role, str(count), ", ".join(f"{count} {escape(kind)}" for kind, count in found[:MOST]) + more)
    console.print(table)


MOST = 7
"""Operators that are named in one line."""


def _show_flops(flops: Report, console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column("FLOPs")
    table.add_column(_figure(flops["total"]), justify="left", overflow="fold")
    shown = {"products": flops["products"], **{f"  {role}": n for role, n in flops["by_role"].items() if n != 0}}
    for name, figure in {**shown, "elementwise": flops["elementwise"]}.items():
        table.add_row(name, _figure(figure))
    console.print(table)
    for kind, count in flops["uncounted"].items():
        console.print(f"[yellow]not counted[/] {count} × {escape(kind)}")
    if flops["reason"]:
        console.print(f"[yellow]FLOPs[/] {escape(flops['reason'])}")


def _show_memory(memory: Report, console: Console) -> None:
    if "materialised" in memory:
        table = Table(box=None, pad_edge=False)
        for column in ("bytes", "peak", "at", "in a site", "all intermediates"):
            table.add_column(column, overflow="fold")
        for way in ("materialised", "fused"):
            each = memory[way]
            figures = (each["attention_peak"], each["intermediates"])
            table.add_row(way, _bytes(each["peak"]), escape(each["peak_at"] or ""), *map(_bytes, figures))
        console.print(table)
        console.print(f"scores where written out {_bytes(memory['scores'])}, inputs {_bytes(memory['inputs'])}")
    if memory["reason"]:
        console.print(f"[dim]{escape(memory['reason'])}[/]")


def _show_sites(sites: list[Report], console: Console) -> None:
    """Equal sites on one line: a model has layers, and layers are alike."""
    groups: dict[tuple[str, ...], list[str]] = {}
    for site in sites:
        memory = site["memory"] or dict.fromkeys(("peak", "scores"))
        row: tuple[str, ...] = (
            site["written_as"],
            str(site["operations"]),
            _figure(site["flops"]["products"]),
            _bytes(memory["peak"]),
            _bytes(memory["scores"]),
        )
        groups.setdefault(row, []).append(site["id"])
    if not groups:
        return
    table = Table(box=None, pad_edge=False)
    for column in ("sites", "written as", "operations", "FLOPs of products", "peak inside", "scores"):
        table.add_column(column, overflow="fold")
    for row, names in groups.items():
        table.add_row(names[0] if len(names) == 1 else f"{names[0]} … {names[-1]}", *map(escape, row))
    console.print(table)


def _figure(value: int | str | None) -> str:
    return "–" if value is None else f"{value:,}" if isinstance(value, int) else escape(value)


def _bytes(value: int | str | None) -> str:
    return megabytes(value) if isinstance(value, int) else _figure(value)
