"""Gather and GatherND that name entries of the batch and pick within them alone, by indices that are stored.

Exporters write an indexing by (arange(B), j) so, as masks of attention have it, and a strided view:
  Gather over an axis (B·r), indices b·r + j  →  (n, r) apart, and j picked of r; a Reshape where j counts through r
  GatherND, coordinates (b, j)                →  the same, r being what the other coordinates name
At B = 1 a 0 may be the only entry as well as the first. It is taken for the former where an index names more than the entry and
the result has an axis of 1 in front.
"""

from __future__ import annotations

import math

import numpy as np
from onnx import helper

from onnx_attn.batch.place import FREE, Batch, Blocked, Place
from onnx_attn.batch.step import Step
from onnx_attn.views.folding import constant_value

PICKS = "it picks entries of the batch"


def gather_of_entries(step: Step, data: Batch) -> Place:
    """Gather along the batch's own axis."""
    inner = step.reading.inner(step.inputs[0], data)
    indices = _stored(step, 1)
    if indices.ndim == 0 or not data.is_outermost or len(set(inner)) > 1 or step.reading.batch * inner[0] == 1:
        raise Blocked(PICKS)
    picked = _within(indices, step.reading.batch, inner[0])
    shape = step.shape(0)
    _write(step, data, picked, inner[0], shape[: data.axis], shape[data.axis + 1 :])
    return data


def gather_nd_of_entries(step: Step, data: Batch) -> Place:
    """GatherND, the first of whose coordinates is the entry."""
    coordinates = _stored(step, 1)
    depth, shape = coordinates.shape[-1], step.shape(0)
    plain = data.axis == 0 and step.reading.inner(step.inputs[0], data) == [1] * len(data.outer)
    if not plain or not data.is_outermost or depth < 2 or coordinates.ndim < 2 or step.attribute("batch_dims", 0):
        raise Blocked(PICKS)
    sizes = shape[:depth]
    coordinates = np.where(coordinates < 0, coordinates + np.asarray(sizes), coordinates)
    flat = np.ravel_multi_index(tuple(np.moveaxis(coordinates, -1, 0)), sizes)
    picked = _within(flat, step.reading.batch, math.prod(sizes[1:]))
    _write(step, data, picked, math.prod(sizes[1:]), (), shape[depth:])
    return data


def _stored(step: Step, position: int) -> np.ndarray:
    name, view = step.inputs[position], step.reading.view
    value = step.reading.value(name)
    if value is None and step.place(position) is FREE and name in view.tensors:
        value = constant_value(view, view.tensors[name])
    if value is None:
        raise Blocked(f"{PICKS}, which ones is not known")
    return value


def _within(indices: np.ndarray, batch: int, inner: int) -> np.ndarray:
    """What each entry picks within itself, as (·, …): the leading axis of the result is (B·that). Raises Blocked where entries do
    not pick alike, or of others."""
    indices = np.where(indices < 0, indices + batch * inner, indices)
    if indices.shape[0] % batch or (batch == 1 and indices.shape[0] != 1):
        raise Blocked(PICKS)
    blocks = indices.reshape(batch, -1, *indices.shape[1:])
    own = blocks - inner * np.arange(batch).reshape(-1, *[1] * indices.ndim)
    if (own != own[:1]).any() or own.min(initial=0) < 0 or own.max(initial=0) >= inner:
        raise Blocked(PICKS)
    found: np.ndarray = own[0]
    return found


def _write(
    step: Step, data: Batch, picked: np.ndarray, inner: int, before: tuple[int, ...], after: tuple[int, ...]
) -> None:
    """(before, n·inner, after) → (before, n, inner, after) → (before, n·k, …, after), for `picked` of shape (k, …)."""
    if len({shape[: data.axis] + shape[data.axis + 1 :] for shape in step.baked(0)}) > 1:
        raise Blocked(f"{PICKS}, where other sizes vary too")
    result = (*before, -1, *picked.shape[1:], *after)
    node = step.node
    source = step.inputs[0]
    if not np.array_equal(picked.reshape(-1), np.arange(inner)):
        apart = step.constant([*before, -1, inner, *after])
        place = data.at(len(before))
        source = step.add("Reshape", [source, apart], "entries", place)
        indices = step.constant(picked.reshape(-1).astype(np.int64))
        source = step.add("Gather", [source, indices], "picked", place, axis=len(before) + 1)
    step.instead = helper.make_node("Reshape", [source, step.constant(result)], list(node.output), name=node.name)
