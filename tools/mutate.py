"""Which conditions could be wrong without a test that notices: one at a time is changed, and tests run until one fails.

    python tools/mutate.py onnx_attn/algebra/*.py --tests tests/test_traps_*.py tests/test_algebra*.py [--most N] [--seed S]

A first run of all tests notes which of them touch which line, and how long each takes. Of a mutant, those that touch its
line run, the quickest and those that have killed others first, in a fork in which one function has other code. What no test
notices is printed. No condition is wrong for that: it may be one that something else makes true; but somebody should look.
Where somebody has, tools/explained_mutants.json says why no model tells the two apart; these are counted.
"""

from __future__ import annotations

import argparse
import builtins
import json
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stdout
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent))
from tools._mutants import PROBE, ROOT, Mutant, install, mutants, probed

Touched = dict[str, tuple[float, Iterable[tuple[str, int]]]]
"""By test, how long it took and the lines of the mutated files that it ran."""


EXPLAINED = Path(__file__).parent / "explained_mutants.json"


class _Recorder:
    """Notes the statements that each test runs."""

    def __init__(self, files: set[str]):
        self.tests, self.lines, self.failed = Touched(), set[tuple[str, int]](), set[str]()
        for file in files:
            for function, code in probed(Path(file)):
                install(file, function, code)
        setattr(builtins, PROBE, lambda file, line: self.lines.add((file, line)))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        self.lines = set()
        start = time.perf_counter()
        result = yield
        self.tests[item.nodeid] = (time.perf_counter() - start, sorted(self.lines))
        return result  # type: ignore[return-value]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            print(f"{report.nodeid} fails without any mutant, and is left out", file=sys.__stdout__, flush=True)
            self.failed.add(report.nodeid)


class _Chosen:
    """Runs the given tests in the given order, and names the one that fails."""

    def __init__(self, tests: list[str]):
        self.order = {test: number for number, test in enumerate(tests)}
        self.failed = ""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted((i for i in items if i.nodeid in self.order), key=lambda item: self.order[item.nodeid])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed = self.failed or report.nodeid


def _pytest(files: list[str], *plugins: object, also: tuple[str, ...] = ()) -> int:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        return int(pytest.main([*files, "-n0", "-q", "-p", "no:cacheprovider", "--tb=no", *also], plugins=plugins))


def in_fork(work: Callable[[], object], limit: float) -> object:
    """What `work` gives in a process of its own, as JSON has it; "timeout" or "crash" where there is none."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        os.close(reading)
        with open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            with os.fdopen(writing, "w") as answer:
                json.dump(work(), answer)
        os._exit(0)
    os.close(writing)
    text, end = b"", time.monotonic() + limit
    with os.fdopen(reading, "rb", buffering=0) as answer:
        while select.select([answer], [], [], max(0.0, end - time.monotonic()))[0]:
            part = answer.read(1 << 20)
            if not part:
                break
            text += part
        else:
            os.killpg(child, signal.SIGKILL)
            text = b'"timeout"'
    os.waitpid(child, 0)
    return json.loads(text) if text else "crash"


def explained() -> set[tuple[str, str]]:
    """File and change of the mutants that are known to survive, and why is written down."""
    return {(file, change) for file, changes in json.loads(EXPLAINED.read_text()).items() for change in changes}


def record(tests: list[str], files: set[str]) -> Touched:
    def work() -> Touched:
        recorder = _Recorder(files)
        _pytest(tests, recorder)
        return {name: found for name, found in recorder.tests.items() if name not in recorder.failed}

    found = in_fork(work, 3600)
    if not isinstance(found, dict):
        raise SystemExit(f"the tests cannot be recorded: {found}")
    return {name: (took, {(path, line) for path, line in lines}) for name, (took, lines) in found.items()}


def killer(mutant: Mutant, tests: list[str], limit: float) -> object:
    """The test that fails with the mutant, or "timeout" or "crash"; empty if none does."""

    def work() -> str:
        install(mutant.file, mutant.function, mutant.code)
        chosen = _Chosen(tests)
        status = _pytest(sorted({test.split("::")[0] for test in tests}), chosen, also=("-x",))
        return chosen.failed or ("" if status == 0 else f"pytest's exit code {status}")

    return in_fork(work, limit)


def campaign(files: list[Path], tests: list[str], most: int | None, seed: int, budget: float, out: Path | None) -> None:
    made = [mutant for file in files for mutant in mutants(file.resolve())]
    # In no order: whoever stops early has looked everywhere.
    picked = random.Random(seed).sample(made, len(made) if most is None else min(most, len(made)))
    touched = record(tests, {str(file.resolve()) for file in files})
    _pytest(tests, also=("--collect-only",))
    print(f"{len(made)} mutants, {len(picked)} of them made; {len(touched)} tests", flush=True)
    known, survived, left, kills = explained(), 0, 0, Counter[str]()
    for mutant in picked:
        reach = [(took, test) for test, (took, lines) in touched.items() if (mutant.file, mutant.statement) in lines]
        cost, chosen = 0.0, list[str]()
        for took, test in sorted(reach, key=lambda pair: pair[0] / (1 + kills[pair[1]])):
            cost += took
            if cost <= budget:
                chosen.append(test)
        by = killer(mutant, chosen, 60 + 2 * budget) if chosen else ""
        kills[str(by)] += 1
        survived += not by
        if not by and (str(Path(mutant.file).relative_to(ROOT)), mutant.change) not in known:
            left += 1
            print(f"{mutant} survives {len(chosen)} of {len(reach)} tests", flush=True)
        if out is not None:
            fate = {"mutant": str(mutant), "by": by, "tests": len(chosen), "reach": len(reach)}
            with out.open("a") as log:
                log.write(json.dumps(fate) + "\n")
    print(f"{survived} of {len(picked)} survive, {left} of them unexplained")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--tests", nargs="+", required=True)
    parser.add_argument("--most", type=int, help="so many mutants, drawn evenly; all if left out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of tests for one mutant")
    parser.add_argument("--out", type=Path, help="where each mutant's fate is noted, a line of JSON each")
    given = parser.parse_args()
    campaign(given.files, given.tests, given.most, given.seed, given.budget, given.out)


if __name__ == "__main__":
    main()
