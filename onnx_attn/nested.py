"""Sites that do not lie in the main graph: functions are inlined, and a body of If, Loop or Scan is a model of its own.

What reads and rewrites models does so with a body too; nothing else knows of scopes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnx_attn.domain import DOMAIN, is_window_function
from onnx_attn.graph.body import Body, bodies_of, put_back, take_out
from onnx_attn.graph.edit import reads
from onnx_attn.graph.inline import inline_functions
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import World
from onnx_attn.progress import within
from onnx_attn.recognize.candidates import recognize
from onnx_attn.site import Candidate, Verdict

Entry = dict[str, Any]


def with_functions_inlined(loaded: Loaded, view: GraphView, own: bool) -> tuple[Loaded, GraphView, list[Candidate]]:
    """The model to read, and its candidates: functions in which attention lies are put where they are called.

    own: the model may be changed; else a copy is.
    """
    candidates = recognize(view)
    functions = _functions_around(loaded.proto, candidates)
    if not functions:
        return loaded, view, candidates
    if not own:
        loaded = loaded.copy()
    inline_functions(loaded.proto, functions)
    view = GraphView(loaded.proto)
    return loaded, view, recognize(view)


def with_calls_inlined(loaded: Loaded, names: Collection[str] | None) -> bool:
    """Put what our functions do where they are called, windows and all: by nodes of these names, or by every one. The model is
    changed; returns whether it was."""
    before = {output for node in loaded.proto.graph.node for output in node.output}
    if not _inline_calls(loaded, names):
        return False
    _store_typed_constants(loaded, GraphView(loaded.proto), before)
    return True


def _inline_calls(loaded: Loaded, names: Collection[str] | None) -> bool:
    ours = {(f.domain, f.name): f for f in loaded.proto.functions if f.domain == DOMAIN}
    called = [node for node in loaded.proto.graph.node if (node.domain, node.op_type) in ours]
    wanted = [node for node in called if names is None or is_window_function(node.op_type) or node.name in names]
    kinds = {(node.domain, node.op_type) for node in wanted}
    if len(wanted) < len(called):
        # The inliner takes all calls of a function: those that are wanted call one of another name.
        for key in kinds:
            copy = onnx.FunctionProto()
            copy.CopyFrom(ours[key])
            copy.name = f"{copy.name}_here"
            loaded.proto.functions.append(copy)
        for node in wanted:
            node.op_type = f"{node.op_type}_here"
        kinds = {(domain, f"{name}_here") for domain, name in kinds}
    if kinds:
        inline_functions(loaded.proto, kinds)
    return bool(kinds)


def _store_typed_constants(loaded: Loaded, view: GraphView, before: Collection[str]) -> None:
    """Numbers that functions carry as float32 and cast like their operands become numbers of that type: whoever reads the
    operands' values then is told from who asks for their type. before: the values of the model's own nodes."""
    graph = loaded.proto.graph
    made = [node for node in graph.node if node.output[0] not in before]
    numbers = {node.output[0]: value for node in made if (value := _typed(view, node)) is not None}
    kept = [node for node in graph.node if node.op_type not in _NUMBERS or node.output[0] not in numbers]
    read = {name for node in kept for name in reads(node)} | {value.name for value in graph.output}
    del graph.node[:]
    graph.node.extend(kept)
    stored = (numpy_helper.from_array(value, name) for name, value in numbers.items() if name in read)
    graph.initializer.extend(stored)


_NUMBERS = ("Constant", "CastLike")


def _typed(view: GraphView, node: onnx.NodeProto) -> np.ndarray | None:
    return view.constant_of(node.output[0]) if node.op_type in _NUMBERS and not node.domain else None


def with_windows_inlined(loaded: Loaded) -> Loaded:
    """The model, or a copy in which partitions and reverses of ours are plain movement: to be read."""
    movement = [(f.domain, f.name) for f in loaded.proto.functions if f.domain == DOMAIN and is_window_function(f.name)]
    if not movement:
        return loaded
    loaded = loaded.copy()
    inline_functions(loaded.proto, movement)
    return loaded


def _functions_around(proto: onnx.ModelProto, candidates: Sequence[Candidate]) -> list[tuple[str, str]]:
    """The functions of the model that nested attention lies in, however deep."""
    named = {
        name
        for candidate in candidates
        if isinstance(candidate, Verdict) and candidate.code == "nested-graph"
        for name in re.findall(r"\((\w+)\)", candidate.scope)
    }
    return [(f.domain, f.name) for f in proto.functions if f.name in named and f.domain != DOMAIN]


@dataclass(frozen=True)
class Block:
    """The candidates of one body: where they stand in the report, and the body."""

    places: tuple[int, ...]
    body: Body


def is_nested(entries: Sequence[object]) -> bool:
    """Whether attention was found in bodies of If, Loop or Scan."""
    return any(isinstance(entry, Verdict) and entry.code == "nested-graph" for entry in entries)


def blocks(model: onnx.ModelProto, worlds: Collection[World], entries: Sequence[object]) -> list[Block]:
    """The bodies of `model` in which attention was found, with the places of their candidates among `entries`."""
    found = []
    for owner, node in enumerate(model.graph.node):
        for attribute in bodies_of(node):
            graph = next(each.g for each in node.attribute if each.name == attribute)
            name = node.name or next((output for output in node.output if output), node.op_type)
            scope = f"{graph.name} ({attribute}) | {name} ({node.op_type})"
            places = tuple(
                place
                for place, entry in enumerate(entries)
                if isinstance(entry, Verdict) and entry.code == "nested-graph" and _lies_in(entry.scope, scope)
            )
            body = take_out(model, owner, attribute, worlds) if places else None
            if body is not None:
                found.append(Block(places, body))
    return found


def _lies_in(inner: str, scope: str) -> bool:
    return inner == scope or inner.endswith(f" | {scope}")


def merged(entries: list[Entry], found: Sequence[tuple[Block, list[Entry]]]) -> list[Entry]:
    """The report's candidates with those of bodies as their own reading tells them, numbered anew."""
    instead: dict[int, list[Entry]] = {}
    for block, own in found:
        instead |= {place: [] for place in block.places}
        instead[block.places[0]] = own
    flat = [entry for place, before in enumerate(entries) for entry in instead.get(place, [before])]
    counts = {"site": 0, "other": 0}
    for entry in flat:
        kind = "other" if entry["status"] == "not_attention" else "site"
        entry["id"] = f"{kind}-{counts[kind]}"
        counts[kind] += 1
    return flat


def counted(report: dict[str, Any]) -> None:
    """Bring the report's totals in line with its candidates."""
    statuses = [candidate["status"] for candidate in report["candidates"]]
    report["refused"] = statuses.count("refused")
    report["sites"] = statuses.count("site") + report["refused"]
    if "fused" in report:
        report["fused"] = statuses.count("site")


def replace_bodies(
    model: onnx.ModelProto,
    found: Sequence[Block],
    rewrite: Callable[[int, Body], tuple[list[Entry], onnx.ModelProto | None]],
) -> tuple[list[tuple[Block, list[Entry]]], bool]:
    """Rewrite each body, given with its number; one that changed is put back. Returns its candidates, and whether any did."""
    results, changed = [], False
    for number, block in enumerate(found):
        with within(f"body {number + 1} of {len(found)}"):
            own, after = rewrite(number, block.body)
        results.append((block, own))
        if after is not None:
            put_back(model, block.body, after)
            changed = True
    return results, changed
