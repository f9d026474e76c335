"""Look for models that tell a mutant of a condition from the condition itself, and keep them as near misses.

    python tools/hunt.py --gather DIR tests/test_*.py           the graphs that the tests recognise, to begin with
    python tools/mutate.py FILES --tests ... --out FATES.jsonl  which mutants no test notices
    python tools/hunt.py --from DIR --fates FATES.jsonl FILES   edits of those graphs, until the mutant reads one otherwise

What is found goes to tests/near_misses, named after the function; `python tests/near_misses.py` writes what is said of it. Read
that: a mutant that nobody noticed may be right, and the condition wrong.
"""

from __future__ import annotations

import argparse
import base64
import builtins
import hashlib
import json
import random
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "tests")]
from near_edits import EDITS  # noqa: E402
from near_misses import FOLDER, outcome  # noqa: E402

from onnx_attn import OnnxAttnError  # noqa: E402
from onnx_attn.graph.load import check  # noqa: E402
from tools._mutants import PROBE, Mutant, function_of, install, mutants, probed  # noqa: E402
from tools.mutate import in_fork  # noqa: E402

LARGEST = 60_000
"""Bytes of a model that is worth to be kept."""
SLOW = 2.0
"""Seconds after which a model is left: there are others."""


def gather(folder: Path, tests: Sequence[Path]) -> int:
    """Run tests, and write every graph in which attention is looked for to the folder."""
    import onnx_attn.cli  # noqa: F401  (all that recognises is imported before it is watched)
    from onnx_attn.recognize import candidates

    folder.mkdir(parents=True, exist_ok=True)
    original = candidates.recognize

    def recognize(view: Any) -> Any:
        data = view.proto.SerializeToString(deterministic=True)
        if len(data) <= LARGEST:
            (folder / f"{hashlib.sha256(data).hexdigest()[:20]}.onnx").write_bytes(data)
        return original(view)

    for module in [*sys.modules.values()]:
        if getattr(module, "recognize", None) is original:
            setattr(module, "recognize", recognize)  # noqa: B010
    return int(pytest.main([*map(str, tests), "-n0", "-q", "-p", "no:cacheprovider"]))


def said(data: bytes) -> object:
    """What is said of a model; which error it falls with, as a mutant may; None where it takes too long."""

    def stop(*_: object) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SLOW)
    try:
        return outcome(onnx.load_from_string(data))[0]
    except TimeoutError:
        return None
    except Exception as error:
        return type(error).__name__
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def traced(models: Sequence[bytes], files: Sequence[Path]) -> list[set[tuple[str, int]]]:
    """Which statements of the files each model runs."""

    def work() -> list[list[tuple[str, int]]]:
        lines, found = set[tuple[str, int]](), []
        setattr(builtins, PROBE, lambda file, line: lines.add((file, line)))
        for file in files:
            for function, code in probed(file):
                install(str(file), function, code)
        for data in models:
            lines.clear()
            said(data)
            found.append(sorted(lines))
        return found

    found = in_fork(work, 3600)
    if not isinstance(found, list):
        raise SystemExit(f"the models cannot be traced: {found}")
    return [{(file, line) for file, line in lines} for lines in found]


def edited(data: bytes, rng: random.Random) -> bytes | None:
    """A model with an edit, sometimes two; None where that is no model."""
    model = onnx.load_from_string(data)
    try:
        for _ in range(rng.choice((1, 1, 1, 2))):
            rng.choice(EDITS)(model, rng)
        check(model, "edited")
        return model.SerializeToString(deterministic=True)
    except (OnnxAttnError, ValueError, TypeError, KeyError, IndexError):
        return None


def told_apart(mutant: Mutant, models: Sequence[bytes], seconds: float, rng: random.Random) -> str | None:
    """A model that the mutant reads otherwise, in base64; the smaller ones are tried oftener."""
    function, end = function_of(mutant.file, mutant.function), time.monotonic() + seconds
    original = function.__code__
    while time.monotonic() < end:
        data: bytes | None = models[int(len(models) * rng.random() ** 2)]
        if data is not None and rng.random() < 0.8:
            data = edited(data, rng)
        right = said(data) if data is not None else None
        if data is None or not isinstance(right, dict):
            continue
        function.__code__ = mutant.code
        wrong = said(data)
        function.__code__ = original
        if wrong is not None and wrong != right:
            return base64.b64encode(data).decode()
    return None


def surviving(fates: Path, files: Sequence[Path]) -> Iterator[Mutant]:
    names = {fate["mutant"] for fate in map(json.loads, fates.read_text().splitlines()) if not fate["by"]}
    return (mutant for file in files for mutant in mutants(file) if str(mutant) in names)


def keep(mutant: Mutant, data: bytes) -> Path:
    stem = f"{Path(mutant.file).stem}.{mutant.function}"
    number = next(number for number in range(1, 10**6) if not (FOLDER / f"{stem}-{number}.onnx").exists())
    path = FOLDER / f"{stem}-{number}.onnx"
    path.write_bytes(data)
    return path


def hunt(files: Sequence[Path], fates: Path, source: Path, seconds: float) -> None:
    models = [path.read_bytes() for path in source.glob("*.onnx") if path.stat().st_size <= LARGEST]
    models.sort(key=lambda data: (len(data), data))
    lines = traced(models, files)
    for seed, mutant in enumerate(surviving(fates, files)):
        reach = [data for data, ran in zip(models, lines, strict=True) if (mutant.file, mutant.statement) in ran]

        def work(mutant: Mutant = mutant, reach: Sequence[bytes] = reach, seed: int = seed) -> str | None:
            return told_apart(mutant, reach, seconds, random.Random(seed)) if reach else None

        found = in_fork(work, seconds + 30)
        told = isinstance(found, str) and found not in ("crash", "timeout")
        print(f"{mutant}: {keep(mutant, base64.b64decode(str(found))).name if told else found}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="the tests to gather from, or the files that are mutated")
    parser.add_argument("--gather", type=Path, help="a folder for the graphs of the tests")
    parser.add_argument("--from", dest="source", type=Path, help="a folder of models to edit")
    parser.add_argument("--fates", type=Path, help="what tools/mutate.py --out wrote")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each mutant")
    given = parser.parse_args()
    if given.gather is not None:
        sys.exit(gather(given.gather, given.files))
    if given.source is None or given.fates is None:
        parser.error("--from and --fates say what to edit, and which mutants to look at")
    hunt([file.resolve() for file in given.files], given.fates, given.source, given.seconds)


if __name__ == "__main__":
    main()
