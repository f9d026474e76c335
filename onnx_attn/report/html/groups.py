"""Candidates that are alike, as one entry of the page: a model has layers, and layers are alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from onnx_attn.report.html.svg import nodes_svg
from onnx_attn.report.html.window import window_picture
from onnx_attn.report.reading import heads_text, kernel_family, masks_text, projection_text, rotary_text, window_text

Report = dict[str, Any]
Group = dict[str, Any]


def site_groups(candidates: Sequence[Report], landed: Report | None) -> list[Group]:
    """The candidates of `inspect` or `fuse`. landed: the report of `land` on what was written, where there is one."""
    ends = {each["site"]: each for each in landed["per_site"]} if landed is not None else {}
    groups: dict[tuple[Any, ...], list[Report]] = {}
    for candidate in candidates:
        groups.setdefault(_alike(candidate, _end(candidate, ends)), []).append(candidate)
    return [_group(members, [_end(member, ends) for member in members]) for members in groups.values()]


def _end(candidate: Report, ends: dict[str, Report]) -> Report | None:
    """Where a candidate ended; beside a softmax that stays for other readers, what computes it once more."""
    name = candidate["softmax"]
    return ends.get(f"{name}/recomputed") or ends.get(name)


def _alike(candidate: Report, end: Report | None) -> tuple[Any, ...]:
    facts = tuple(text for _, text in _facts(candidate))
    left = (candidate["status"], candidate["code"], candidate["remedy"], _unnumbered(candidate["reason"]))
    expected = (candidate["landing"] or {}).get("reason")
    reached = (end["landed"], kernel_family(end["kernel"] or "")) if end is not None else None
    return (*left, facts, expected, reached, id(candidate.get("drawing")))


def _unnumbered(text: str | None) -> str:
    """A reason without names in quotes, which differ from layer to layer."""
    return re.sub(r"'[^']*'|\d+", "…", text or "")


def _facts(candidate: Report) -> list[tuple[str, str]]:
    """How the site was read, and how it is written."""
    if candidate["heads"] is None and candidate["scale"] is None:
        return []
    size = str(candidate["head_dim"])
    if candidate["value_dim"] != candidate["head_dim"]:
        size += f", values {candidate['value_dim']}"
    facts = [
        ("heads", heads_text(candidate)),
        ("head size", size),
        ("scale", f"{candidate['scale']:.6g}"),
        ("masks", masks_text(candidate)),
        ("window", window_text(candidate["window"])),
        ("rotary", rotary_text(candidate["rotary"])),
        ("projection", projection_text(candidate)),
        ("form", candidate.get("form") or ""),
        ("changes", ", ".join(candidate["changes"])),
        ("exact algebra", ", ".join(candidate.get("algebra", ()))),
        ("folded to numbers", ", ".join("×".join(map(str, shape)) for shape in candidate.get("folded", ()))),
    ]
    return [(name, text) for name, text in facts if text]


def _group(members: list[Report], ends: list[Report | None]) -> Group:
    first, drawing = members[0], members[0].get("drawing") or {}
    certificates = [m["certificate"] for m in members if m.get("certificate")]
    reached = [end for end in ends if end is not None]
    blocked = first["node"] if first["status"] == "refused" else None
    ids = [member["id"] for member in members]
    return {
        "anchor": ids[0],
        "title": ids[0] if len(ids) == 1 else f"{ids[0]} … {ids[-1]}",
        "count": len(ids),
        "status": _status(first),
        "softmax": first["softmax"],
        "code": first["code"],
        "node": first["node"],
        "reason": first["reason"],
        "remedy": first["remedy"],
        "facts": _facts(first),
        "masks": _masks(first, drawing),
        "window": window_picture(first["window"]),
        "notes": [*first.get("notes", ()), *_left(first)],
        "before": _svg(drawing.get("before"), blocked),
        "after": _svg(drawing.get("after"), None),
        "certificate": _certificate(certificates),
        "expected": first["landing"] if not reached else None,
        "landed": sum(end["landed"] for end in reached) if reached else None,
        "kernel": kernel_family(reached[0]["kernel"] or "") if reached else None,
        "why_not": next((end for end in reached if not end["landed"]), None),
        "members": [_member(*pair) for pair in zip(members, ends, strict=True)],
        "tags": _tags(first, reached),
    }


def _tags(candidate: Report, reached: list[Report]) -> list[str]:
    """What the filter's buttons ask for."""
    tags = [_status(candidate)]
    if not reached and candidate["landing"] and not candidate["landing"]["expected"]:
        tags.append("no kernel expected")
    if reached:
        tags.append("landed" if all(end["landed"] for end in reached) else "not landed")
    return tags


