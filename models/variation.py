"""Seeded values for every parameter, so that none is zero, one or constant by its initialisation.

A parameter left at its initial zeros (most biases, class tokens, some position embeddings and heads) would
hide a rewrite that drops or misplaces it.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SMALL = 0.1
EMBEDDING = 0.5
LOGIT = math.log(10.0)
"""Where a learned logarithm of a scale starts: near zero, cosines weigh all keys alike and hide what is wrong."""


def _transposed(owner: nn.Module) -> bool:
    """Whether the owner stores its weight as (in, out), as GPT-2's Conv1D does."""
    return type(owner).__name__ == "Conv1D"


def _fan_in(owner: nn.Module, parameter: Tensor) -> int:
    if _transposed(owner):
        return parameter.shape[0]
    return math.prod(parameter.shape[1:])


def _is_scale(owner: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether this multiplies a normalised value, and so belongs near one."""
    return name == "weight" and parameter.dim() == 1 and "Norm" in type(owner).__name__


def _is_weight(owner: nn.Module, name: str, parameter: Tensor) -> bool:
    """Whether this is the matrix or kernel of a linear map."""
    return name.endswith("weight") and parameter.dim() >= 2 and not isinstance(owner, nn.Embedding)


def _values(owner: nn.Module, name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(parameter.shape, generator=generator)
    if _is_scale(owner, name, parameter):
        return 1.0 + SMALL * noise
    if _is_weight(owner, name, parameter):
        return noise / math.sqrt(_fan_in(owner, parameter))
    if name.endswith("bias"):
        return SMALL * noise
    if name == "logit_scale":
        return LOGIT + EMBEDDING * noise
    return EMBEDDING * noise


def vary(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every parameter of the module seeded values, and make it ready to run: eval, no gradients.

    Weights are scaled by their fan-in so that activations stay within half precision. Buffers stay as
    they are.
    """
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    seen: set[int] = set()
    with torch.no_grad():
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False):
                if id(parameter) in seen:
                    continue
                seen.add(id(parameter))
                parameter.copy_(_values(owner, name, parameter, generator))
    return module.eval().requires_grad_(False)
