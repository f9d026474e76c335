"""Which rule reads which operator. An operator that has none is not known to keep entries apart."""

from __future__ import annotations

from collections.abc import Callable

from onnx_attn.batch import along, contraction, movement, sizes
from onnx_attn.batch.place import Place
from onnx_attn.batch.step import Step

Rule = Callable[[Step], Place]

_ELEMENTWISE = (
    "Abs Acos Acosh Add And Asin Asinh Atan Atanh BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor Cast Ceil Celu Clip Cos "
    "Cosh Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Less "
    "LessOrEqual Log Max Mean Min Mish Mod Mul Neg Not Or PRelu Pow Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh "
    "Softplus Softsign Sqrt Sub Sum Swish Tan Tanh ThresholdedRelu Where Xor"
)
_IMAGES = (
    "AveragePool Col2Im Conv ConvInteger ConvTranspose DepthToSpace GlobalAveragePool GlobalLpPool GlobalMaxPool "
    "GroupNormalization InstanceNormalization LRN LpPool MaxPool SpaceToDepth"
)
_REDUCTIONS = (
    "ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare"
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(_ELEMENTWISE.split(), along.elementwise),
    **dict.fromkeys(_IMAGES.split(), along.image),
    **dict.fromkeys(_REDUCTIONS.split(), along.reduction),
    **dict.fromkeys(("Softmax", "LogSoftmax", "Hardmax"), along.softmax),
    **dict.fromkeys(("LayerNormalization", "RMSNormalization"), along.layer_norm),
    **dict.fromkeys(("ArgMax", "ArgMin"), along.arg_reduction),
    **dict.fromkeys(("LpNormalization", "TopK"), along.one_axis(-1)),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear"), along.quantize),
    **dict.fromkeys(("MatMul", "MatMulInteger", "QLinearMatMul"), contraction.matmul),
    **dict.fromkeys(("GatherElements", "ScatterElements"), movement.by_elements),
    **dict.fromkeys(("Shape", "Size"), along.shape_of),
    "Attention": along.attention,
    "BatchNormalization": along.batch_norm,
    "CastLike": along.cast_like,
    "Concat": movement.concat,
    "CumSum": along.cumulative,
    "Dropout": along.dropout,
    "Einsum": contraction.einsum,
    "Expand": sizes.expand,
    "Flatten": sizes.flatten,
    "Gather": movement.gather,
    "GatherND": movement.gather_nd,
    "Gemm": contraction.gemm,
    "GridSample": along.grid_sample,
    "OneHot": movement.one_hot,
    "Pad": movement.pad,
    "Reshape": sizes.reshape,
    "Resize": sizes.resize,
    "ScatterND": movement.scatter_nd,
    "Slice": movement.slice_,
    "Split": movement.split,
    "Squeeze": movement.squeeze,
    "Tile": sizes.tile,
    "Transpose": movement.transpose,
    "Trilu": along.triangle,
    "Unsqueeze": movement.unsqueeze,
}
