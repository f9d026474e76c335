"""What Python callers pass, checked: shapes, compute capabilities, what is searched for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from onnx_attn.engine.profiles import Profile, as_range
from onnx_attn.errors import UsageError
from onnx_attn.landing import DEFAULT_SM
from onnx_attn.search.search import Asked

Shape: TypeAlias = "Sequence[int]"
Shapes: TypeAlias = "Mapping[str, Shape | Sequence[Shape]]"


def searched_for(search: bool, land: bool, sm: int | None, shapes: Shapes | None, target: str) -> Asked | None:
    """What the compiler is asked before sites are written. land: it also compiles what was written."""
    if (search or land) and target != "tensorrt":
        raise UsageError(f"search and land ask TensorRT's compiler; leave them out for {target}")
    if not search:
        if (sm is not None or shapes) and not land:
            raise UsageError("sm and shapes say what to compile for; add search or land, or leave them out")
        return None
    return Asked(capability(sm), profile_of(shapes or {}))


def capability(sm: int | None) -> int:
    if sm is not None and not isinstance(sm, int):
        raise UsageError(f"sm {sm!r} is no whole number; give the compute capability times ten, as 89")
    return DEFAULT_SM if sm is None else sm


def profile_of(shapes: Shapes) -> Profile:
    """Shapes as Python callers write them: one, or several, an input."""
    if not isinstance(shapes, Mapping):
        raise UsageError("shapes is a dict: the name of an input, and its shape or shapes")
    every: dict[str, list[Sequence[int]]] = {}
    for name, given in shapes.items():
        if not isinstance(given, Sequence):
            raise UsageError(f"shapes: {given!r} is no shape of '{name}'; give one, such as (1, 128), or several")
        single = all(isinstance(size, int | np.integer) for size in given)
        every[name] = [given] if single else list(given)  # type: ignore[list-item, arg-type]
    return {name: as_range(name, given) for name, given in every.items()}
