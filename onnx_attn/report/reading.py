"""How a site was read and where it ended, as short texts: for tables, and for the page."""

from __future__ import annotations

import re
from typing import Any

Report = dict[str, Any]

_NUMBER = re.compile(r"_myl\d+_\d+$")
"""At the end of a kernel's name: its number in the engine."""


def heads_text(site: Report) -> str:
    """`12`, or `32/8` where heads of keys and values are shared."""
    return str(site["heads"]) if site["heads"] == site["kv_heads"] else f"{site['heads']}/{site['kv_heads']}"


def masks_text(site: Report) -> str:
    masks = ["causal"] if site["causal"] else []
    masks += [f"{mask['kind']} {'×'.join(str(size) for size in mask['shape'])}" for mask in site["masks"]]
    return ", ".join(masks) or "none"


def projection_text(site: Report) -> str:
    """`triplet → packed` where three layers became one."""
    packing = " → packed" if site.get("packed") and site["projection"] == "triplet" else ""
    return f"{site['projection']}{packing}"


def window_text(window: Report | None) -> str:
    """`7×7 +3,3`: the size, the kind where that is not windows of neighbours in order, and the shift where there is one."""
    if window is None:
        return ""
    kind = "" if window["kind"] == "window" else f" {window['kind']}"
    shift = f" +{','.join(map(str, window['shift']))}" if any(window["shift"]) else ""
    return "×".join(map(str, window["size"])) + kind + shift


def rotary_text(rotary: Report | None) -> str:
    """`half 64`: the kind and how many channels of a head, operand by operand where these are not alike."""
    if rotary is None:
        return ""
    if rotary["kind"] is None:
        return ", ".join(f"{role} {rotary[role]['kind']} {rotary[role]['dim']}" for role in rotary["of"])
    return f"{rotary['kind']} {rotary['dim']}" + (f", {rotary['of'][0]} alone" if len(rotary["of"]) == 1 else "")


def kernel_family(kernel: str) -> str:
    """`_gemm_mha_v2_myl0_3` without the number of the kernel."""
    return _NUMBER.sub("", kernel)
