"""No result hangs on an order: of the nodes in the file, of the recognisers, of the edits that are put together."""

from __future__ import annotations

import random
from typing import Any

import onnx
import pytest
from support import EXPORTS, exports

import onnx_attn
from onnx_attn.decision import Decision
from onnx_attn.forms.write import write_site
from onnx_attn.graph.compose import compose
from onnx_attn.graph.edit import Names, SiteEdit, reads
from onnx_attn.graph.view import GraphView
from onnx_attn.plan import make_plan
from onnx_attn.recognize import candidates
from onnx_attn.targets.editions import parse_target

FILES = [
    export.path
    for export in exports()
    if export.path.stem
    in (
        "vit_b_16.torchscript.17.static",
        "bert.dynamo.23.dynamic",
        "gpt2.torchscript.17.dynamic",
        "swin_v2_t.torchscript.17.dynamic",
        "decoder_layer.dynamo.20.dynamic",
        "gqa_block.dynamo.18.static",
        "no_attention.torchscript.17.static",
    )
]
SEEDS = range(3)


def shuffled(model: onnx.ModelProto, seed: int) -> onnx.ModelProto:
    """The same graph with its nodes in another order that runs."""
    rng = random.Random(seed)
    made = {name for node in model.graph.node for name in node.output}
    waiting, ready = list(model.graph.node), []
    have: set[str] = set()
    while waiting:
        able = [node for node in waiting if all(name in have or name not in made for name in reads(node))]
        node = rng.choice(able)
        waiting.remove(node)
        have.update(node.output)
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        ready.append(copy)
    other = onnx.ModelProto()
    other.CopyFrom(model)
    del other.graph.node[:]
    other.graph.node.extend(ready)
    return other


def told(report: dict[str, Any]) -> list[dict[str, Any]]:
    """What a report says of each candidate, by its name."""
    left = [{k: v for k, v in c.items() if k not in ("id", "certificate")} for c in report["candidates"]]
    return sorted(left, key=lambda c: c["softmax"])


def test_there_are_files_to_try() -> None:
    assert len(FILES) == 7 and all(path.parent == EXPORTS for path in FILES)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("seed", SEEDS)
def test_nodes_in_another_order_are_read_alike(path: Any, seed: int) -> None:
    model = onnx.load(path)
    assert told(onnx_attn.inspect(shuffled(model, seed))) == told(onnx_attn.inspect(model))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_candidates_read_in_another_order_are_the_same(path: Any) -> None:
    """What one reading leaves in the view's memory does not change another."""
    model = onnx.load(path)
    view = GraphView(model)
    expected = {id_of(view, node): verdict(candidates._candidate(view, node)) for node in view.graph.nodes}
    for seed in SEEDS:
        other = GraphView(model)
        nodes = list(other.graph.nodes)
        random.Random(seed).shuffle(nodes)
        assert {id_of(other, node): verdict(candidates._candidate(other, node)) for node in nodes} == expected


def id_of(view: GraphView, node: Any) -> int:
    return view.position(node)


def verdict(candidate: Any) -> tuple[Any, ...]:
    fields = ("name", "code", "heads", "kv_heads", "head_dim", "value_dim", "scale", "guard")
    return (type(candidate).__name__, *(getattr(candidate, field, None) for field in fields))


def edits_of(model: onnx.ModelProto) -> list[SiteEdit]:
    view, names = GraphView(model), Names(model)
    plan = make_plan(view, candidates.recognize(view), parse_target("tensorrt").taking(view.opset))
    decisions = [entry for entry in plan.entries if isinstance(entry, Decision)]
    return [write_site(view, names, d.site, d) for d in decisions]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_edits_put_together_in_another_order_make_the_same_model(path: Any) -> None:
    def composed(seed: int | None) -> onnx.ModelProto:
        model = onnx.load(path)
        edits = edits_of(model)
        if seed is not None:
            random.Random(seed).shuffle(edits)
        return compose(model, edits)

    def content(model: onnx.ModelProto) -> tuple[list[bytes], list[bytes]]:
        graph = model.graph
        return (
            sorted(node.SerializeToString(deterministic=True) for node in graph.node),
            sorted(tensor.SerializeToString(deterministic=True) for tensor in graph.initializer),
        )

    first = composed(None)
    onnx.checker.check_model(first)
    for seed in SEEDS:
        other = composed(seed)
        onnx.checker.check_model(other)
        assert content(other) == content(first)
