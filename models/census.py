"""The true count of attention sites: what the module really calls when it runs.

A site is one call of scaled_dot_product_attention, or one softmax that turns scores into the
probabilities that weigh the values. Softmaxes of another kind are listed below with the reason.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from models.quiet import fastpath_off

NOT_ATTENTION: dict[str, str] = {
    "models.modules.ConvClassifier": "the softmax is over the classes of the result",
    "timm.models.volo.OutlookAttention": "a linear layer predicts the weights: there are no keys",
    "timm.models.coat.FactorAttnConvRelPosEnc": "the softmax is over keys alone, before they meet values: linear attention",
}
"""Qualified class of the module that calls a softmax, and why that softmax is no attention."""

_OPERATORS = frozenset({F.scaled_dot_product_attention})
_SOFTMAXES = frozenset({torch.softmax, F.softmax, Tensor.softmax, torch._softmax, torch.special.softmax})
_WRAPPERS = (nn.Softmax, nn.Dropout, nn.Identity)


def _qualified(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _never(*_: object) -> bool:
    return False


def _opened(function: Callable[..., Any]) -> Callable[..., Any] | None:
    """A Python composite of F (such as multi_head_attention_forward) without its own override check.

    The original asks whether a mode is active and hands itself to the mode again, without end; run
    outside the mode, its inside is not seen. None for what is no such composite.
    """
    if not isinstance(function, types.FunctionType) or function.__globals__ is not vars(F):
        return None
    checks = {name: _never for name in function.__globals__ if name.startswith("has_torch_function")}
    opened = types.FunctionType(
        function.__code__,
        {**function.__globals__, **checks},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


class Census(TorchFunctionMode):
    """Counts the attention sites called while it is active."""

    def __init__(self) -> None:
        super().__init__()
        self.sites: list[str] = []
        self.others: list[str] = []
        self._stack: list[nn.Module] = []

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Record a site, look inside composites, and leave the rest alone."""
        kwargs = kwargs or {}
        if func in _OPERATORS:
            self.sites.append(self._owner())
        elif func in _SOFTMAXES:
            owner = self._owner()
            (self.others if owner in NOT_ATTENTION else self.sites).append(owner)
        elif (opened := _opened(func)) is not None:
            with self:
                return opened(*args, **kwargs)
        return func(*args, **kwargs)

    def _owner(self) -> str:
        """The class of the innermost module running, but for the mere wrappers of a function."""
        inner = (module for module in reversed(self._stack) if not isinstance(module, _WRAPPERS))
        owner = next(inner, None)
        return _qualified(owner) if owner is not None else ""

    @contextmanager
    def watching(self, module: nn.Module) -> Iterator[None]:
        """Follow which part of the module is running."""
        handles = []
        for part in module.modules():
            handles.append(part.register_forward_pre_hook(lambda entered, _: self._stack.append(entered)))
            handles.append(part.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        self._stack.pop()


def take(module: nn.Module, args: tuple[Tensor, ...]) -> Census:
    """Run the module once and return what was seen."""
    census = Census()
    with torch.no_grad(), fastpath_off(), census.watching(module), census:
        module(*args)
    return census


def count_sites(module: nn.Module, args: tuple[Tensor, ...]) -> int:
    """The true number of attention sites of the module, by running it once on the arguments."""
    return len(take(module, args).sites)
