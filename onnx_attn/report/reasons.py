"""Why a site is on no attention kernel: what the target's table knows, and what the compiler said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnx_attn.engine.kernels import Engine
from onnx_attn.engine.landing import Landing
from onnx_attn.errors import printable
from onnx_attn.landing import Landed
from onnx_attn.site import Candidate, Verdict, Written
from onnx_attn.targets.editions import Target, parse_target
from onnx_attn.targets.lookup import explain
from onnx_attn.targets.reading import facts_of, standing_form
from onnx_attn.targets.rows import Row


def why_not(landing: Landing, found: Landed) -> tuple[str | None, str | None]:
    """Reason and remedy of a site that has not landed; (None, None) for one that has.

    The table first, then what the recogniser says of a site that it does not read, and always the compiler's own words.
    """
    if landing.landed:
        return None, None
    engine, site = found.engine, landing.candidate
    words = _compilers_words(landing, engine) if engine.built else f"does not build: {headline(engine.errors)}"
    row = _row(found, site)
    if row is not None and (engine.built or row.outcome == "rejected"):
        return f"{row.reason} ({words})", row.remedy
    if isinstance(site, Verdict) and engine.built:
        return f"{site.reason} ({words})", site.remedy
    return words, None


def _row(found: Landed, site: Candidate) -> Row | None:
    """What the target's table says of the site as it stands."""
    facts = replace(facts_of(found.view, site), sm=found.engine.sm or None)
    return explain(_target(found.engine), standing_form(found.view, site), facts)


def _target(engine: Engine) -> Target:
    """The target that the compiler stands for: TensorRT for RTX by itself, else every version."""
    return parse_target("tensorrt", "rtx" if engine.compiler.startswith("tensorrt_rtx") else None)


def headline(errors: Sequence[str]) -> str:
    """The compiler's first error without the place in its own source: what a line of a table has room for."""
    if not errors:
        return "the compiler gave no reason"
    text = printable(errors[0]).rpartition(" failed. ")[2]
    return text.partition(". (See ")[0]


def _compilers_words(landing: Landing, engine: Engine) -> str:
    site = landing.candidate
    name = (site.anchor if isinstance(site, Verdict) else "") or site.name
    if landing.kernel is None:
        return "no kernel carries its name: it was folded away"
    where = f"it runs on {landing.kernel.name}"
    if isinstance(site, Written) or not engine.pattern or (isinstance(site, Verdict) and site.scope):
        return where
    if name in engine.pattern:
        return f"the compiler saw attention there and has no kernel for it; {where}"
    return f"the compiler saw no attention there; {where}"
