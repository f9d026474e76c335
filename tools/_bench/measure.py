"""One model through every tool: rewritten, judged, compiled, and run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from _bench.apart import Answer, each, one
from _bench.files import File
from _bench.judge import attention_nodes, nodes
from _bench.peers import YARDSTICK, Tool

Note = dict[str, Any]

EXPORTED = "exported"
"""The model as it came, among what is compiled."""


@dataclass(frozen=True)
class Asked:
    """How often and how long. repeat: the best of so many rewritings counts. timeout: seconds for each item in a process of its
    own. seconds: of inference, for each model. sm: what is compiled for; None to compile nothing."""

    repeat: int = 3
    timeout: float = 300.0
    seconds: float = 2.0
    sm: int | None = 89


def measured(file: File, tools: Sequence[Tool], asked: Asked, folder: Path) -> Note:
    """What came of one model, as JSON has it."""
    proto, model = file.proto, str(file.path)
    note: Note = {"file": file.name, "true_sites": file.true_sites, "half": file.is_half, "static": file.is_static}
    note |= {"nodes": nodes(proto), "attention": attention_nodes(proto), "bytes": file.path.stat().st_size}
    note["tools"] = {tool.key: _rewritten(tool, model, asked, folder) for tool in tools}
    kept = {key: _place(folder, key) for key, told in note["tools"].items() if "failure" not in told}
    if asked.sm is not None and file.is_half and file.is_static:
        items = {EXPORTED: model} | {key: str(path) for key, path in kept.items() if key != YARDSTICK}
        told = each("land", list(items.values()), asked.timeout, sm=asked.sm)
        note["compiled"] = {key: told[item] for key, item in items.items()}
    right = {key: str(path) for key, path in kept.items() if note["tools"][key]["right"] and key != YARDSTICK}
    if asked.seconds and right and not file.is_half:
        note["inference"] = one("infer", model, asked.timeout, results=right, seconds=asked.seconds)
    return note


def sites_right(told: Answer, true_sites: int | None) -> int:
    """The sites that a tool wrote as an operator each, in a result that computes the same."""
    if "failure" in told or not told["right"]:
        return 0
    found: int = told["attention"]
    return found if true_sites is None else min(found, true_sites)


def _place(folder: Path, key: str) -> Path:
    return folder / key / "model.onnx"


def _rewritten(tool: Tool, model: str, asked: Asked, folder: Path) -> Answer:
    """The result in which the most attention is fused that is right; what was wrong before it is in `also_wrong`."""
    if tool.version is None:
        return {"failure": "not installed"}
    wrong: list[str] = []
    best: Answer = {"failure": "no result"}
    for way in _ways(tool, model, asked, folder):
        told = _once(tool, way, model, asked, folder)
        if told.get("right") in (True, None) and "failure" not in told:
            return told | {"also_wrong": wrong}
        wrong += [way] if told.get("right") is False else []
        best = told if "failure" in best else best
    if "failure" not in best and wrong[0] != way:  # What is in the folder is to be what is told of.
        best = _once(tool, wrong[0], model, asked, folder)
    return best | {"also_wrong": wrong[1:]}


def _ways(tool: Tool, model: str, asked: Asked, folder: Path) -> list[str]:
    """The ways by how many attention operators come of them, then in the tool's order; those from which none comes, once."""
    ways = tool.ways()
    if len(ways) == 1:
        return ways
    out = _clean(folder, tool.key)
    told = each("scout", ways, asked.timeout, tool=tool.key, model=model, out=str(out))
    found = {way: told[way].get("attention", -1) for way in ways}
    some = sorted((way for way in ways if found[way] > 0), key=lambda way: -found[way])
    none = [way for way in ways if found[way] == 0][:1]
    return some + none or ways[:1]


def _clean(folder: Path, key: str) -> Path:
    shutil.rmtree(folder / key, ignore_errors=True)
    (folder / key).mkdir(parents=True)
    return _place(folder, key)


def _once(tool: Tool, way: str, model: str, asked: Asked, folder: Path) -> Answer:
    out = str(_clean(folder, tool.key))
    told = one("rewrite", way, asked.timeout, tool=tool.key, model=model, out=out, repeat=asked.repeat, proof=True)
    if "failure" in told:
        return told | {"way": way}
    verdict = one("judge", out, asked.timeout, model=model)
    return told | ({"right": False, "why": verdict["failure"]} if "failure" in verdict else verdict)
