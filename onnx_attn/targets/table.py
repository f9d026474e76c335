"""Which forms each target takes: one row a fact, with its evidence. Rules are data; the code only looks them up."""

from __future__ import annotations

import re
from dataclasses import dataclass

from onnx_attn.errors import UsageError
from onnx_attn.site import Verdict

FORMS = ("function", "primitives")


@dataclass(frozen=True)
class Row:
    """A target (and for TensorRT the versions from `since` on) takes `form` for models of at least `lowest_opset`."""

    target: str
    since: tuple[int, int]
    form: str
    lowest_opset: int
    reason: str
    evidence: str


_CASTLIKE = "the function's body needs CastLike (opset 15)"
_SPLIT = "Split with its sizes as an input is of opset 13"

TABLE = (
    # Preferred first: `auto` takes the first row that fits.
    Row("tensorrt", (9, 0), "function", 15, _CASTLIKE, "measured: lands like primitives, tensorrt_rtx 1.7.1"),
    Row("tensorrt", (8, 6), "primitives", 13, _SPLIT, "measured: lands, tensorrt_rtx 1.7.1"),
    Row("onnx", (0, 0), "function", 15, _CASTLIKE, "measured: onnx.checker 1.23.2 accepts it"),
    Row("onnx", (0, 0), "primitives", 13, _SPLIT, "operators of the standard"),
    Row("onnxruntime", (0, 0), "function", 15, _CASTLIKE, "measured: ONNX Runtime 1.31.1 inlines it"),
    Row("onnxruntime", (0, 0), "primitives", 13, _SPLIT, "measured: ONNX Runtime 1.31.1"),
)

_RTX = (99, 0)
_DEFAULT_TENSORRT = "10.0"
_OLDEST, _UNKNOWN = (8, 6), (12, 0)


@dataclass(frozen=True)
class Target:
    """The runtime that will read the model, and its version (`rtx`: TensorRT for RTX)."""

    name: str
    version: str | None
    key: tuple[int, int]


def parse_target(name: str, version: str | None = None) -> Target:
    """Raises UsageError for a target or a version that the table does not know."""
    known = sorted({row.target for row in TABLE})
    if name not in known:
        raise UsageError(f"unknown target '{name}'; choose one of {', '.join(known)}")
    if name != "tensorrt":
        if version is not None:
            raise UsageError(f"--target-version is for tensorrt; target '{name}' has no versions here")
        return Target(name, None, (0, 0))
    version = _DEFAULT_TENSORRT if version is None else version
    if version == "rtx":
        return Target(name, version, _RTX)
    match = re.fullmatch(r"([0-9]{1,2})(?:\.([0-9]{1,3}))?(?:\.[0-9.]+)?", version)
    key = (int(match[1]), int(match[2] or 0)) if match else (0, 0)
    if not _OLDEST <= key < _UNKNOWN:
        raise UsageError(f"unknown TensorRT version '{version}'; give one from 8.6 to 11, such as 10.13, or rtx")
    return Target(name, version, key)


def check_form(target: Target, form: str) -> None:
    """Raise UsageError for a form that this target never takes."""
    if form != "auto" and form not in FORMS:
        raise UsageError(f"form '{form}' is not available; choose auto, {' or '.join(FORMS)}")
    if not _rows(target, form):
        version = f" {target.version}" if target.version else ""
        raise UsageError(f"{target.name}{version} does not take the form '{form}'; use --form auto")


def form_for(target: Target, form: str, opset: int) -> str | Verdict:
    """The form to write for a model of this opset, or a verdict `opset-too-low`."""
    rows = _rows(target, form)
    for row in rows:
        if opset >= row.lowest_opset:
            return row.form
    row = rows[-1]
    return Verdict("", "opset-too-low", "", f"opset {opset}, form {row.form} needs {row.lowest_opset}: {row.reason}")


def _rows(target: Target, form: str) -> list[Row]:
    """What the table says about a target, the preferred form first."""
    return [
        row for row in TABLE if row.target == target.name and row.since <= target.key and form in ("auto", row.form)
    ]
