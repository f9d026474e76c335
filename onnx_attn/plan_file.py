"""The plan as JSON: what will be done to each attention site, to be read, edited and replayed.

    {"onnx_attn_plan": 1, "model": "vit.onnx", "fingerprint": "…", "target": "tensorrt", "target_version": "10.0",
     "sites": [{"id": "site-0", "softmax": "/attn/Softmax", "apply": true, "form": "function", "pack": true,
                "algebra": ["constant-channel", "scale"], "changes": ["padded-heads"],
                "placement": {"split": "heads", "bias": "packed", "scale": "query"}}, …]}

`"dynamic_batch": true` stands beside them where a baked batch was made dynamic; sites and fingerprint are of the model as it was.

A site that is refused stands there with `apply` false and its code and reason, which nobody can edit away. The fingerprint is of
the graph's structure (nodes, their attributes and connections, types and shapes of inputs, outputs and weights) and not of
the weights' numbers: a plan fits a model that was trained further, and costs one pass over the nodes.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx

from onnx_attn.algebra.choose import IDENTITIES
from onnx_attn.decision import ADDITIVE, RECOMPUTED, ROTARY, TOKENS_FIRST, Choice, Decision
from onnx_attn.errors import UsageError
from onnx_attn.forms.adaptation import ISLANDS, PADDED, QUANTISED, island_name
from onnx_attn.forms.placement import BIASES, SCALES, SPLITS, Placement
from onnx_attn.json_file import read_json
from onnx_attn.plan import Plan
from onnx_attn.site import Verdict
from onnx_attn.targets.editions import Target, parse_target
from onnx_attn.targets.rows import FORMS

FORMAT = 1
Document = dict[str, Any]
_HEAD = ("onnx_attn_plan", "model", "fingerprint", "target", "target_version", "sites")
_EXTRAS = ("search", "dynamic_batch")
_SITE = ("id", "softmax", "apply", "form", "pack", "algebra", "code", "reason", "changes", "placement")
_PLACES = {"split": SPLITS, "bias": BIASES, "scale": SCALES}


@dataclass(frozen=True)
class ReadPlan:
    """A plan as it was given: its choices in the order of the model's attention sites; None for a site that was refused."""

    name: str
    fingerprint: str
    target: Target
    softmaxes: tuple[str, ...]
    choices: tuple[Choice | None, ...]
    dynamic_batch: bool = False


MOST_BYTES = 2**16
"""Of an attribute that is told as it is."""


def fingerprint(proto: onnx.ModelProto) -> str:
    """A digest of the graph's structure."""
    digest = hashlib.sha256()

    def add(*parts: object) -> None:
        digest.update(repr(parts).encode())

    for node in proto.graph.node:
        attributes = sorted(map(_contents, node.attribute))
        add(node.domain, node.op_type, list(node.input), list(node.output), attributes)
    for value in (*proto.graph.input, *proto.graph.output):
        add(value.name, value.type.SerializeToString(deterministic=True))
    for tensor in proto.graph.initializer:
        add(tensor.name, tensor.data_type, list(tensor.dims))
    for entry in proto.opset_import:
        add(entry.domain, entry.version)
    return digest.hexdigest()


def _contents(attribute: onnx.AttributeProto) -> bytes:
    """What is in an attribute; of a stored tensor, which may be large, a digest."""
    contents = attribute.SerializeToString(deterministic=True)
    return contents if len(contents) <= MOST_BYTES else hashlib.sha256(contents).digest()


def plan_document(
    name: str, found: str, target: Target, plan: Plan, searched: Document | None = None, dynamic_batch: bool = False
) -> Document:
    """The plan for people and for `read_plan`; `found`: the model's fingerprint; searched: with what the compiler was asked;
    dynamic_batch: whether a baked batch was made dynamic."""
    sites: list[Document] = []
    for entry in plan.attention:
        site: Document = {"id": f"site-{len(sites)}"}
        if isinstance(entry, Verdict):
            site |= {"softmax": entry.name, "apply": False, "form": None, "pack": False, "algebra": []}
            site |= {"code": entry.code, "reason": entry.reason}
        elif isinstance(entry, Decision):
            site |= {"softmax": entry.site.name, "apply": True, "form": entry.form}
            site |= {"pack": entry.packed, "algebra": list(entry.algebra.names)}
            site |= {"changes": list(entry.changes), "placement": asdict(entry.placement)}
        else:
            site |= {"softmax": entry.name, "apply": True, "form": "function", "pack": False, "algebra": []}
        sites.append(site)
    extras: Document = {"search": searched} if searched is not None else {}
    extras |= {"dynamic_batch": True} if dynamic_batch else {}
    return {
        "onnx_attn_plan": FORMAT,
        "model": Path(name).name,
        "fingerprint": found,
        "target": target.name,
        "target_version": target.version,
        "sites": sites,
    } | extras


def load_plan(plan: Document | str | Path) -> ReadPlan:
    """Read a plan from a file, or from a dict.

    Raises InputError for a file that cannot be read, UsageError for one that is no plan, with the entry and the way out.
    """
    if not isinstance(plan, str | Path):
        return read_plan(plan, "plan")
    return read_plan(read_json(Path(plan), "a plan, as --write-plan writes it"), str(plan))


