"""What a model costs in kernels and bytes, as the compiler says: many models at a time, each only once."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx

from onnx_attn.engine.compile import compile_model, compiler
from onnx_attn.engine.profiles import Profile, at_usual, is_fixed
from onnx_attn.graph.save import write


@dataclass(frozen=True, order=True)
class Cost:
    """Of an engine; the fewer kernels the better, and of equals the fewer bytes.

    moved_bytes: of a run at the usual shapes: what kernels read and write, weights included.
    """

    kernels: int
    moved_bytes: int

    @property
    def document(self) -> dict[str, int]:
        return {"kernels": self.kernels, "moved_bytes": self.moved_bytes}


@dataclass(frozen=True)
class Question:
    """A model, with the shapes of its inputs that vary."""

    model: onnx.ModelProto
    shapes: Profile = field(default_factory=dict)

    @property
    def key(self) -> bytes:
        """Tells one question from another."""
        digest = hashlib.sha256(self.model.SerializeToString(deterministic=True))
        digest.update(repr(sorted(self.shapes.items())).encode())
        return digest.digest()


@dataclass
class Compiler:
    """The compiler that is asked, and what it has answered.

    sm: compute capability times ten. timeout: seconds for one build. builds: how many models it was asked about.
    """

    sm: int = 89
    toolkit: str | None = None
    timeout: float = 600.0
    builds: int = 0
    _answers: dict[bytes, Cost | None] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return compiler(self.toolkit)

    def ask(self, questions: Sequence[Question]) -> list[Cost | None]:
        """The cost of each; None for what does not build. Each build is a process of its own, as many at a time as there are
        processors."""
        keys = [question.key for question in questions]
        new = {key: question for key, question in zip(keys, questions, strict=True) if key not in self._answers}
        self.builds += len(new)
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            self._answers.update(zip(new, pool.map(self._build, new.values()), strict=True))
        return [self._answers[key] for key in keys]

    def _build(self, question: Question) -> Cost | None:
        with tempfile.TemporaryDirectory(prefix="onnx-attn-") as folder:
            path = Path(folder, "model.onnx")
            write(question.model, path, external=False)
            options: dict[str, Any] = {"timeout": self.timeout, "toolkit": self.toolkit}
            engine = compile_model(path, self.sm, question.shapes, **options)
            if not engine.built or engine.unread is not None:
                return None
            usual = engine
            if not is_fixed(question.shapes):  # Tensors of an engine for varying shapes have no size.
                usual = compile_model(path, self.sm, at_usual(question.shapes), **options)
            moved = usual.moved_bytes if usual.built else None
            return None if moved is None else Cost(len(engine.kernels), moved)
