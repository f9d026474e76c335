"""The report as a dict: the JSON that scripts rely on, key by key as the interface documents it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnx_attn.decision import Decision
from onnx_attn.forms.adaptation import AS_IT_STANDS, Adaptation
from onnx_attn.fusion import Fusion
from onnx_attn.graph.view import GraphView
from onnx_attn.plan import Plan
from onnx_attn.prove.certificate import Between, Certificate, Errors, Tried
from onnx_attn.prove.compare import Difference
from onnx_attn.prove.recheck import Rechecked
from onnx_attn.prove.whole import WholeProof
from onnx_attn.recognize.causality import blocks_later_keys
from onnx_attn.recognize.rotary import Rotary, read_rotary
from onnx_attn.recognize.window import read_window
from onnx_attn.recognize.window_masks import mask_kinds
from onnx_attn.site import AttentionSite, Candidate, Verdict, Window, Written
from onnx_attn.targets.editions import Target
from onnx_attn.targets.legal import adapted_facts
from onnx_attn.targets.lookup import landing
from onnx_attn.targets.reading import facts_of, standing_form, written_facts


def inspection(name: str, target: Target, view: GraphView, plan: Plan) -> dict[str, Any]:
    """The report of `inspect`."""
    candidates = _numbered([_entry(entry, target, view) for entry in plan.entries])
    return {**_head(name, target, candidates), "candidates": candidates}


def fusion_report(fusion: Fusion) -> dict[str, Any]:
    """The report of `fuse`; `proof` stays null until the whole model has been run, and `proof_left` says why if it is not."""
    candidates = _numbered([_fused_entry(fusion, entry) for entry in fusion.plan.entries])
    head = _head(fusion.name, fusion.target, candidates)
    return {
        **head,
        "fused": sum(candidate["status"] == "site" for candidate in candidates),
        "nodes_before": fusion.nodes_before,
        "nodes_after": fusion.nodes_after,
        "opset_raised": list(fusion.opsets) if len(fusion.opsets) > 1 else None,
        "dynamic_batch": fusion.varied.document if fusion.varied is not None else None,
        "spelled": fusion.microsoft.document if fusion.microsoft else None,
        "search": fusion.search.document if fusion.search is not None else None,
        "seconds": {phase: round(seconds, 4) for phase, seconds in fusion.seconds.items()},
        "proof": None,
        "proof_left": None,
        "candidates": candidates,
    }


def proof_document(found: WholeProof) -> dict[str, Any]:
    return {"ok": found.ok, **_difference(found.worst), "cases": found.cases, "rtol": found.rtol}


def _head(name: str, target: Target, candidates: list[dict[str, Any]]) -> dict[str, Any]:
    statuses = [candidate["status"] for candidate in candidates]
    refused = statuses.count("refused")
    return {
        "model": name,
        "target": target.name,
        "target_version": target.version,
        "sites": statuses.count("site") + refused,
        "refused": refused,
    }


def _numbered(candidates: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sites are numbered among themselves, so that a class softmax does not shift their ids."""
    counts = {"site": 0, "other": 0}
    numbered = []
    for candidate in candidates:
        kind = "other" if candidate["status"] == "not_attention" else "site"
        numbered.append({"id": f"{kind}-{counts[kind]}", **candidate})
        counts[kind] += 1
    return numbered


def _entry(entry: AttentionSite | Written | Verdict | Decision, target: Target, view: GraphView) -> dict[str, Any]:
    if isinstance(entry, Verdict):
        return {**_unread(entry), **_verdict(entry), "changes": [], "landing": _landing(target, view, entry)}
    site = entry.site if isinstance(entry, Decision) else entry
    form = entry.form if isinstance(entry, Decision) else None
    change = entry.adaptation if isinstance(entry, Decision) else AS_IT_STANDS
    return {
        **_site(site, view),
        **_verdict(None),
        "changes": list(entry.changes) if isinstance(entry, Decision) else [],
        "landing": _landing(target, view, site, form, change),
    }


