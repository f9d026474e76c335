"""Ask the table: which form a target takes of a site, whether the site will land, and why not."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from onnx_attn.errors import UsageError
from onnx_attn.targets.editions import Target
from onnx_attn.targets.facts import Facts
from onnx_attn.targets.rows import Outcome, Row
from onnx_attn.targets.table import TABLE

WRITTEN = ("function", "primitives")
"""The forms that `fuse` chooses from by itself, the preferred one first."""
ON_REQUEST = ("attention", "contrib")
"""The forms that it writes where they are asked for."""

SEVERITY: tuple[Outcome, ...] = ("rejected", "wrong", "runs")
"""What keeps a site off an attention kernel. What is not built cannot compute wrongly either."""


@dataclass(frozen=True)
class Landing:
    """Whether a site is expected on an attention kernel, and the row that says why not."""

    expected: bool
    row: Row | None = None


def rows_for(target: Target, form: str, facts: Facts) -> tuple[Row, ...]:
    """What the table says of a site, of every edition that the target stands for."""
    return _matching(target.editions, form, facts)


def obstacles(target: Target, form: str, facts: Facts) -> list[Row]:
    """The rows that say why a site will not reach an attention kernel, or not rightly, the severest first."""
    rows = rows_for(target, form, facts)
    return [row for outcome in SEVERITY for row in rows if row.outcome == outcome]


def explain(target: Target, form: str, facts: Facts) -> Row | None:
    """The severest of them; None if none is known."""
    return next(iter(obstacles(target, form, facts)), None)


def landing(target: Target, form: str, facts: Facts) -> Landing | None:
    """Whether a site will reach an attention kernel; None where the table does not know."""
    row = explain(target, form, facts)
    if row is not None:
        return Landing(False, row)
    known = any(found.outcome in ("lands", "costs") for found in rows_for(target, form, facts))
    return Landing(True) if known else None


def lands_best(target: Target, form: str, facts: Facts) -> bool:
    """Whether a site lands with every edition of the target, and with no more kernels than the primitives need."""
    rows = [_matching((edition,), form, facts) for edition in target.editions]
    return all(found and all(row.outcome == "lands" for row in found) for found in rows)


def check_form(target: Target, form: str) -> None:
    """Raise UsageError for a form that this target never takes."""
    if form == "auto":
        return
    if form not in (*WRITTEN, *ON_REQUEST):
        raise UsageError(
            f"form '{form}' is not available; choose auto, {', '.join(WRITTEN)} or {' or '.join(ON_REQUEST)}"
        )
    foreign = form == "contrib" and target.name != "onnxruntime"
    if foreign or any(
        not row.when and row.outcome == "rejected" and form in row.forms for row in _rows_of(target.editions)
    ):
        version = f" {target.version}" if target.version else ""
        raise UsageError(f"{target.name}{version} does not take the form '{form}'; use --form auto")


def choose_form(target: Target, form: str, facts: Facts) -> str | Row:
    """The form to write a site in: the asked one, or the first that every edition takes; else the row that forbids it."""
    forbidding = None
    for wanted in WRITTEN if form == "auto" else (form,):
        forbidding = next((row for row in rows_for(target, wanted, facts) if _forbids(wanted, row)), None)
        if forbidding is None:
            return wanted
    assert forbidding is not None
    return forbidding


def _forbids(form: str, row: Row) -> bool:
    """Rows without a code forbid nothing by themselves: such a model fails in any form. But who asks for a form that fails
    where others do not is told so."""
    if row.outcome not in ("rejected", "wrong", "unwritable"):
        return False
    return row.code is not None or not row.when or form in ON_REQUEST


_CODES = {"dtype": "type-not-supported", "value_dtype": "type-not-supported", "head_dim": "head-size"}
_CODES |= {"value_head": "value-head-size", "mask": "mask-shape", "mask_type": "type-not-supported"}
_CODES |= {"mask_queries": "mask-shape", "mask_keys": "mask-shape", "opset": "opset-too-low"}


def code_of(row: Row) -> str:
    """The code under which a row refuses a site: its own, or that of the first fact it speaks of."""
    return row.code or next((_CODES[fact] for fact in row.when if fact in _CODES), "form-not-taken")


@lru_cache(maxsize=1024)
def _matching(editions: tuple[str, ...], form: str, facts: Facts) -> tuple[Row, ...]:
    """Remembered: a model has layers, and layers are alike."""
    return tuple(row for row in _rows_of(editions) if row.matches(form, facts))


@lru_cache
def _rows_of(editions: tuple[str, ...]) -> tuple[Row, ...]:
    return tuple(row for row in TABLE if set(editions) & {*row.editions, *row.presumed})
