"""What is being done at this moment, told to whoever listens: by default nobody, so that Python's callers read nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Listener(Protocol):
    def stage(self, name: str) -> None:
        """A stage begins, or goes on after one within it; "" after the last."""

    def step(self, number: int, total: int, label: str) -> None:
        """Within the stage, the step of this number begins, of `total` (0: nobody knows). label: a name out of a model."""


_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_stage: ContextVar[str] = ContextVar("stage", default="")
_place: ContextVar[str] = ContextVar("place", default="")


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def stage(name: str) -> Iterator[None]:
    listener = _listener.get()
    if listener is None:
        yield
        return
    around, token = _stage.get(), _stage.set(f"{_place.get()}{name}")
    listener.stage(_stage.get())
    try:
        yield
    finally:
        _stage.reset(token)
        listener.stage(around)


@contextmanager
def within(place: str) -> Iterator[None]:
    """Stages from here on are of this place, as a body of If or Loop."""
    token = _place.set(f"{_place.get()}{place}, ")
    try:
        yield
    finally:
        _place.reset(token)


@contextmanager
def clock(seconds: dict[str, float], phase: str) -> Iterator[None]:
    """A stage whose time is added to that of its phase."""
    start = time.perf_counter()
    with stage(phase):
        yield
    seconds[phase] = seconds.get(phase, 0.0) + time.perf_counter() - start


def step(number: int, total: int, label: str) -> None:
    listener = _listener.get()
    if listener is not None:
        listener.step(number, total, label)


def steps(items: Sequence[Item], label: Callable[[Item], str]) -> Iterator[Item]:
    """The items, each told before its turn."""
    for number, item in enumerate(items, 1):
        step(number, len(items), label(item))
        yield item
