"""A model's statistics: recognised, flattened, measured at given sizes, at its own, or in the names of its dimensions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import onnx

from onnx_attn.counting.document import PRIMITIVES, exposed, nodes_document, numeric_document, symbolic_document
from onnx_attn.counting.flatten import flatten
from onnx_attn.counting.flops import FORMULAS
from onnx_attn.counting.flow import Flow
from onnx_attn.counting.operator import Reading, reading
from onnx_attn.counting.parameters import parameters
from onnx_attn.counting.regions import anchors_of
from onnx_attn.counting.roles import assign_roles, counts
from onnx_attn.counting.symbolic import SymbolicShapes, third_world
from onnx_attn.engine.profiles import Profile, fitted, is_fixed, sizes_at
from onnx_attn.errors import UsageError
from onnx_attn.graph.inference import Inference
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.sizes import dynamic_dimensions
from onnx_attn.graph.view import GraphView
from onnx_attn.graph.world import World
from onnx_attn.nested import with_functions_inlined
from onnx_attn.site import AttentionSite, Candidate


def statistics(loaded: Loaded, profile: Profile) -> dict[str, Any]:
    """The report of `stats`. profile: the shapes to count at, one an input that varies; empty: in the dimensions' names.

    Raises UsageError where shapes do not fit the model, or are a range.
    """
    if not is_fixed(profile):
        raise UsageError("--shapes: statistics are of one size; give each input one shape")
    sizes = sizes_at(loaded.proto, fitted(loaded.proto, profile, loaded.name), 0) if profile else {}
    loaded, view, candidates = with_functions_inlined(loaded, GraphView(loaded.proto), own=False)
    if sizes:
        worlds = [Inference(loaded.proto).run(sizes)]
        if not {*worlds[0].failures} <= {*view.worlds[0].failures}:
            raise UsageError(
                f"--shapes: {loaded.name} cannot run at these, at node '{worlds[0].failures[0]}'; give others"
            )
        symbolic = False
    else:
        worlds = list(view.worlds)
        symbolic = len(worlds) > 1
    third = third_world(loaded.proto, worlds) if symbolic else None
    worlds += [third] if third is not None else []
    flows = [flow_of(loaded.proto, view, candidates, world) for world in worlds]
    if symbolic:
        figures = symbolic_document(flows[0], SymbolicShapes(flows, [world.sizes for world in worlds]))
    else:
        figures = numeric_document(flows[0])
    return {
        "model": loaded.name,
        "sizes": None if symbolic else worlds[0].sizes,
        "dimensions": list(dynamic_dimensions(loaded.proto.graph)),
        "sites": len(figures["per_site"]),
        "operations_exposed": exposed(flows[0]),
        "nodes": nodes_document(flows[0]),
        "parameters": parameters(loaded.proto),
        **figures,
        "formulas": FORMULAS,
    }


def flow_of(
    proto: onnx.ModelProto, view: GraphView, candidates: Sequence[Candidate], world: World | None = None
) -> Flow:
    """The flow of a model that is `view`'s or was made of it, with the roles of all that is in it. candidates: of the view."""
    sites = {candidate.name: candidate for candidate in candidates if isinstance(candidate, AttentionSite)}

    def read(label: str) -> Reading | None:
        return reading(view, sites[label]) if label in sites else None

    flow = flatten(proto, view.worlds, read, world)
    assign_roles(flow, anchors_of(candidates))
    return flow


def short_statistics(flow: Flow, proto: onnx.ModelProto, numeric: bool) -> dict[str, Any]:
    """What stands in every report of `fuse`. numeric: whether sizes are static, so that FLOPs and bytes are numbers."""
    units = [unit for each in flow.every for unit in each.units]
    figures = numeric_document(flow) if numeric else {"flops": None, "memory": None, "per_site": []}
    flops, memory = figures["flops"], figures["memory"]
    return {
        "nodes": len(units),
        "by_role": counts(units),
        "by_operator": dict(sorted(Counter(unit.kind for unit in units).items())),
        "operations_exposed": exposed(flow),
        "parameters": parameters(proto)["count"],
        "flops": flops and {name: flops[name] for name in ("products", "elementwise", "total")},
        "memory": memory,
        "scores_written": sum(
            site["memory"]["scores"] for site in figures["per_site"] if site["written_as"] == PRIMITIVES
        )
        if memory and memory["reason"] is None
        else None,
    }


def compared(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """Both, and what is gone: nodes of pure movement, and bytes of S×S tensors that the nodes of the model wrote out."""
    scores = None
    if before["scores_written"] is not None and after["scores_written"] is not None:
        scores = before["scores_written"] - after["scores_written"]
    movement = before["by_role"]["movement"] - after["by_role"]["movement"]
    return {"before": before, "after": after, "removed": {"scores": scores, "movement": movement}}
