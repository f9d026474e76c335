"""Give the library what models may become on their way, thousands of them, and say which seeds end badly.

    python tools/fuzz.py --first 0 --count 5000 [--minutes 15] [--models DIR]

Models are small exports and generated blocks with hostile changes, or those of a folder with small edits (tests/near_misses, or
what `tools/hunt.py --gather` found). Each example has a seed: `--first SEED --count 1 --trace` is that example again. They run in
forks with limits of memory and of time, so that a crash or a hang of onnx or ONNX Runtime is seen too, with what was being done.
"""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from fuzzing import example, judge, near_example  # noqa: E402

MEMORY = 6 << 30
SECONDS = 30
"""Of computing, for one example; ten times as many by the clock."""


def _work(seeds: range, make: Callable[[int], Any], answer: int, trace: bool) -> None:
    """Judge examples, and write what is being done before it is: the last line is where a crash happened."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def say(*words: object) -> None:
        os.write(answer, ("\t".join(map(str, words)).replace("\n", " ") + "\n").encode())

    for seed in seeds:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(10 * SECONDS)
        say("stage", seed, "made")
        try:
            say("done", seed, judge(make(seed), seed, lambda name, seed=seed: say("stage", seed, name)))  # type: ignore[misc]
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            if trace:
                traceback.print_exc()
            where = f"{Path(place.filename).name}:{place.lineno} {place.name}"
            say("wrong", seed, f"{type(error).__name__} at {where}: {str(error)[:300]}")


def outcomes(seeds: range, make: Callable[[int], Any], trace: bool) -> Iterator[tuple[int, str, str]]:
    """For each seed its number, "done", "wrong", or the signal that ended the process, and the word or the stage."""
    while seeds:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            if not trace:
                os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            _work(seeds, make, writing, trace)
            os._exit(0)
        os.close(writing)
        last, stage = seeds[0], "start"
        with os.fdopen(reading, errors="replace") as lines:
            for line in lines:
                kind, number, text = line.rstrip("\n").split("\t", 2)
                last, stage = int(number), text
                if kind != "stage":
                    yield last, kind, text
                    stage = ""
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status:
            yield last, signal.Signals(-status).name if status < 0 else f"exit {status}", stage
        seeds = range(last + 1, seeds.stop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--models", type=Path, help="a folder of models to edit")
    parser.add_argument("--trace", action="store_true")
    given = parser.parse_args()
    paths = sorted(given.models.glob("*.onnx")) if given.models is not None else []
    make = (lambda seed: near_example(seed, paths)) if paths else example
    end, words = time.monotonic() + 60 * given.minutes, Counter[str]()
    at, stop = given.first, given.first + given.count
    while at < stop and time.monotonic() < end:
        seeds = range(at, min(at + 50, stop))
        for seed, kind, text in outcomes(seeds, make, given.trace):
            words[text if kind == "done" else "wrong"] += 1
            if kind != "done":
                print(f"seed {seed}: {kind}: {text}", flush=True)
        at = seeds.stop
    print(f"{sum(words.values())} examples, seeds {given.first} to {at - 1}:", dict(words.most_common()))


if __name__ == "__main__":
    main()
