"""Contexts around running and exporting: no fast path of torch, and no noise."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout

import torch


@contextmanager
def fastpath_off() -> Iterator[None]:
    """Turn off the fused path of nn.MultiheadAttention, which no exporter and no census can look into."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _silent(descriptor: int) -> Iterator[None]:
    """Drop what is written to a descriptor of the process, which is where native code writes."""
    saved = os.dup(descriptor)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), descriptor)
        yield
    finally:
        os.dup2(saved, descriptor)
        os.close(saved)


@contextmanager
def quiet() -> Iterator[None]:
    """Drop warnings, log records and what is printed, by Python or by native code."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(_silent(1))
            stack.enter_context(_silent(2))
            stack.enter_context(redirect_stdout(io.StringIO()))
            stack.enter_context(redirect_stderr(io.StringIO()))
            yield
    finally:
        logging.disable(before)
