"""Reports of `inspect`, `fuse` and `land` as one page that needs nothing else: no network, no file beside it.

Everything that a model says (names above all) is escaped: text by the templates, drawings by the writer of XML; and the page's
policy lets no script run but its own.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from onnx_attn.errors import printable
from onnx_attn.report.drawn import without_drawings
from onnx_attn.report.html.figures import bars, engine_strips, outline_strip, summary
from onnx_attn.report.html.groups import landed_groups, site_groups
from onnx_attn.report.place import check_place, write_text

Report = dict[str, Any]


def place_of_page(path: str | PathLike[str] | None, *taken: object) -> Path | None:
    """Before any work: a place where the page can be written, and that holds nothing else that would be lost.

    taken: models and other files of the same run, of which those that are paths count.

    Raises OutputError; UsageError for a file that is no page.
    """
    if path is None:
        return None
    check_place(path, [other for other in taken if isinstance(other, str | PathLike)], "page", b"<!doctype html>")
    return Path(path)


def write_page(report: Report, path: Path | None) -> Report:
    """Write the page of a report of `inspect`, `fuse` or `land` if there is a place for it, and give the report back as JSON
    has it.

    Raises OutputError.
    """
    if path is None:
        return report
    write_text(path, page(report), "page")
    return without_drawings(report)


def page(report: Report) -> str:
    """The page of a report with drawings, as text."""
    is_landing = "per_site" in report
    compiled = report if is_landing else report.get("land")
    groups = landed_groups(report) if is_landing else site_groups(report["candidates"], compiled)
    style, script = _part("page.css"), _part("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _template().render(
        report=report,
        groups=groups,
        counts=_counts(groups),
        summary=summary(report, compiled),
        bars=bars(report, compiled),
        outline=[] if is_landing else outline_strip(report, groups),
        engines=engine_strips(_engines(compiled)),
        compiled=compiled,
        style=Markup(style),
        script=Markup(script),
        digest=digest,
        version=_version(),
    )


def _engines(compiled: Report | None) -> list[Report]:
    every = [compiled["baseline"], compiled] if compiled is not None else []
    return [each for each in every if each is not None and each["built"] and each["layers"]]


def _counts(groups: list[Report]) -> dict[str, int]:
    """How many candidates each button of the filter leaves."""
    counts: dict[str, int] = {}
    for group in groups:
        for tag in group["tags"]:
            counts[tag] = counts.get(tag, 0) + group["count"]
    return counts


def _version() -> str:
    from onnx_attn import __version__

    return __version__


def _part(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


@cache
def _template() -> jinja2.Template:
    # What is printed has no control characters; what the page's own code has marked as safe was made so.
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    environment.filters["error"] = lambda value: "–" if value is None else f"{value:.1e}"
    environment.filters["number"] = lambda value: f"{value:,}" if isinstance(value, int) else str(value)
    environment.filters["times"] = lambda sizes: "×".join(map(str, sizes))
    return environment.from_string(_part("page.html.j2"))
