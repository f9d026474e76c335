"""Which form ONNX Runtime runs fastest on the CPU: measured for attention blocks of many shapes, written as the data that
`--target onnxruntime` chooses by.

    python tools/runtime_forms.py [-o onnx_attn/targets/onnxruntime_speed.json] [--seconds 15] [--only PATTERN ...]

Each block (LayerNorm, in-projection, attention, out-projection, residual) is exported by torch, fused in every form, and run
beside the export in turn, one thread; a form's figure is the median of its ratios to the export's run beside it. "itself" is the
export in a second session: what the machine's noise makes of no difference. Needs the `export` extra and a quiet machine.
With --only, what is there of other blocks stays.
"""

from __future__ import annotations

import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch
from _bench.inference import ratios
from _commands import Parser, run
from torch import nn

import onnx_attn
from onnx_attn.errors import OnnxAttnError
from onnx_attn.targets.onnxruntime_speed import UNPACKED

DATA = Path(__file__).parent.parent / "onnx_attn/targets/onnxruntime_speed.json"
MASKS = ("none", "additive", "bias", "boolean")
FORMS = ("function", "attention", "contrib")


@dataclass(frozen=True)
class Shape:
    """A block's shape. mask: "none", "additive" (one row for all queries), "bias" (a row for each, and each head), or "boolean",
    causal. dynamic: exported with a batch and lengths that vary."""

    batch: int
    queries: int
    keys: int
    heads: int
    head_dim: int
    mask: str = "none"
    dynamic: bool = False

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.heads}x{self.queries}x{self.keys}x{self.head_dim}.{self.mask}{'.dynamic' * self.dynamic}"


def shapes() -> list[Shape]:
    """What is measured: short to long, few heads to many, windows of a map, a step behind a cache, keys of another sequence."""
    plain = [(1, 16, 4, 8), (2, 64, 4, 32), (1, 64, 12, 64), (1, 197, 12, 64), (8, 128, 12, 64), (1, 512, 12, 64)]
    found = [Shape(b, s, s, n, h) for b, s, n, h in [*plain, (1, 1024, 12, 64), (1, 2048, 6, 64), (64, 49, 3, 32)]]
    found += [Shape(b, s, s, n, h, "additive") for b, s, n, h in [(1, 16, 4, 8), *plain[2:]]]
    found += [Shape(b, s, s, n, h, "bias") for b, s, n, h in [(64, 49, 3, 32), (16, 49, 12, 32), (1, 512, 8, 64)]]
    found += [Shape(b, s, s, n, h, "boolean") for b, s, n, h in [(1, 16, 4, 8), (1, 128, 12, 64), (1, 512, 12, 64)]]
    found += [Shape(1, 1, 512, 12, 64, mask) for mask in ("none", "additive")]
    found += [Shape(1, 64, 512, 8, 64, mask) for mask in ("none", "additive")]
    sizes = [(2, 16, 4, 24), (1, 128, 12, 64), (4, 256, 8, 64)]
    return found + [Shape(b, s, s, n, h, mask, True) for mask in MASKS for b, s, n, h in sizes]


SHAPE = tuple(field.name for field in fields(Shape))


class Block(nn.Module):
    """Attention as people write it."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        wide = shape.heads * shape.head_dim
        self.shape, self.norm = shape, nn.LayerNorm(wide)
        self.query, self.key, self.value, self.out = (nn.Linear(wide, wide) for _ in range(4))
        later = torch.ones(shape.queries, shape.keys, dtype=torch.bool).triu(1 + shape.keys - shape.queries)
        self.register_buffer("later", later)
        self.register_buffer("bias", torch.randn(shape.heads, shape.queries, shape.keys))

    def _heads(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(-1, (self.shape.heads, self.shape.head_dim)).transpose(1, 2)

    def forward(
        self, x: torch.Tensor, memory: torch.Tensor | None = None, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        normed = self.norm(x)
        other = normed if memory is None else memory
        query, key, value = (
            self._heads(self.query(normed)),
            self._heads(self.key(other)),
            self._heads(self.value(other)),
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(self.shape.head_dim)
        queries, keys = scores.shape[-2:]
        if self.shape.mask == "bias":
            scores = scores + self.bias[:, :queries, :keys]
        if self.shape.mask == "boolean":
            scores = scores.masked_fill(self.later[:queries, :keys], float("-inf"))
        if mask is not None:
            scores = scores + mask
        return x + self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def export(shape: Shape, path: Path) -> None:
    torch.manual_seed(0)
    wide = shape.heads * shape.head_dim
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", max=shape.keys)
    given = {"x": torch.randn(shape.batch, shape.queries, wide)}
    varied = {"x": {0: batch, 1: length}}
    if shape.keys != shape.queries:
        given["memory"] = torch.randn(shape.batch, shape.keys, wide)
    if shape.mask == "additive":
        given["mask"], varied["mask"] = torch.randn(shape.batch, 1, 1, shape.keys), {0: batch, 3: length}
    torch.onnx.export(
        Block(shape).eval(),
        (),
        str(path),
        kwargs=given,
        dynamo=True,
        opset_version=18,
        verbose=False,
        dynamic_shapes=varied if shape.dynamic else None,
    )


def ways(path: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    """The block in every form that takes it, its in-projection packed and not."""
    for form in FORMS:
        for pack in (True, False):
            out = folder / f"{form}-{pack}.onnx"
            try:
                onnx_attn.fuse(path, out, target="onnxruntime", form=form, pack=pack, expect=1)
            except OnnxAttnError:
                continue
            yield form if pack else form + UNPACKED, out


def measured(shape: Shape, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="onnx-attn-") as folder:
        path = Path(folder, "block.onnx")
        export(shape, path)
        onnx.checker.check_model(str(path))
        sizes = {"batch": shape.batch, "length": shape.queries} if shape.dynamic else None
        told = ratios(path, dict(ways(path, Path(folder))), seconds, sizes)
    figures = {way: round(each["median"], 3) for way, each in told["ratios"].items()}
    return asdict(shape) | {"milliseconds": round(told["milliseconds"], 3), "ratios": figures}


def _read(path: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(path.read_text())["shapes"] if path.exists() else []
    return rows


def main(arguments: Sequence[str]) -> int:
    parser = Parser(__doc__)
    parser.add_argument("-o", "--output", type=Path, default=DATA)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--only", nargs="+", default=[])
    asked = parser.parse_args(arguments)
    known = {Shape(**{key: row[key] for key in SHAPE}).name: row for row in _read(asked.output)} if asked.only else {}
    found = []
    for shape in shapes():
        if not asked.only or any(fnmatch(shape.name, pattern) for pattern in asked.only):
            found.append(measured(shape, asked.seconds))
            print(shape.name, json.dumps(found[-1]["ratios"]), flush=True)
        elif shape.name in known:
            found.append(known[shape.name])
    machine = f"{os.cpu_count()} cores of {platform.machine()}, {platform.system()}, one thread"
    made = {"onnxruntime": ort.__version__, "machine": machine, "date": f"{datetime.now(UTC):%Y-%m-%d}"}
    rows = ",\n".join(f"  {json.dumps(row)}" for row in found)
    asked.output.write_text(f'{{"measured": {json.dumps(made)},\n "shapes": [\n{rows}\n]}}\n')
    return 0


if __name__ == "__main__":
    run(main)
