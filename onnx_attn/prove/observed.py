"""What a site gets to see in the whole model: the values that it begins with, as the model computes them.

Random values say nothing of how large a model's logits are, and half precision rounds large ones most: what changes the type is
proved on these too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from onnx_attn.graph.edit import SiteEdit
from onnx_attn.prove.cases import Case
from onnx_attn.prove.cut import Cut, Cutter, boundary
from onnx_attn.runtime import Session
from onnx_attn.site import AttentionSite

Values = Mapping[str, np.ndarray]


def observe(
    cutter: Cutter, sites: Sequence[tuple[AttentionSite, SiteEdit]], inputs: Sequence[Values], name: str
) -> list[Values]:
    """The values at which these sites begin, for each set of model inputs; the model runs once for each.

    Raises CannotRun where ONNX Runtime does not run the model.
    """
    names = {value for site, edit in sites for value in boundary(cutter.view, site, edit).difference(edit.outputs)}
    computed = sorted(value for value in names if (node := cutter.view.tensors.get(value)) is not None and node.inputs)
    if not computed:
        return list(inputs)
    cut = cutter.cut(computed, set(), kinds="")
    session = Session(cut.model, name)
    found: list[Values] = []
    for given in inputs:
        results = session.run({key: given[key] for key in cut.inputs})
        found.append({**given, **dict(zip(session.outputs, results, strict=True))})
    return found


def observed_cases(cutter: Cutter, cut: Cut, observed: Sequence[Values], exact: bool) -> list[Case]:
    """The same as cases of a cut, to be compared in float64 too if `exact`; none where nothing was observed, or not all that the
    cut wants."""
    found = []
    for number, (world, values) in enumerate(zip(cutter.view.worlds, observed, strict=False)):
        known = {name: world.value(name) for name in cut.known}
        inputs = {name: values[name] for name in cut.inputs if name in values}
        inputs |= {name: value for name, value in known.items() if value is not None}
        if len(inputs) == len(cut.inputs) + len(cut.known):
            found.append(Case(f"model@{number}", {name: _wide(value) for name, value in inputs.items()}, True, exact))
    return found


def _wide(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float64) if value.dtype.kind in "fV" else value