def _landing(
    target: Target, view: GraphView, candidate: Candidate, form: str | None = None, change: Adaptation = AS_IT_STANDS
) -> dict[str, Any] | None:
    """Whether the table expects a site on an attention kernel, in `form` or as it stands; null where it does not know."""
    if target.name != "tensorrt" or (isinstance(candidate, Verdict) and not candidate.attention):
        return None
    facts = adapted_facts(written_facts(view, candidate), change) if form else facts_of(view, candidate)
    found = landing(target, form or standing_form(view, candidate), facts)
    if found is None:
        return None
    row = found.row
    if row is None:
        return {"expected": True, "reason": None, "remedy": None, "evidence": None}
    return {"expected": False, "reason": row.reason, "remedy": row.remedy, "evidence": row.source}


def _fused_entry(fusion: Fusion, entry: AttentionSite | Written | Verdict | Decision) -> dict[str, Any]:
    document = _entry(entry, fusion.target, fusion.view)
    if not isinstance(entry, Decision):
        form = entry.form if isinstance(entry, Written) else None
        nothing = {"packed": False, "algebra": [], "unpacked_because": None, "notes": []}
        nothing |= {"algebra_left": {}, "changes_left": {}, "folded": []}
        return {**document, "form": form, **nothing, "certificate": None}
    certificate = fusion.certificates.get(entry.key)
    edit = fusion.edits.get(entry.key)
    if edit is None and certificate is not None:
        code = "proof-failed" if certificate.provable else "unprovable-here"
        failed = Verdict(entry.site.name, code, entry.site.name, certificate.failure or "")
        document |= {
            "status": "refused",
            **_verdict(failed),
            "changes": [],
            "landing": _landing(fusion.target, fusion.view, entry.site),
        }
    written = edit is not None or entry.key in fusion.kept
    return {
        **document,
        "form": entry.form if written else None,
        "packed": written and entry.packed,
        "algebra": list(edit.algebra) if edit is not None else [],
        "algebra_left": fusion.algebra_left(entry),
        "changes_left": fusion.changes_left(entry),
        "folded": [list(fusion.view.worlds[0].shape(name) or ()) for name in edit.folded] if edit is not None else [],
        "unpacked_because": entry.unpacked,
        "notes": list(entry.site.notes),
        "certificate": _certificate(certificate, fusion.view),
    }


def _site(site: AttentionSite | Written, view: GraphView) -> dict[str, Any]:
    projection = site.projection.kind if isinstance(site, AttentionSite) and site.projection else "none"
    window = read_window(view, site)
    return {
        "softmax": site.name,
        "status": "site",
        "heads": site.heads,
        "kv_heads": site.kv_heads,
        "head_dim": site.head_dim,
        "value_dim": site.value_dim,
        "scale": site.scale,
        "causal": site.causal or blocks_later_keys(view, site.masks),
        "masks": [
            {"kind": kind, "shape": view.named_shape(term.mask)}
            for term, kind in zip(site.masks, mask_kinds(view, site, window), strict=True)
            if term.mask is not None
        ],
        "projection": projection,
        "window": _window(window),
        "rotary": _rotary(*read_rotary(view, site)),
    }


def _unread(verdict: Verdict) -> dict[str, Any]:
    unread = dict.fromkeys(("heads", "kv_heads", "head_dim", "value_dim", "scale", "causal"))
    status = "refused" if verdict.attention else "not_attention"
    nothing: dict[str, Any] = {"masks": [], "projection": "none", "window": None, "rotary": None}
    return {"softmax": verdict.name, "status": status, **unread, **nothing}


def _window(window: Window | None) -> dict[str, Any] | None:
    """By axis of the map; `kind` says how its tokens lie, `padding` what is added in front of the map and behind it."""
    if window is None:
        return None
    sizes = {"size": list(window.size), "shift": list(window.shift), "grid": list(window.grid)}
    return {**sizes, "kind": window.kind, "padding": [list(each) for each in window.padding]}


