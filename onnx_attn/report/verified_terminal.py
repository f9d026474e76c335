"""The report of `verify` for people: output by output, then the certificates, then the verdict."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from onnx_attn.report.lines import count, escape, find, say, show_table, span, table_of

Report = dict[str, Any]


def show_verification(report: Report, console: Console, verbose: bool = False) -> None:
    """Of outputs that are the same, `MOST` are shown unless all are asked for."""
    outputs = report["outputs"]
    shown = outputs if verbose else [each for place, each in enumerate(outputs) if place < MOST or not each["ok"]]
    table = table_of("output", "max_abs", "max_rel", "NaN and ±inf", "")
    for output in shown:
        table.add_row(
            escape(output["name"]),
            f"{output['max_abs']:.1e}",
            f"{output['max_rel']:.1e}",
            "agree" if output["agrees"] else "[bold red]differ[/]",
            "" if output["ok"] else "[bold red]differs[/]",
        )
    show_table(table, console)
    if len(shown) < len(outputs):
        say(console, "", f"[dim]and {count(len(outputs) - len(shown), 'output')} more: --verbose shows them[/]")
    for shapes in report["shapes"]:
        inputs = (f"{escape(name)} {'×'.join(map(str, shape))}" for name, shape in shapes.items())
        say(console, "inputs", ", ".join(inputs))
    _show_certificates(report["certificates"] or [], console, verbose)
    verdict = "[green]the same[/]" if report["ok"] else "[bold red]different[/]"
    bound = f"max_rel {report['max_rel']:.1e} in {count(report['cases'], 'case')} (allowed {report['rtol']:.0e})"
    say(console, "verdict", f"{verdict}: {bound}")


MOST = 20
"""Outputs: a decoder has two for each of its layers."""


def _show_certificates(found: list[Report], console: Console, verbose: bool) -> None:
    """Those that hold on one line, with the worst of them, or each by itself; the others always are."""
    held = [each for each in found if each["ok"]]
    for each in found:
        if verbose or not each["ok"]:
            _show_rechecked(each, console)
    if held and not verbose:
        worst = max(held, key=lambda each: each["max_rel"] - each["bound"])
        console.print(f"{span([each['site'] for each in held])} [green]{'hold' if len(held) > 1 else 'holds'}[/]")
        cases = count(sum(each["cases"] for each in held), "case")
        say(console, "", f"max_rel {worst['max_rel']:.1e} at most in {cases} (allowed {worst['bound']:.0e})")


def _show_rechecked(found: Report, console: Console) -> None:
    name = f"{found['site']} {escape(found['softmax'])}"
    if found["ok"] is None:
        find(console, f"[yellow]{name} not checked by itself[/]", found["reason"])
        return
    verdict = "[green]holds[/]" if found["ok"] else "[bold red]does not hold[/]"
    text = f"max_rel {found['max_rel']:.1e} in {count(found['cases'], 'case')} (allowed {found['bound']:.0e})"
    truth = found["error_against_float64"]
    if truth:
        text += f"; off float64 by {truth['after']['max_rel']:.1e}, before by {truth['before']['max_rel']:.1e}"
    console.print(f"{name} {verdict}")
    say(console, "", text)
