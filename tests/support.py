"""What tests share: the checked-in exports, and a comparison of two models that owes nothing to the package's own."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper

EXPORTS = Path(__file__).parent / "exports"
ort.set_default_logger_severity(4)


@dataclass(frozen=True)
class Export:
    """A checked-in export with its true number of sites, counted by torch while the model ran."""

    path: Path
    true_sites: int

    @property
    def name(self) -> str:
        """The reference that it is an export of."""
        return self.path.name.partition(".")[0]

    @property
    def wanted(self) -> int:
        """The sites to be fused: every true one, but for those that must not be."""
        return 0 if self.left_alone else self.true_sites

    @property
    def half(self) -> bool:
        return ".half." in self.path.name

    @property
    def left_alone(self) -> bool:
        """Returns its attention weights, so that its site must not be fused."""
        return self.path.name.startswith("mha_weights")

    @property
    def fixed_sequence(self) -> bool:
        """nn.MultiheadAttention by TorchScript: the sequence is frozen at that of the example, 16."""
        torch_modules = self.path.name.startswith(("mha", "encoder_layer", "decoder_layer"))
        return torch_modules and ".torchscript." in self.path.name and ".dynamic" in self.path.name

    @property
    def packable(self) -> int:
        """The sites of which two of Q, K and V at least are one layer's on one source, heads apart, and nothing but movement
        between; or three, which are put side by side."""
        unpacked = {"davit_tiny": 2, "volo_d1": 2}.get(self.name, self.true_sites if self._is_unpacked else 0)
        return self.wanted - unpacked

    @property
    def _is_unpacked(self) -> bool:
        return self.name in UNPACKED or ".".join(self.path.name.split(".")[:2]) in UNPACKED


UNPACKED = frozenset(
    # No layer, or none of one source; one layer whose heads are normalised or turned behind it, or put behind a past; Q and K
    # that are turned in another type; K and V alone without biases; 1 × 1 convolutions.
    "sdpa sdpa_scale sdpa_causal sdpa_mask sdpa_prescaled sdpa_mask_bool sdpa_gqa sdpa_mqa mha_zero_attn mha_bias_kv mha_kdim "
    "swin_v2_t swinv2_tiny_window8 vit_qk_norm edgenext_small text_cross llama.torchscript falcon eva02_small dinov3_small "
    "visformer_tiny t5_decoder_first t5_decoder_step gpt2_prefill gpt2_decode llama_static".split()
)


def exports(pattern: str = "*") -> list[Export]:
    with (EXPORTS / "made_by.tsv").open() as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    found = [Export(EXPORTS / row["file"], int(row["true_sites"])) for row in rows]
    return [export for export in found if export.path.match(pattern)]


def feeds(model: onnx.ModelProto, sizes: dict[str, int], seed: int = 7) -> dict[str, np.ndarray]:
    """Random inputs; a mask of whole numbers keeps at least its first position."""
    rng = np.random.default_rng(seed)
    weights = {tensor.name for tensor in model.graph.initializer}
    values = {}
    for value in model.graph.input:
        if value.name in weights:
            continue
        dims = value.type.tensor_type.shape.dim
        shape = [dim.dim_value or sizes[dim.dim_param] for dim in dims]
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        if value.name == "input_ids":
            values[value.name] = rng.integers(0, 50, shape).astype(dtype)
        elif np.dtype(dtype).kind in "iub":
            mask = rng.integers(0, 2, shape)
            mask[..., 0] = 1
            values[value.name] = mask.astype(dtype)
        else:
            values[value.name] = rng.standard_normal(shape).astype(dtype)
    return values


def run(model: onnx.ModelProto | Path, inputs: dict[str, np.ndarray], optimized: bool = True) -> list[np.ndarray]:
    """Run in ONNX Runtime. Half precision is compared unoptimized: the optimizer alone moves an untouched BERT by 2e-3."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # Threads of their own, which spin, take the cores from the tests beside.
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def max_rel(expected: list[np.ndarray], actual: list[np.ndarray]) -> float:
    """max|a − b| / max|a| over all outputs; NaN must agree in place."""
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.isnan(a), np.isnan(b))
        wide_a, wide_b = np.nan_to_num(a.astype(np.float64)), np.nan_to_num(b.astype(np.float64))
        off = np.abs(wide_a - wide_b).max(initial=0.0)
        worst = max(worst, off / np.abs(wide_a).max() if off else 0.0)
    return worst