def read_plan(document: Document, name: str) -> ReadPlan:
    """Check a plan and read it. Raises UsageError."""
    _check_keys(document, _HEAD, name, "the plan", (*_HEAD, *_EXTRAS))
    if document["onnx_attn_plan"] != FORMAT:
        raise UsageError(
            f"{name}: is a plan of format {document['onnx_attn_plan']!r}; this version writes and reads {FORMAT}"
        )
    if not isinstance(document["sites"], list):
        raise UsageError(f"{name}: 'sites' is no list; write a plan with --write-plan and edit that")
    version = document["target_version"]
    name_of_target = _of(document, "target", str, name, "the plan")
    # Without a version the target stands for several; what it is called then is no version to ask for.
    target = parse_target(name_of_target)
    if version != target.version:
        target = parse_target(name_of_target, version)
    softmaxes, choices = [], []
    for number, site in enumerate(document["sites"]):
        place = f"site-{number}"
        _check_keys(site, _SITE[:6], name, place, _SITE)
        if site["id"] != place:
            raise UsageError(
                f"{name}: {place} is called {site['id']!r}; leave ids and their order as they were written"
            )
        softmaxes.append(_of(site, "softmax", str, name, place))
        choices.append(_choice(site, name, place))
    found = _of(document, "fingerprint", str, name, "the plan")
    varies = "dynamic_batch" in document and _of(document, "dynamic_batch", bool, name, "the plan")
    return ReadPlan(name, found, target, tuple(softmaxes), tuple(choices), varies)


def _choice(site: Document, name: str, place: str) -> Choice | None:
    apply, refused = _of(site, "apply", bool, name, place), site.get("code") is not None
    if refused:
        if apply:
            raise UsageError(
                f'{name}: {place} was refused ({site["code"]}) and cannot be applied; leave its "apply" false'
            )
        return None
    form, algebra = _of(site, "form", str, name, place), _of(site, "algebra", list, name, place)
    if form not in FORMS:
        raise UsageError(f"{name}: {place} has the form {form!r}; choose {', '.join(FORMS[:-1])} or {FORMS[-1]}")
    for identity in algebra:
        if identity not in IDENTITIES:
            raise UsageError(f"{name}: {place} names the identity {identity!r}; choose of {', '.join(IDENTITIES)}")
    pack, (precision, changes) = _of(site, "pack", bool, name, place), _changes(site, name, place)
    return Choice(
        form,
        pack,
        tuple(algebra),
        apply,
        precision,
        heads="aligned" if PADDED in changes else "kept",
        quantize_probabilities=QUANTISED in changes,
        placement=_placement(site, name, place),
        recompute=RECOMPUTED in changes,
        tokens_first=TOKENS_FIRST in changes,
        rotary=ROTARY in changes,
    )


def _placement(site: Document, name: str, place: str) -> Placement:
    given = _of(site, "placement", dict, name, place) if "placement" in site else {}
    for part, where in given.items():
        if part not in _PLACES:
            raise UsageError(f"{name}: {place} places {part!r}; use {', '.join(_PLACES)}")
        if where not in _PLACES[part]:
            raise UsageError(f"{name}: {place} places {part} at {where!r}; choose of {', '.join(_PLACES[part])}")
    return Placement(**given)


def _changes(site: Document, name: str, place: str) -> tuple[str, list[str]]:
    """The precision of the site's island, and all changes."""
    changes = _of(site, "changes", list, name, place) if "changes" in site else []
    islands = {island_name(precision): precision for precision in ISLANDS}
    for change in changes:
        if change not in (known := (*islands, PADDED, QUANTISED, RECOMPUTED, ADDITIVE, TOKENS_FIRST, ROTARY)):
            raise UsageError(f"{name}: {place} names the change {change!r}; choose of {', '.join(known)}")
    asked = [islands[change] for change in changes if change in islands]
    if len(asked) > 1:
        raise UsageError(f"{name}: {place} has two islands; leave one of them")
    return (asked or ["keep"])[0], changes


def check_fits(plan: ReadPlan, model: str, found: str, sites: list[str]) -> None:
    """Raise UsageError unless the plan is of this model: its structure (`found`: its fingerprint) and its sites, by name."""
    if plan.fingerprint != found or list(plan.softmaxes) != sites:
        raise UsageError(f"{plan.name}: is the plan of another model than {model}; write one for it with --write-plan")


def _check_keys(
    document: object, wanted: tuple[str, ...], name: str, place: str, allowed: tuple[str, ...] | None = None
) -> None:
    if not isinstance(document, Mapping):
        raise UsageError(f"{name}: {place} is no JSON object; write a plan with --write-plan and edit that")
    allowed = allowed or wanted
    for key in document:
        if key not in allowed:
            near = difflib.get_close_matches(str(key), allowed, 1)
            hint = f"did you write it for '{near[0]}'? use that" if near else f"use {', '.join(allowed)}"
            raise UsageError(f"{name}: {place} has a key {key!r} that no plan has; {hint}")
    for key in wanted:
        if key not in document:
            raise UsageError(f"{name}: {place} has no '{key}'; leave the keys that --write-plan wrote")


def _of(document: Mapping[str, Any], key: str, kind: type, name: str, place: str) -> Any:
    value = document[key]
    if not isinstance(value, kind):
        names = {str: "a text", bool: "true or false", list: "a list", dict: "an object"}
        raise UsageError(f"{name}: '{key}' of {place} is {value!r}; write {names[kind]}")
    return value
