"""What a reader found in a view is remembered by the view: nothing of it changes, and much is asked again and again."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from onnx_attn.graph.view import GraphView

Given = ParamSpec("Given")
Found = TypeVar("Found")


def remembered(
    read: Callable[Concatenate[GraphView, Given], Found],
) -> Callable[Concatenate[GraphView, Given], Found]:
    """A reader that reads each once. What is given by place are nodes and tensors, which are told apart as objects (tensors of
    one name in two graphs are equal to graphsurgeon), what is given by name are plain values."""

    @wraps(read)
    def asked(view: GraphView, *given: Given.args, **plain: Given.kwargs) -> Found:
        key = (read, *map(id, given), *plain.items())
        entry: tuple[Any, Found] | None = view.found.get(key)
        if entry is None:
            # Kept beside what was found: an object that is gone could leave its id to another.
            entry = view.found[key] = (given, read(view, *given, **plain))
        return entry[1]

    return asked
