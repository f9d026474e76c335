"""Modules that hold one attention site each, written the ways that people write them, and one with none."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SelfAttention(nn.Module):
    """A bare nn.MultiheadAttention applied to one source; returns its output alone."""

    def __init__(
        self, width: int, heads: int, batch_first: bool = True, bias: bool = True, averaged: bool = False
    ) -> None:
        super().__init__()
        self.averaged = averaged
        self.attention = nn.MultiheadAttention(width, heads, bias=bias, batch_first=batch_first)

    def forward(self, x: Tensor) -> Tensor:
        """The attention output; the weights, where asked for, are thrown away."""
        return self.attention(x, x, x, need_weights=self.averaged)[0]


class WeightedSelfAttention(nn.Module):
    """nn.MultiheadAttention whose weights are an output of the model too."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The attention output and the weights averaged over heads."""
        output, weights = self.attention(x, x, x, need_weights=True)
        return output, weights


class ScaledDotProduct(nn.Module):
    """F.scaled_dot_product_attention on (batch, heads, sequence, head) inputs."""

    def __init__(self, scale: float | None = None, causal: bool = False, prescaled: bool = False) -> None:
        super().__init__()
        self.scale = 1.0 if prescaled else scale
        self.causal = causal
        self.prescaled = prescaled

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention output; with `prescaled`, Q is scaled here and the operator's scale is one."""
        if self.prescaled:
            q = q * q.shape[-1] ** -0.5
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=self.scale)


class MaskedScaledDotProduct(nn.Module):
    """F.scaled_dot_product_attention with a float mask."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """The attention output under an additive mask."""
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


class GroupedScaledDotProduct(nn.Module):
    """F.scaled_dot_product_attention whose query heads share heads of K and V."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """The attention output."""
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


class GroupedBlock(nn.Module):
    """Biased projections of unequal widths, heads of K and V repeated, and an output layer."""

    def __init__(self, width: int, heads: int, kv_heads: int) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.size = heads, kv_heads, width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, kv_heads * self.size)
        self.value = nn.Linear(width, kv_heads * self.size)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """The attention output."""
        batch, sequence, _ = x.shape
        q = self.query(x).view(batch, sequence, self.heads, self.size).transpose(1, 2)
        k, v = (
            layer(x).view(batch, sequence, self.kv_heads, self.size).transpose(1, 2) for layer in (self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return self.out(y.transpose(1, 2).reshape(batch, sequence, self.heads * self.size))


class TextCrossAttention(nn.Module):
    """Places of a picture that ask a text, as in diffusers' UNets: no biases but the last, residual sum."""

    def __init__(self, width: int, text: int, heads: int) -> None:
        super().__init__()
        self.heads, self.size = heads, width // heads
        self.norm = nn.LayerNorm(width)
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(text, width, bias=False)
        self.to_v = nn.Linear(text, width, bias=False)
        self.to_out = nn.Linear(width, width)

    def split(self, x: Tensor) -> Tensor:
        """(batch, sequence, width) to (batch, heads, sequence, head)."""
        return x.view(x.shape[0], -1, self.heads, self.size).transpose(1, 2)

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        """The places with what they read of the text added."""
        q = self.split(self.to_q(self.norm(x)))
        y = F.scaled_dot_product_attention(q, self.split(self.to_k(text)), self.split(self.to_v(text)))
        return x + self.to_out(y.transpose(1, 2).reshape(x.shape))


class _Handwritten(nn.Module):
    """Three projections of one source to heads, and the way back."""

    def __init__(self, width: int, heads: int, bias: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.size = width // heads
        self.query = nn.Linear(width, width, bias=bias)
        self.key = nn.Linear(width, width, bias=bias)
        self.value = nn.Linear(width, width, bias=bias)
        self.out = nn.Linear(width, width, bias=bias)

    def split(self, x: Tensor) -> Tensor:
        """(batch, sequence, width) to (batch, heads, sequence, head)."""
        batch, sequence, _ = x.shape
        return x.view(batch, sequence, self.heads, self.size).transpose(1, 2)

    def merge(self, x: Tensor) -> Tensor:
        """(batch, heads, sequence, head) to (batch, sequence, width)."""
        batch, _, sequence, _ = x.shape
        return x.transpose(1, 2).reshape(batch, sequence, self.heads * self.size)


class Handwritten(_Handwritten):
    """MatMul, Div, Add of a mask, Softmax, (Dropout,) MatMul; every linear layer has a bias."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__(width, heads)
        self.dropout = nn.Dropout(dropout) if dropout else None

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """The attention output under an additive mask."""
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.size) + mask
        probabilities = torch.softmax(scores, dim=-1)
        if self.dropout is not None:
            probabilities = self.dropout(probabilities)
        return self.out(self.merge(torch.matmul(probabilities, v)))


class HandwrittenPlain(_Handwritten):
    """Mul of Q by the scale, MatMul, Softmax, MatMul; no bias and no mask."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The attention output."""
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(q * self.size**-0.5, k.transpose(-1, -2))
        return self.out(self.merge(torch.matmul(scores.softmax(dim=-1), v)))


class ConvClassifier(nn.Module):
    """Convolutions, a small MLP and a softmax over classes: no attention at all."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, kernel_size=3, stride=2, padding=1)
        self.body = nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1)
        self.hidden = nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """The probability of each class."""
        x = F.relu(self.body(F.relu(self.stem(image)))).mean(dim=(2, 3))
        return torch.softmax(self.head(F.relu(self.hidden(x))), dim=-1)
