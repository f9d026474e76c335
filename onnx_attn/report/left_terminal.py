"""What a report has to say against, for people: what was left alone or done otherwise than asked, and why."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rich.console import Console

from onnx_attn.report.lines import escape, find, say, span

Report = dict[str, Any]


def show_left(report: Report, console: Console, verbose: bool) -> None:
    _show_expectations(report, console)
    _show_refused(report, console, verbose)
    _show_others(report, console, verbose)
    if not verbose:  # Else it stands with each site.
        _show_changes_left(report, console)
    _show_spelled(report["spelled"], console)


def _show_expectations(report: Report, console: Console) -> None:
    """Sites that the table of targets expects on no attention kernel, by reason."""
    groups: dict[tuple[str, str | None], list[str]] = {}
    for site in report["candidates"]:
        if site["landing"] and not site["landing"]["expected"]:
            groups.setdefault((site["landing"]["reason"], site["landing"]["remedy"]), []).append(site["id"])
    for (reason, remedy), names in groups.items():
        find(console, f"[yellow]{span(names)} will not reach an attention kernel[/]", reason, remedy)


def _show_refused(report: Report, console: Console, verbose: bool) -> None:
    """Refusals of one code together, with the first node that blocks, or each by itself."""
    groups: dict[tuple[str | None, ...], list[Report]] = {}
    for candidate in report["candidates"]:
        if candidate["status"] == "refused":
            own = candidate["id"] if verbose else None
            groups.setdefault((candidate["code"], candidate["remedy"], own), []).append(candidate)
    for members in groups.values():
        first = members[0]
        more = f" and {len(members) - 1} more" if len(members) > 1 else ""
        name = f" {escape(first['softmax'])}" if verbose else ""
        head = f"[yellow]{first['id']}{more} refused[/]{name}: {first['code']} at {escape(first['node'])}"
        find(console, head, first["reason"], first["remedy"])
    known = [member["landing"] for members in groups.values() for member in members]
    if None in known or any(landing["expected"] for landing in known):
        console.print("[dim]what is left as it is may land all the same: onnx-attn land tells[/]")


def _show_others(report: Report, console: Console, verbose: bool) -> None:
    """What is no attention, counted, or each with the reason."""
    others = [candidate for candidate in report["candidates"] if candidate["status"] == "not_attention"]
    if verbose:
        for each in others:
            at = f" at {escape(each['node'])}" if each["node"] and each["node"] != each["softmax"] else ""
            find(console, f"{each['id']} {escape(each['softmax'])} not attention: {each['code']}{at}", each["reason"])
    else:
        for code, number in Counter(each["code"] for each in others).items():
            console.print(f"[dim]{number} × not attention: {code}[/]")


def _show_changes_left(report: Report, console: Console) -> None:
    """Sites that were written without a change that was asked for, by change and reason."""
    groups: dict[tuple[str, str], list[str]] = {}
    for site in report["candidates"]:
        for change, reason in site.get("changes_left", {}).items():
            groups.setdefault((change, reason), []).append(site["id"])
    for (change, reason), names in groups.items():
        find(console, f"[yellow]{span(names)} without {change}[/]", reason)


def _show_spelled(spelled: Report | None, console: Console) -> None:
    """What was done with ONNX Runtime's own operators, and which of them stay, for what reason."""
    if spelled is None:
        return
    counts = [f"{number} × {escape(operator)}" for operator, number in spelled["operators"].items()]
    if counts:
        say(console, "spelled", f"{', '.join(counts)} in plain nodes")
    reasons = Counter((left["operator"], left["reason"]) for left in spelled["left"])
    for (operator, reason), number in reasons.items():
        find(console, f"[yellow]{number} × {escape(operator)} left as it is[/]", reason)
