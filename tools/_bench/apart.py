"""Work in processes of their own: a tool that crashes, hangs or runs out of memory is a result, and no end of the comparison."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Answer = dict[str, Any]
"""What a task found; with the key `failure` where it did not come to an end."""

_TOOLS = Path(__file__).parent.parent
_LONGEST = 200


def each(task: str, items: Sequence[str], timeout: float, **given: Any) -> dict[str, Answer]:
    """The task's answer for every item, in one process as long as that lives. `timeout`: seconds for each item."""
    answers: dict[str, Answer] = {}
    with tempfile.TemporaryDirectory(prefix="onnx-attn-") as folder:
        while left := [item for item in items if item not in answers]:
            told = Path(folder, "answers")
            request = {"task": task, "items": left, "timeout": timeout, "given": given}
            done = _process(request, told, folder)
            lines = told.read_text().splitlines() if told.exists() else []
            answers.update(json.loads(line) for line in lines)
            if len(lines) < len(left):  # The one that it died of is the next.
                answers[left[len(lines)]] = {"failure": _death(done, timeout)}
            told.unlink(missing_ok=True)
    return answers


def one(task: str, item: str, timeout: float, **given: Any) -> Answer:
    """The task's answer for one item, in a process of its own."""
    return each(task, [item], timeout, **given)[item]


def _process(request: dict[str, Any], told: Path, folder: str) -> subprocess.CompletedProcess[str]:
    paths = [str(_TOOLS), str(_TOOLS.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    words = [sys.executable, "-m", "_bench.child", json.dumps(request), str(told)]
    return subprocess.run(words, env=environment, cwd=folder, capture_output=True, text=True, errors="replace")


def _death(done: subprocess.CompletedProcess[str], timeout: float) -> str:
    if done.returncode == -signal.SIGALRM:
        return f"timeout: stopped after {timeout:g} s"
    if done.returncode < 0:
        return f"crash: {signal.Signals(-done.returncode).name}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return f"crash: status {done.returncode}, {lines[-1] if lines else 'no message'}"[:_LONGEST]