def landed_groups(report: Report) -> list[Group]:
    """The sites of a report of `land`."""
    groups: dict[tuple[Any, ...], list[Report]] = {}
    for end in report["per_site"]:
        key = (end["landed"], kernel_family(end["kernel"] or ""), end["remedy"], _unnumbered(end["reason"]))
        groups.setdefault((*key, id(end.get("drawing"))), []).append(end)
    numbers = {id(end): f"site-{number}" for number, end in enumerate(report["per_site"])}
    return [_landed_group(members, [numbers[id(end)] for end in members]) for members in groups.values()]


def _landed_group(ends: list[Report], ids: list[str]) -> Group:
    first, drawing = ends[0], ends[0].get("drawing") or {}
    return {
        **dict.fromkeys(("code", "node", "reason", "remedy", "window", "after", "certificate", "expected")),
        "anchor": ids[0],
        "title": ids[0] if len(ids) == 1 else f"{ids[0]} … {ids[-1]}",
        "count": len(ids),
        "status": "landed" if first["landed"] else "not landed",
        "softmax": first["site"],
        "facts": [],
        "masks": [],
        "notes": [end["warning"] for end in ends if end["warning"]],
        "before": _svg(drawing.get("before"), None),
        "landed": sum(end["landed"] for end in ends),
        "kernel": kernel_family(first["kernel"] or ""),
        "why_not": first if not first["landed"] else None,
        "members": [
            {"id": name, "softmax": end["site"], "node": None, "max_rel": None, "like": None}
            | {"kernel": end["kernel"], "landed": end["landed"]}
            for name, end in zip(ids, ends, strict=True)
        ],
        "tags": ["landed" if first["landed"] else "not landed"],
    }


def _status(candidate: Report) -> str:
    if candidate["status"] == "site":
        return "fused" if candidate.get("form") and "certificate" in candidate else "can be fused"
    return str(candidate["status"]).replace("_", " ")


def _left(candidate: Report) -> list[str]:
    """What was not done, each with its reason."""
    left = {**candidate.get("algebra_left", {}), **candidate.get("changes_left", {})}
    found = [f"without {name}: {reason}" for name, reason in left.items()]
    unpacked = candidate.get("unpacked_because")
    return found + ([f"not packed anew: {unpacked}"] if unpacked else [])


def _masks(candidate: Report, drawing: Report) -> list[Report]:
    pairs = zip(candidate["masks"], drawing.get("masks", ()), strict=False)
    return [{**mask, "tables": tables} for mask, tables in pairs if tables]


def _svg(drawing: Report | None, marked: str | None) -> Report | None:
    """The drawing itself, or how much there would be to draw."""
    if drawing is None:
        return None
    count = len(drawing["nodes"]) - sum(node["kind"] in ("input", "output") for node in drawing["nodes"])
    return {"nodes": count, "svg": Markup(nodes_svg(drawing, marked)) if drawing["drawn"] else None}


def _certificate(certificates: list[Report]) -> Report | None:
    """The worst of a group, and the inputs of the first."""
    if not certificates:
        return None
    truths = [each["error_against_float64"] for each in certificates if each["error_against_float64"]]
    first = certificates[0]
    return {
        "ok": all(each["ok"] for each in certificates),
        "cases": sum(each["cases"] for each in certificates),
        "max_rel": max(each["max_rel"] for each in certificates),
        "float64": max(each["float64"]["max_rel"] for each in certificates),
        "bound": max(each["bound"] for each in certificates),
        "truth": {when: max(each[when]["max_rel"] for each in truths) for when in ("before", "after")}
        if truths
        else None,
        "failure": next((each["failure"] for each in certificates if each["failure"]), None),
        "reduced": first["reduced"],
        "sizes": first["sizes"],
        "inputs": first["inputs"],
    }


def _member(member: Report, end: Report | None) -> Report:
    certificate = member.get("certificate")
    return {
        "id": member["id"],
        "softmax": member["softmax"],
        "node": member["node"],
        "max_rel": certificate["max_rel"] if certificate else None,
        "like": certificate["like"] if certificate else None,
        "kernel": end["kernel"] if end is not None else None,
        "landed": end["landed"] if end is not None else None,
    }
