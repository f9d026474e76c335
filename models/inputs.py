"""Example inputs, the same on every run."""

from __future__ import annotations

import torch
from torch import Tensor

MASKED = -10000.0


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    """A float input of standard normal values."""
    return torch.randn(*shape, generator=_generator(seed))


def tokens(batch: int, length: int, vocabulary: int, seed: int = 0) -> Tensor:
    """Token numbers, int64."""
    return torch.randint(0, vocabulary, (batch, length), generator=_generator(seed))


def boxes(batch: int, length: int) -> Tensor:
    """Where words stand on a page: int64 corners `(batch, length, 4)`, left before right and top before bottom."""
    corners = torch.randint(0, 500, (batch, length, 2), generator=_generator(1))
    return torch.cat([corners, corners + torch.randint(1, 500, (batch, length, 2), generator=_generator(2))], dim=-1)


def padding(batch: int, length: int) -> Tensor:
    """An int64 padding mask of ones whose last row ends in a quarter of zeros."""
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[-1, length - length // 4 :] = 0
    return mask


def left_padding(batch: int, length: int) -> Tensor:
    """The same for what goes on at the end: the last row begins with a quarter of zeros."""
    return padding(batch, length).flip(1)


def additive_padding(batch: int, length: int) -> Tensor:
    """The padding mask as a float to add to scores, (batch, 1, 1, length): 0 or a large negative value."""
    return (1.0 - padding(batch, length).float())[:, None, None, :] * MASKED


def additive_scores(batch: int, length: int, seed: int = 0) -> Tensor:
    """A float mask over queries and keys, (batch, 1, length, length): a varied bias, and padding."""
    bias = torch.randn(batch, 1, length, length, generator=_generator(seed))
    return bias + additive_padding(batch, length)


def causal_scores(length: int) -> Tensor:
    """A float mask `(length, length)` that blocks later keys."""
    return torch.full((length, length), MASKED).triu(1)


def blocked_keys(batch: int, length: int) -> Tensor:
    """The padding mask as torch's modules take it, `(batch, length)`: True blocks."""
    return padding(batch, length) == 0


def allowed_scores(batch: int, length: int) -> Tensor:
    """A boolean mask `(batch, 1, length, length)` as F.scaled_dot_product_attention takes it: True attends."""
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    return causal[None, None] & (padding(batch, length) == 1)[:, None, None, :]