def _rotary(query: Rotary | None, key: Rotary | None) -> dict[str, Any] | None:
    """`of`: the operands that have one; operand by operand where they are not alike. `first`: the first channel that is rotated,
    `dim`: how many are. `all_tokens`: whether none stays as it is, as class tokens do."""
    found = {role: rotary for role, rotary in (("query", query), ("key", key)) if rotary is not None}
    if not found:
        return None
    each = {
        role: {"kind": rotary.kind, "dim": rotary.dim, "first": rotary.first, "all_tokens": rotary.whole}
        for role, rotary in found.items()
    }
    first = next(iter(each.values()))
    if all(other == first for other in each.values()):
        return {**first, "of": list(found)}
    return {**dict.fromkeys(first), "of": list(found), **each}


def _verdict(verdict: Verdict | None) -> dict[str, Any]:
    if verdict is None:
        return dict.fromkeys(("code", "node", "reason", "remedy"))
    return {"code": verdict.code, "node": verdict.node, "reason": verdict.reason, "remedy": verdict.remedy}


def _certificate(certificate: Certificate | None, view: GraphView) -> dict[str, Any] | None:
    if certificate is None:
        return None
    return {
        "ok": certificate.ok,
        **_difference(certificate.own),
        "cases": certificate.cases,
        "float64": _difference(certificate.exact),
        "error_against_float64": _errors(certificate.errors),
        "bound": certificate.bound,
        "large_logits": _difference(certificate.large) if certificate.large is not None else None,
        "failure": certificate.failure,
        "like": certificate.like,
        "reduced": {str(size): shorter for size, shorter in certificate.reduced.items()}
        if certificate.reduced
        else None,
        "sizes": [dict(world.sizes) for world in view.worlds],
        "inputs": [_tried(each) for each in certificate.tried],
        "between": _between(certificate.between) if certificate.between is not None else None,
    }


def _tried(tried: Tried) -> dict[str, Any]:
    """One case: its kind, at the sizes of this number, and how far it is off."""
    kind, _, number = tried.case.partition("@")
    before, after = tried.errors if tried.errors is not None else (None, None)
    told = {"max_rel": tried.own, "float64": tried.exact, "error_before": before, "error_after": after}
    return {"kind": kind, "at": int(number), **{key: each.max_rel if each else None for key, each in told.items()}}


def _between(between: Between) -> dict[str, Any]:
    """The values that the site lies between, which the model has before and after: what `verify --certificate` cuts out again."""
    return {
        "start": list(between.start),
        "outputs": list(between.outputs),
        "masks": dict(between.masks),
        "values": between.values,
        "overflows": between.overflows,
        "extremes": between.extremes,
    }


def _errors(errors: Errors | None) -> dict[str, dict[str, float]] | None:
    """A site's own distance from the truth, beside the original's."""
    if errors is None:
        return None
    before, after = errors
    return {"before": _difference(before), "after": _difference(after)}


def _difference(found: Difference) -> dict[str, float]:
    return {"max_abs": found.max_abs, "max_rel": found.max_rel}


def _rechecked(found: Rechecked) -> dict[str, Any]:
    return {
        "site": found.site,
        "softmax": found.softmax,
        "ok": found.ok,
        "cases": found.cases,
        **(_difference(found.own) if found.own is not None else dict.fromkeys(("max_abs", "max_rel"))),
        "bound": found.bound,
        "error_against_float64": _errors(found.errors),
        "reason": found.reason,
    }


def verification(
    first: str,
    second: str,
    found: WholeProof,
    cases: Sequence[Mapping[str, np.ndarray]],
    checked: Sequence[Rechecked] | None = None,
) -> dict[str, Any]:
    """The report of `verify`. checked: what became of certificates."""
    return {
        "a": first,
        "b": second,
        **_difference(found.worst),
        "ok": found.ok and all(each.ok is not False for each in checked or ()),
        "cases": found.cases,
        "rtol": found.rtol,
        "atol": found.atol,
        "certificates": [_rechecked(each) for each in checked] if checked is not None else None,
        "shapes": [{name: list(value.shape) for name, value in case.items()} for case in cases],
        "outputs": [
            {"name": name, **_difference(each), "agrees": each.agrees, "ok": name not in found.failing}
            for name, each in found.outputs.items()
        ],
    }
