"""Greedy decoding in ONNX Runtime, by two pairs of files side by side: each has its own cache, and they must agree at every step.

    prompt ─▶ first file ─▶ logits, presents ─▶ second file ─▶ logits, presents ─▶ second file ─▶ …

What is fed goes by names, as Optimum gives them: the presents of one step are the pasts of the next, the likeliest token that
its row has not had is its input (random weights repeat themselves else), the padding mask gets a place more, and positions go on.
Needs no torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort

from onnx_attn.prove.compare import difference

STEPS = 10
LIMIT = 1e-5
"""max|a − b| / max|a| of every output at every step, in single precision."""

Values = dict[str, np.ndarray]


@dataclass(frozen=True)
class Outcome:
    """What came of a loop. tokens: `(B, steps)` of the first pair of files. same_tokens: of both, by logits that are all finite.
    max_rel: the worst of all outputs and steps."""

    tokens: np.ndarray
    same_tokens: bool
    max_rel: float

    @property
    def ok(self) -> bool:
        return self.same_tokens and self.max_rel <= LIMIT


class _Decoder:
    """A file that is run once, then one that is run at each step; the same one where it takes any past, or caches of one size."""

    def __init__(self, first: Path, step: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        files = [first, step] if first != step else [first]
        self.sessions = [ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"]) for file in files]
        self.state: Values = start(self.sessions[0])
        self.said = self.state["input_ids"][:, :0]

    def run(self, place: int) -> Values:
        session = self.sessions[place]
        names = [output.name for output in session.get_outputs()]
        feed = {each.name: self.state[each.name] for each in session.get_inputs()}
        return dict(zip(names, session.run(names, feed), strict=True))

    def advance(self, made: Values) -> np.ndarray:
        """Make the state that of the next step; gives the token of each row, `(B,)`."""
        logits = made["logits"][:, -1].copy()
        self.said = np.concatenate([self.said, self.state["input_ids"]], axis=1)
        np.put_along_axis(logits, self.said, -np.inf, axis=1)
        token: np.ndarray = logits.argmax(axis=-1)
        for name, value in made.items():
            if name.startswith("present."):
                self.state[name.replace("present.", "past_key_values.", 1)] = value
        if (mask := self.state.get("attention_mask")) is not None:
            self.state["attention_mask"] = np.concatenate([mask, np.ones_like(mask[:, :1])], axis=1)
        for name in ("position_ids", "cache_position"):
            if name in self.state:
                self.state[name] = self.state[name][..., -1:] + 1
        self.state["input_ids"] = token[:, None]
        return token


def start(first: ort.InferenceSession, batch: int = 3, length: int = 6, memory: int = 7, seed: int = 3) -> Values:
    """What a loop begins with: a prompt whose last row is padded on its left, an encoder's states, pasts of no token. Buffers of
    one size take one token at a time."""
    rng = np.random.default_rng(seed)
    shapes = {given.name: given.shape for given in first.get_inputs()}
    batch = next((shape[0] for shape in shapes.values() if len(shape) > 1 and isinstance(shape[0], int)), batch)
    made: Values = {"cache_position": np.zeros(1, np.int64)}
    for name, shape in shapes.items():
        if name.startswith("past_key_values."):
            sizes = [size if isinstance(size, int) else 0 for size in shape[1:]]
            made[name] = np.zeros((batch, *sizes), np.float32)
            length = 1 if made[name].size else length
        elif name == "encoder_hidden_states":
            made[name] = rng.standard_normal((batch, memory, shape[-1]), np.float32)
    made["encoder_attention_mask"] = _padded(batch, memory)
    made["attention_mask"] = _padded(batch, length)[:, ::-1]
    made["position_ids"] = np.maximum(made["attention_mask"].cumsum(axis=1) - 1, 0)
    made["input_ids"] = rng.integers(0, first.get_outputs()[0].shape[-1], (batch, length))
    return made


def _padded(batch: int, length: int) -> np.ndarray:
    """Ones, but for the last third of the last row."""
    mask = np.ones((batch, length), np.int64)
    mask[-1, length - length // 3 :] = 0
    return mask


def compare(before: tuple[Path, Path], after: tuple[Path, Path], steps: int = STEPS) -> Outcome:
    """Run both from one prompt, each on its own tokens and its own caches."""
    pair = [_Decoder(*before), _Decoder(*after)]
    tokens, same, worst = [], True, 0.0
    for number in range(1 + steps):
        made = [decoder.run(min(number, len(decoder.sessions) - 1)) for decoder in pair]
        for name, value in made[0].items():
            found = difference(value, made[1][name])
            worst = max(worst, found.max_rel if found.agrees else np.inf)
        logits = [values["logits"][:, -1] for values in made]
        likeliest = [each.argmax(axis=-1) for each in logits]
        chosen = [decoder.advance(values) for decoder, values in zip(pair, made, strict=True)]
        same = same and bool(np.isfinite(logits[0]).all())
        same = same and all(np.array_equal(first, second) for first, second in (likeliest, chosen))
        tokens.append(chosen[0])
    return Outcome(np.stack(tokens, axis=1), same, worst)
