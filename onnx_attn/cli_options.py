"""The options of the command line by what they are for: what several commands share is here once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, TypeAlias

import typer

# Panels of `fuse`, in which options of other commands stand too where they are for the same.
TARGET, REWRITING, PROOF, PLAN, REPORT = "Target", "What is rewritten", "Proof", "Plan", "Report"


def _out(what: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option("-o", "--output", metavar="OUT", help=what)
    return option


ModelPath: TypeAlias = Annotated[Path, typer.Argument(metavar="MODEL", help="The ONNX model; never changed.")]
Fused: TypeAlias = Annotated[Path, _out("The fused model.")]
Plain: TypeAlias = Annotated[Path, _out("The model in plain operators.")]
CutOut: TypeAlias = Annotated[Path, _out("The site as a model of its own.")]
Site: TypeAlias = Annotated[str, typer.Option("--site", metavar="ID", help="An id of `inspect`.")]
Sites: TypeAlias = Annotated[
    list[str] | None, typer.Option("--site", metavar="ID", help="An id of `inspect`; may be repeated.")
]

# For whom.
Target: TypeAlias = Annotated[
    str,
    typer.Option(help="Runtime that will read the model: tensorrt, onnx or onnxruntime.", rich_help_panel=TARGET),
]
Version: TypeAlias = Annotated[
    str | None, typer.Option(help="TensorRT version: 8.6, 10.0 … 11.x, or rtx.", rich_help_panel=TARGET)
]
Form: TypeAlias = Annotated[
    str,
    typer.Option(help="auto, function, primitives, attention or (onnxruntime) contrib.", rich_help_panel=TARGET),
]
Precision: TypeAlias = Annotated[
    str,
    typer.Option(help="keep, or fp16 / bf16: a half-precision island around float32 sites.", rich_help_panel=TARGET),
]
Search: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--search",
        help="Ask TensorRT's compiler for the best form and layout of each kind of site.",
        rich_help_panel=TARGET,
    ),
]
Sm: TypeAlias = Annotated[
    int | None,
    typer.Option(
        help="Compute capability × 10 of the GPU: 75, 80, 86, 89 (default), 120, 121.", rich_help_panel=TARGET
    ),
]
Land: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--land",
        help="Also compile it with TensorRT, without a GPU, before and after, as `land` does.",
        rich_help_panel=TARGET,
    ),
]
SearchShapes: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--shapes",
        help="With --search or --land: NAME:1x3x224x224 for an input that varies, as in `land`.",
        rich_help_panel=TARGET,
    ),
]
Range: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--shapes",
        help="NAME:1x3x224x224 for an input that varies; again for the largest, or usual and largest.",
        rich_help_panel=TARGET,
    ),
]
CompilerName: TypeAlias = Annotated[
    str | None,
    typer.Option("--compiler", help="tensorrt_rtx (no GPU needed) or tensorrt.", rich_help_panel=TARGET),
]

# What is rewritten.
NoPack: TypeAlias = Annotated[
    bool, typer.Option("--no-pack", help="Leave the Q/K/V projections as they are.", rich_help_panel=REWRITING)
]
NoAlgebra: TypeAlias = Annotated[
    bool, typer.Option("--no-algebra", help="Leave biases and scales where they are.", rich_help_panel=REWRITING)
]
DynamicBatch: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--dynamic-batch",
        help="Make a batch that is baked into the model a dynamic dimension.",
        rich_help_panel=REWRITING,
    ),
]
QuantizeProbabilities: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--quantize-probabilities",
        help="Round the softmax's result too where Q, K and V are quantised; changes numbers.",
        rich_help_panel=REWRITING,
    ),
]
AllowRecompute: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--allow-recompute",
        help="Also fuse sites whose attention weights are read elsewhere.",
        rich_help_panel=REWRITING,
    ),
]
Opset: TypeAlias = Annotated[int | None, typer.Option(metavar="N", help="Bring the model to this opset, if it can be.")]
SplitProjection: TypeAlias = Annotated[
    bool, typer.Option("--split-projection", help="Project Q, K and V each by itself.")
]

# Proof.
Expect: TypeAlias = Annotated[
    int | None,
    typer.Option(help="Exit 3 unless exactly N sites are fused.", metavar="N", rich_help_panel=PROOF),
]
ExpectAll: TypeAlias = Annotated[
    bool,
    typer.Option("--expect-all", help="Exit 3 unless it builds and every site lands.", rich_help_panel=PROOF),
]
NoVerify: TypeAlias = Annotated[
    bool, typer.Option("--no-verify", help="Write the model without proof.", rich_help_panel=PROOF)
]
ProveBudget: TypeAlias = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="For the proofs of sites; then one stands for all that are like it.",
        rich_help_panel=PROOF,
    ),
]
VerifyLarge: TypeAlias = Annotated[
    bool,
    typer.Option("--verify-large", help="Run the model whole even if it is past 2 GB.", rich_help_panel=PROOF),
]

# Plan.
PlanPath: TypeAlias = Annotated[
    Path | None, typer.Option("--plan", metavar="IN.json", help="Do what this plan says.", rich_help_panel=PLAN)
]
WritePlan: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="OUT.json",
        help="Write what was decided, to be edited and given to --plan.",
        rich_help_panel=PLAN,
    ),
]

# What two models, or one model, are run on.
RunShapes: TypeAlias = Annotated[list[str] | None, typer.Option("--shapes", help="NAME:1x3x224x224, once an input.")]
CountShapes: TypeAlias = Annotated[
    list[str] | None,
    typer.Option("--shapes", help="NAME:1x3x224x224, once for an input that varies; else in the dimensions' names."),
]
Inputs: TypeAlias = Annotated[Path | None, typer.Option(help="An .npz with a value for every input.")]
Rtol: TypeAlias = Annotated[float | None, typer.Option(help="Largest max|a−b| / max|a|.")]
Atol: TypeAlias = Annotated[float, typer.Option(help="Largest max|a−b| that passes whatever the ratio.")]
CertificatePath: TypeAlias = Annotated[
    Path | None,
    typer.Option("--certificate", metavar="F", help="What `fuse --json` wrote: each site is checked again."),
]
Baseline: TypeAlias = Annotated[Path | None, typer.Option(metavar="MODEL0", help="Compile this one too, and compare.")]
LayerInfo: TypeAlias = Annotated[
    Path | None,
    typer.Option(metavar="F", help="Read trtexec --exportLayerInfo of the engine; compile nothing."),
]

# Report.
Bundle: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        metavar="F",
        help="Write a zip for a bug report: the model's structure without its weights.",
        rich_help_panel=REPORT,
    ),
]
Json: TypeAlias = Annotated[
    str | None,
    typer.Option("--json", metavar="PATH|-", help="Write the report as JSON; - for stdout.", rich_help_panel=REPORT),
]
Html: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--html",
        metavar="PATH",
        help="Write the report as a page to look at, with drawings of the sites.",
        rich_help_panel=REPORT,
    ),
]
Quiet: TypeAlias = Annotated[
    bool,
    typer.Option("--quiet", "-q", help="Print nothing but errors, and JSON for --json -.", rich_help_panel=REPORT),
]
Verbose: TypeAlias = Annotated[
    bool,
    typer.Option(
        "--verbose",
        "-v",
        help="Show every site by itself, everything else in full, and the time of each stage.",
        rich_help_panel=REPORT,
    ),
]
