"""Who else reads the probabilities of a site: each is given them in a graph, and gives what is multiplied with V."""

from __future__ import annotations

import numpy as np
import onnx
from graphs import HEADS, Net
from onnx import TensorProto


def as_output(net: Net, p: str) -> str:
    net.output(p)
    return p


def averaged(net: Net, p: str) -> str:
    net.output(net.op("ReduceMean", p, axes=[1], keepdims=0), 3)
    return p


def read_elsewhere(net: Net, p: str) -> str:
    net.output(net.op("Exp", p))
    return p


def cast_then_output(net: Net, p: str) -> str:
    wide = net.op("Cast", p, to=TensorProto.DOUBLE)
    net.output(wide, dtype=np.float64)
    return net.op("Cast", wide, to=TensorProto.FLOAT)


def multiplied_twice(net: Net, p: str) -> str:
    net.output(net.op("MatMul", p, net.input("other", 2, HEADS, 5, 3)))
    return p


def read_inside_if(net: Net, p: str) -> str:
    def body(name: str, op: str) -> onnx.GraphProto:
        node = onnx.helper.make_node(op, [p], [f"{name}_out"])
        info = onnx.helper.make_tensor_value_info(f"{name}_out", TensorProto.FLOAT, [None] * 4)
        return onnx.helper.make_graph([node], name, [], [info])

    net.output(
        net.op("If", net.input("flag", dtype=bool), then_branch=body("yes", "Exp"), else_branch=body("no", "Neg"))
    )
    return p
