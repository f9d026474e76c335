"""A model as `inspect` reads it, changed by nobody: its candidates, and where the site of each id lies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_attn.decision import Choice
from onnx_attn.errors import UsageError
from onnx_attn.graph.load import Loaded
from onnx_attn.graph.opset import LEAST_OPSET, raise_opset
from onnx_attn.graph.view import GraphView
from onnx_attn.nested import Block, blocks, is_nested, with_calls_inlined, with_functions_inlined, with_windows_inlined
from onnx_attn.operators.microsoft.model import Outcome, without_microsoft
from onnx_attn.operators.plain import with_plain_operators
from onnx_attn.options import Address
from onnx_attn.plan import has_sites, is_attention
from onnx_attn.prepared import has_runtime_operators, keeps_runtime_operators
from onnx_attn.site import Candidate
from onnx_attn.targets.editions import Target


@dataclass(frozen=True)
class Reading:
    """The model that was read, with functions inlined around attention and operators spelled out, and what was found in it."""

    loaded: Loaded
    view: GraphView
    candidates: list[Candidate]
    outcome: Outcome

    @property
    def blocks(self) -> list[Block]:
        """The bodies of If, Loop and Scan in which attention lies."""
        return blocks(self.loaded.proto, self.view.worlds, self.candidates) if is_nested(self.candidates) else []


def read_model(loaded: Loaded, target: Target) -> Reading:
    """Recognise; `loaded` stays as it is."""
    loaded = with_windows_inlined(loaded)
    view, outcome = GraphView(loaded.proto), Outcome()
    if not keeps_runtime_operators(target, [Choice()]) and has_runtime_operators(view):
        raised = _raised(loaded) if view.opset < LEAST_OPSET else None
        if raised is not None:
            return read_model(raised, target)
        loaded, view, outcome = without_microsoft(loaded, view, None, own=False)
    loaded, view, candidates = with_functions_inlined(loaded, view, own=False)
    loaded, view, candidates = with_plain_operators(loaded, view, candidates, own=False)
    if view.opset < LEAST_OPSET and has_sites(candidates):
        raised = _raised(loaded)
        if raised is not None:
            return read_model(raised, target)
    return Reading(loaded, view, outcome.told(candidates), outcome)


def _raised(loaded: Loaded) -> Loaded | None:
    """A copy of a higher opset; None where that cannot be had."""
    raised = loaded.copy()
    return raised if raise_opset(raised.proto, LEAST_OPSET) is None else None


@dataclass(frozen=True)
class Found:
    """Where the site of an id lies, and its name. The address is that of `Expansion.sites`."""

    address: Address
    name: str


def find_sites(loaded: Loaded, target: Target) -> list[Found]:
    """All attention sites in the order of their ids, those of bodies where `inspect` counts them."""
    reading = read_model(loaded, target)
    inside: dict[int, list[Found]] = {}
    for number, block in enumerate(reading.blocks):
        own = find_sites(Loaded(block.body.model, loaded.name), target)
        inside |= {place: [] for place in block.places}
        inside[block.places[0]] = [Found((number, *each.address), each.name) for each in own]
    found, main = list[Found](), 0
    for place, candidate in enumerate(reading.candidates):
        own_site = [Found((main,), candidate.name)] if is_attention(candidate) else []
        main += len(own_site)
        found += inside.get(place, own_site)
    return found


def site_of(site: str, found: Sequence[Found]) -> Found:
    """The site of an id of `inspect`. Raises UsageError where there is none."""
    ids = {f"site-{number}": each for number, each in enumerate(found)}
    if site not in ids:
        raise UsageError(f"the model has no '{site}'; `onnx-attn inspect` shows the ids of its sites")
    return ids[site]


def open_site(loaded: Loaded, address: Address, target: Target) -> tuple[GraphView, Candidate]:
    """The candidate at an address, with calls of our functions taken apart, in the model or the body that it lies in."""
    loaded = loaded.copy()
    with_calls_inlined(loaded, None)
    reading = read_model(loaded, target)
    if len(address) > 1:
        body = reading.blocks[address[0]].body
        return open_site(Loaded(body.model, loaded.name), address[1:], target)
    return reading.view, [each for each in reading.candidates if is_attention(each)][address[0]]
