"""Why a site is on no attention kernel: what the target's table knows, and what the compiler said."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from onnx_attn.engine.kernels import Engine
from onnx_attn.engine.landing import Landing
from onnx_attn.engine.names import as_written
from onnx_attn.errors import printable
from onnx_attn.landing import Landed
from onnx_attn.site import Candidate, Verdict, Written, engine_name
from onnx_attn.targets.editions import Target, parse_target
from onnx_attn.targets.lookup import obstacles
from onnx_attn.targets.reading import facts_of, standing_form
from onnx_attn.targets.rows import Row


def why_not(landing: Landing, found: Landed) -> tuple[str | None, str | None]:
    """Reason and remedy of a site that has not landed; (None, None) for one that has.

    The compiler's own words, and before them everything in the table that keeps such a site off the attention kernels: to
    mend one of several is not enough, and where one cannot be mended there is no remedy. What was not built for another
    cause is told by that alone.
    """
    if landing.landed:
        return None, None
    engine, site = found.engine, landing.candidate
    if engine.unread:
        return engine.unread, None
    words = _compilers_words(landing, engine) if engine.built else f"does not build: {headline(engine.errors)}"
    rows = [row for row in _rows(found, site) if engine.built != (row.outcome == "rejected")]
    if rows:
        remedies = [row.remedy for row in rows]
        remedy = None if None in remedies else "; and ".join(dict.fromkeys(filter(None, remedies)))
        return f"{'; '.join(dict.fromkeys(row.reason for row in rows))} ({words})", remedy
    if isinstance(site, Verdict) and engine.built and not site.scope:
        return f"{site.reason} ({words})", site.remedy
    return words, None


def warning(landing: Landing, found: Landed) -> str | None:
    """What the table knows to be computed wrongly, however well it landed."""
    wrong = [row for row in _rows(found, landing.candidate) if row.outcome == "wrong"]
    return f"computes something else: {wrong[0].reason}" if wrong and found.engine.built else None


def _rows(found: Landed, site: Candidate) -> list[Row]:
    """What the target's table has against the site as it stands, the severest first."""
    facts = replace(facts_of(found.view, site), sm=found.engine.sm or None)
    return obstacles(_target(found.engine), standing_form(found.view, site), facts)


def _target(engine: Engine) -> Target:
    """The target that the compiler stands for: TensorRT for RTX by itself, else every version."""
    return parse_target("tensorrt", "rtx" if engine.compiler.startswith("tensorrt_rtx") else None)


_PLACES = ("ModelImporter.cpp", "[", "While parsing", "Could not parse")
"""How the errors begin that only say where something happened."""
_CHECK = re.compile(r"CHECK\(.*?\) failed\. ")


def headline(errors: Sequence[str]) -> str:
    """The compiler's first error that says what is wrong, without the place in its own source: what a line has room for."""
    telling = [error for error in errors if not error.startswith(_PLACES)] or list(errors)
    if not telling:
        return "the compiler gave no reason"
    text = printable(telling[0])
    return _CHECK.split(text)[-1].partition(". (See ")[0]


def _compilers_words(landing: Landing, engine: Engine) -> str:
    site = landing.candidate
    name = engine_name(site)
    if landing.kernel is None:
        return "no kernel carries its name: it was merged with another, folded into a constant, or left out"
    where = f"it runs on {landing.kernel.name}"
    if (
        (isinstance(site, Written) and site.form == "function")
        or not engine.pattern
        or (isinstance(site, Verdict) and site.scope)
    ):
        return where
    if not engine.pattern.isdisjoint(as_written(name)):
        return f"the compiler saw attention there and has no kernel for it; {where}"
    return f"the compiler saw no attention there; {where}"
