"""What is done in a process of its own: `python -m _bench.child REQUEST ANSWERS`, one line of JSON for every item."""

from __future__ import annotations

import json
import resource
import signal
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from _bench.peers import TOOLS

LONG_ENOUGH = 20.0
"""Seconds of one rewriting after which it is not repeated."""


def peak() -> float:
    """MB that this process has had at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def resident() -> float:
    """MB that this process has now (Linux; elsewhere the most that it has had)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20
    except OSError:
        return peak()


def rewrite(way: str, tool: str, model: str, out: str, repeat: int, proof: bool = False) -> dict[str, Any]:
    """One tool's result for one model: nodes, sites, seconds (the best of so many times, and the first) and memory."""
    from _bench.judge import attention_nodes, load, nodes

    asked, path = TOOLS[tool], Path(model)
    for module in asked.modules:
        import_module(module)
    imports = resident()
    done = asked.rewrite(path, way)
    found: dict[str, Any] = {"way": way, "imports": imports, "peak": peak(), "first": done.seconds}
    done.save(Path(out))
    written = load(Path(out))
    found |= {"nodes": nodes(written), "attention": attention_nodes(written)}
    runs = [done]
    while len(runs) < repeat and done.seconds < LONG_ENOUGH:
        runs.append(asked.rewrite(path, way))
    best = min(runs, key=lambda run: run.seconds)
    found |= {"seconds": best.seconds, **best.more}
    if "call" in best.more:
        found["call"] = min(run.more["call"] for run in runs)
    if proof and asked.proved is not None:
        found |= {"proved": asked.proved(path), "peak_proved": peak()}
    return found


def scout(way: str, tool: str, model: str, out: str) -> dict[str, Any]:
    """How many attention operators a tool writes when it is told this of the model."""
    from _bench.judge import attention_nodes, load

    TOOLS[tool].rewrite(Path(model), way).save(Path(out))
    return {"attention": attention_nodes(load(Path(out)))}


def judge(result: str, model: str) -> dict[str, Any]:
    """Whether a result computes what the original does."""
    from _bench.judge import verdict

    return verdict(Path(model), Path(result))


def land(result: str, sm: int) -> dict[str, Any]:
    """What TensorRT's compiler makes of a result."""
    from _bench.engine import compiled

    return compiled(Path(result), sm)


def infer(model: str, results: dict[str, str], seconds: float) -> dict[str, Any]:
    """How long ONNX Runtime takes for results, as ratios to the original."""
    from _bench.inference import ratios

    return ratios(Path(model), {key: Path(path) for key, path in results.items()}, seconds)


TASKS: dict[str, Callable[..., dict[str, Any]]] = {
    task.__name__: task  # type: ignore[attr-defined]
    for task in (rewrite, scout, judge, land, infer)
}


def main(request: str, answers: str) -> int:
    """Every item in order; what a tool raises is noted."""
    asked = json.loads(request)
    with Path(answers).open("a") as told:
        for item in asked["items"]:
            signal.alarm(max(1, round(asked["timeout"])))  # Ends the process, also from within a library's own code.
            start = time.perf_counter()
            try:
                answer = TASKS[asked["task"]](item, **asked["given"])
            except Exception as error:  # Whatever another's tool raises is its result.
                text = next(iter(str(error).strip().splitlines()), "")
                answer = {"failure": f"{type(error).__name__}: {text}"[:200], "after": time.perf_counter() - start}
            signal.alarm(0)
            told.write(json.dumps([item, answer]) + "\n")
            told.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
