"""What stands at the top of the page: the verdict in a few sentences, totals before and after, outlines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from onnx_attn.report.html.strip import Piece, stretches
from onnx_attn.report.lines import count
from onnx_attn.report.removed import exposed_line, megabytes

Report = dict[str, Any]


def summary(report: Report, compiled: Report | None) -> list[dict[str, str]]:
    """Sentences, each with how good the news is: good, bad, or neither."""
    found = [*_found(report, compiled is not None)] if "candidates" in report else []
    if compiled is not None:
        found += _compiled(compiled)
    return [{"mood": mood, "text": text} for mood, text in found]


def _found(report: Report, compiled: bool) -> list[tuple[str, str]]:
    sites, refused = report["sites"], report["refused"]
    if not sites:
        return [("", "There is no attention in this model.")]
    if "fused" not in report:
        found = [
            ("good" if not refused else "", f"{sites - refused} of {count(sites, 'attention site')} can be fused.")
        ]
    else:
        found = [("good" if not refused else "", f"{report['fused']} of {count(sites, 'attention site')} fused.")]
    if refused:
        found.append(("bad", f"{refused} left alone, each for the reason below."))
    unlanded = [each["landing"] for each in report["candidates"] if each["landing"] and not each["landing"]["expected"]]
    if unlanded and not compiled:
        found.append(("bad", f"{count(len(unlanded), 'site')} will reach no attention kernel: {_first(unlanded)}"))
    if "fused" not in report:
        return found
    proof = report["proof"]
    if proof is None:
        found.append(("bad", f"The whole model was not run: {report['proof_left']}."))
    elif not proof["cases"]:
        found.append(("", "Nothing was changed."))
    else:
        told = f"Proved: run whole on {count(proof['cases'], 'set')} of inputs, outputs differ by max_rel"
        found.append(("good", f"{told} {proof['max_rel']:.1e} (allowed {proof['rtol']:.0e})."))
    return found


def _compiled(compiled: Report) -> list[tuple[str, str]]:
    by = f"by {compiled['compiler']}" + (f" for SM {compiled['sm']}" if compiled["sm"] else "")
    if not compiled["built"]:
        return [("bad", f"Does not build {by}: {next(iter(compiled['errors']), 'the compiler gave no reason')}")]
    told = f"{compiled['landed']} of {count(compiled['sites'], 'site')} on attention kernels, compiled {by}."
    missing = [each for each in compiled["per_site"] if not each["landed"]]
    return [("bad", f"{told} Of others: {_first(missing)}")] if missing else [("good", told)]


def _first(left: list[Report]) -> str:
    """The reason of the first, and the way out."""
    remedy = left[0]["remedy"]
    return f"{left[0]['reason']}" + (f" → {remedy}" if remedy else "")


def bars(report: Report, compiled: Report | None) -> list[dict[str, Any]]:
    """Totals before and after, each with its share of the larger of both."""
    found = []
    stats = report.get("stats")
    if stats:
        before, after = stats["before"], stats["after"]
        sites = [each["operations_exposed"] for each in (before, after)]
        found += [
            _bar("nodes", before["nodes"], after["nodes"]),
            _bar("of them movement", before["by_role"]["movement"], after["by_role"]["movement"]),
            _bar("of them attention", before["by_role"]["attention"], after["by_role"]["attention"]),
            _bar("operations an attention", max(sites[0]), max(sites[1]), texts=[exposed_line(each) for each in sites])
            if all(sites)
            else None,
            _bar("parameters", before["parameters"], after["parameters"]),
            _bar("bytes of scores written out", before["scores_written"], after["scores_written"], megabytes),
        ]
    if compiled is not None:
        base = compiled["baseline"] or compiled
        found += [
            _bar("sites on attention kernels", base["landed"], compiled["landed"]),
            _bar("kernels", base["kernels"], compiled["kernels"]),
            _bar("bytes moved a run", base["moved_bytes"], compiled["moved_bytes"], megabytes),
        ]
    return [bar for bar in found if bar is not None]


def _bar(
    name: str,
    before: int | None,
    after: int | None,
    text: Callable[[int], str] = "{:,}".format,
    texts: list[str] | None = None,
) -> dict[str, Any] | None:
    if before is None or after is None or not max(before, after):
        return None
    shares = [round(100 * each / max(before, after), 2) for each in (before, after)]
    texts = texts or [text(before), text(after)]
    return {"name": name, "shares": shares, "texts": texts, "changed": texts[0] != texts[1]}


def outline_strip(report: Report, groups: list[Report]) -> list[dict[str, Any]]:
    """The model's nodes from first to last, by role, before and after on one scale; attention leads to its group."""
    stats = report.get("stats")
    runs = {when: stats[when].get("outline") for when in ("before", "after")} if stats else {}
    whole = max((sum(run["count"] for run in each) for each in runs.values() if each), default=0)
    anchors = {member["softmax"]: group["anchor"] for group in groups for member in group["members"]}
    names = {member["softmax"]: member["id"] for group in groups for member in group["members"]}
    return [
        {
            "name": when,
            "count": sum(run["count"] for run in each),
            "stretches": stretches([_piece(run, anchors, names) for run in each], whole),
        }
        for when, each in runs.items()
        if each and (when == "before" or each != runs["before"])
    ]


def _piece(run: Report, anchors: dict[str, str], names: dict[str, str]) -> Piece:
    what = f"{count(run['count'], 'node')} of {run['role']}"
    site = names.get(run["site"] or "")
    return Piece(run["count"], run["role"], f"{site}: {what}" if site else what, anchors.get(run["site"] or "", ""))


def engine_strips(engines: list[Report]) -> list[dict[str, Any]]:
    """The kernels of engines in order, as wide as the bytes that they move, on one scale."""
    rows = [(engine, _kernels(engine)) for engine in engines]
    whole = max((sum(piece.size for piece in pieces) for _, pieces in rows), default=0)
    return [
        {"name": PurePath(engine["model"]).name, "count": len(pieces), "stretches": stretches(pieces, whole)}
        for engine, pieces in rows
    ]


def _kernels(compiled: Report) -> list[Piece]:
    attention = {each["kernel"] for each in compiled["per_site"] if each["landed"]}
    return [
        Piece(
            max(kernel["bytes"] or 0, 1),
            "attention" if kernel["name"] in attention else "other",
            f"{kernel['name']}: {(kernel['bytes'] or 0) / 1e6:.4g} MB; {', '.join(kernel['nodes'][:6])}",
        )
        for kernel in compiled["layers"]
    ]
