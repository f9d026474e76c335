"""Whatever becomes of a model on its way: refused in one line, or a valid model that computes the same. Never another exception,
a hang, or memory without an end. `tools/fuzz.py` runs the same for as long as one likes, and sees crashes too."""

from __future__ import annotations

import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from fuzzing import example, judge, near_example
from hostile import CHANGES, Change
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from near_misses import paths

SECONDS = 30
MEMORY = 8 << 30


@contextmanager
def limits() -> Iterator[None]:
    """An example that takes longer, or more memory, fails."""

    def too_long(*_: object) -> None:
        raise TimeoutError(f"more than {SECONDS} s of computing")

    before = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGPROF, too_long)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, handler)


@settings(max_examples=250, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32), st.lists(st.sampled_from(CHANGES), min_size=1, max_size=3))
def test_hostile_models_are_refused_or_stay_what_they_are(seed: int, changes: list[Change]) -> None:
    with limits():
        judge(example(seed, changes), seed)


@settings(max_examples=250, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.integers(0, 2**32))
def test_near_misses_with_small_edits(seed: int) -> None:
    with limits():
        judge(near_example(seed, paths()), seed)
