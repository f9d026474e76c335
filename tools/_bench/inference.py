"""How long ONNX Runtime takes on the CPU for what the tools wrote: runs in turn, each a ratio to the original's run beside it."""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from onnx_attn.errors import one_line
from onnx_attn.graph.inference import Inference
from onnx_attn.graph.sizes import worlds_of
from onnx_attn.prove.inputs import model_inputs

ITSELF = "itself"
"""The original in a second session: what the machine's noise makes of no difference at all."""

_SHORTEST = 2e-3
"""Seconds of one sample: several runs of a quick model."""
_FEWEST, _MOST = 15, 200


def _session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def ratios(
    original: Path, results: dict[str, Path], seconds: float, sizes: dict[str, int] | None = None
) -> dict[str, Any]:
    """Per result the median of its ratios to the original, the middle half and the middle nine tenths of them.

    sizes: of dimensions that vary, by name; without, as a world has them.

    All optimizations of the session are on for all, as users have them. The order within a round is drawn anew each time.
    """
    proto = onnx.load(original)
    inputs = model_inputs(proto, Inference(proto).run(sizes) if sizes else worlds_of(proto)[-1])
    sessions, failures = {"": _session(original), ITSELF: _session(original)}, dict[str, Any]()
    for session in sessions.values():
        session.run(None, inputs)
    for key, path in results.items():
        try:
            session = _session(path)
            session.run(None, inputs)
            sessions[key] = session
        except Exception as error:  # onnxruntime's own classes, all of them direct Exceptions
            failures[key] = {"failure": one_line(error)[:200]}
    times: dict[str, list[float]] = {key: [] for key in sessions}
    once = _sample(sessions[""], inputs, 3) / 3
    runs = max(1, round(_SHORTEST / once))
    rng, order = random.Random(0), list(sessions)
    end = time.perf_counter() + seconds
    while len(times[""]) < _MOST and (len(times[""]) < _FEWEST or time.perf_counter() < end):
        rng.shuffle(order)
        for key in order:
            times[key].append(_sample(sessions[key], inputs, runs))
    base = times.pop("")
    told = {key: _spread([a / b for a, b in zip(taken, base, strict=True)]) for key, taken in times.items()}
    return {"milliseconds": 1e3 * statistics.median(base) / runs, "rounds": len(base), "ratios": told | failures}


def _sample(session: ort.InferenceSession, inputs: dict[str, np.ndarray], runs: int) -> float:
    start = time.perf_counter()
    for _ in range(runs):
        session.run(None, inputs)
    return time.perf_counter() - start


def _spread(values: list[float]) -> dict[str, float]:
    low, first, median, third, high = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95])
    return {"median": median, "low": low, "first": first, "third": third, "high": high}
