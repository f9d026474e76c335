"""The report of `land` for people: one table before → after, then every site that is on no attention kernel, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console
from rich.table import Table

from onnx_attn.report.lines import escape, find, say, show_seconds, show_table
from onnx_attn.report.reading import kernel_family

Report = dict[str, Any]


def show_landing(report: Report, console: Console, verbose: bool = False) -> None:
    target = f" for SM {report['sm']}" if report["sm"] else ""
    console.print(f"[bold]{escape(report['model'])}[/] by {escape(report['compiler'])}{target}{_shapes(report)}")
    for name, each in (("", report), ("baseline: ", report["baseline"] or {"built": True})):
        if not each["built"]:
            error = each["errors"][0] if each["errors"] else "the compiler gave no reason"
            find(console, f"[bold red]{name}does not build[/]", error)
    show_table(_figures(report), console)
    if report["built"]:
        _show_kernels(report, console, verbose)
        for error in report["errors"]:
            find(console, "[yellow]the compiler says[/]", error)
    _show_missing(report, console, verbose)
    _show_warnings(report, console)
    if verbose:
        show_seconds(report["seconds"], console)


def _shapes(report: Report) -> str:
    if not report["shapes"]:
        return ""
    texts = []
    for name, every in report["shapes"].items():
        distinct = list(dict.fromkeys("×".join(map(str, shape)) for shape in every))
        texts.append(f"{escape(name)} {' … '.join(distinct)}")
    return f", {', '.join(texts)}"


_ROWS = (
    ("sites on attention kernels", lambda report: f"{report['landed']} of {report['sites']}", "landed", 1),
    ("kernels", lambda report: _text(report["kernels"], "d"), "kernels", -1),
    ("MB moved a run", lambda report: _text(_megabytes(report), ".4g"), "moved_bytes", -1),
)
"""Figure, how it is written, its key, and whether more is better."""


def _figures(report: Report) -> Table:
    before = report["baseline"]
    table = Table(box=None, pad_edge=False, show_header=before is not None)
    for column in ("", *(("before", "after", "change") if before else ("",))):
        table.add_column(column, justify="left" if not column else "right")
    for name, text, key, better in _ROWS:
        cells = (
            [text(before), text(report), _change(key, before[key], report[key], better)] if before else [text(report)]
        )
        table.add_row(name, *cells)
    return table


def _megabytes(report: Report) -> float | None:
    return None if report["moved_bytes"] is None else report["moved_bytes"] / 1e6


def _text(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _change(key: str, before: int | None, after: int | None, better: int) -> str:
    if before is None or after is None or before == after:
        return ""
    colour = "green" if (after - before) * better > 0 else "red"
    figure = f"{(after - before) / 1e6:+.3g}" if key == "moved_bytes" else f"{after - before:+d}"
    share = (after - before) / before if before else 0.0
    return f"[{colour}]{figure}{f' ({share:+.0%})' if abs(share) >= 0.005 else ''}[/]"


def _show_kernels(report: Report, console: Console, verbose: bool) -> None:
    """Equal kernels on one line: a model has layers, and layers are alike. Or each site with its own."""
    if verbose:
        for site in report["per_site"]:
            if site["landed"]:
                console.print(f"[green]landed[/] {escape(site['site'])}")
                say(console, "", escape(f"{site['kernel']} {_operands(report, site['kernel'])}"))
        return
    counts = Counter(
        (kernel_family(site["kernel"]), _operands(report, site["kernel"]))
        for site in report["per_site"]
        if site["landed"]
    )
    for (family, operands), count in counts.items():
        console.print(f"[green]{count} × {escape(family)}[/] {escape(operands)}")


def _show_warnings(report: Report, console: Console) -> None:
    for site in report["per_site"]:
        if site["warning"]:
            find(console, f"[bold red]wrong[/] {escape(site['site'])}", site["warning"])
    if report["other_attention_kernels"]:
        console.print(
            f"[yellow]{report['other_attention_kernels']} more attention kernels[/] compute what is not read as a site"
        )


def _operands(report: Report, name: str) -> str:
    kernel = next(kernel for kernel in report["layers"] if kernel["name"] == name)
    return ", ".join(f"{'×'.join(map(str, tensor['shape']))} {tensor['type']}" for tensor in kernel["inputs"])


def _show_missing(report: Report, console: Console, verbose: bool) -> None:
    groups: dict[tuple[str | None, ...], list[Report]] = {}
    for site in report["per_site"]:
        if not site["landed"]:
            own = site["site"] if verbose else None
            groups.setdefault((_plain(site), site["remedy"], own), []).append(site)
    for first, *others in groups.values():
        more = f" and {len(others)} more" if others else ""
        reason = first["reason"] if verbose else _plain(first)
        find(console, f"[yellow]not landed[/] {escape(first['site'])}{more}", reason, first["remedy"])


def _plain(site: Report) -> str:
    """The reason without the number of the kernel, which differs from site to site."""
    reason: str = site["reason"]
    return reason.replace(site["kernel"], kernel_family(site["kernel"])) if site["kernel"] else reason
