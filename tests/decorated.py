"""A real export with something in every place of the format that a careless rewriting drops, and how to compare."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from commands import DEMO
from google.protobuf.message import Message
from onnx import TensorProto, helper, numpy_helper

USER = "my.company"


def _metadata(message: Message, key: str) -> None:
    message.metadata_props.add(key=key, value=f"of {key}")  # type: ignore[attr-defined]


def _function(overload: str, factor: float) -> onnx.FunctionProto:
    """x → x · factor: two of one name, told apart by their overload only."""
    nodes = [
        helper.make_node("Constant", [], ["factor"], value_float=factor, name="inner_constant"),
        helper.make_node("Mul", ["x", "factor"], ["y"], name="inner_mul", doc_string="inside a function"),
    ]
    function = helper.make_function(
        USER, "Stretch", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)], overload=overload
    )
    function.doc_string = f"by {factor}"
    function.attribute.append("required")
    function.attribute_proto.append(helper.make_attribute("unused", 3))
    function.value_info.append(helper.make_tensor_value_info("factor", TensorProto.FLOAT, []))
    _metadata(function, f"function {overload}")
    _metadata(function.node[1], "node of a function")
    return function


def decorated() -> onnx.ModelProto:
    """The demo model with doc strings, metadata, annotations, functions, denotations and the rest."""
    model = onnx.shape_inference.infer_shapes(onnx.load(DEMO))
    graph = model.graph
    model.ir_version = 11
    model.producer_name, model.producer_version, model.domain, model.model_version = "made by hand", "4.5.6", USER, 42
    model.doc_string, graph.doc_string = "doc of the model", "doc of the graph"
    _metadata(model, "model")
    _metadata(graph, "graph")
    for number, node in enumerate(graph.node):
        node.doc_string = f"doc of node {number}"
        _metadata(node, f"node {number}")
        for attribute in node.attribute:
            attribute.doc_string = f"doc of attribute {attribute.name}"
    _end_in_user_functions(model)
    values = (*graph.value_info, *graph.input, *graph.output)
    for value in values:
        value.doc_string = f"doc of value {value.name}"
        _metadata(value, f"value {value.name}")
    for tensor in graph.initializer:
        tensor.doc_string = f"doc of tensor {tensor.name}"
        _metadata(tensor, f"tensor {tensor.name}")
    graph.input[0].type.denotation = "IMAGE"
    for dim, denotation in zip(
        graph.input[0].type.tensor_type.shape.dim, ("BATCH", "CHANNEL", "HEIGHT", "WIDTH"), strict=True
    ):
        dim.denotation = f"DATA_{denotation}"
    _quantization(graph)
    _sparse(graph)
    _training(model)
    model.opset_import.extend([helper.make_opsetid(USER, 7), helper.make_opsetid("unused.domain", 3)])
    model.metadata_props.add(key="last", value="at the end")
    onnx.checker.check_model(model)
    return model


def _end_in_user_functions(model: onnx.ModelProto) -> None:
    """… → logits → Stretch → stretched, and a third output in the middle of the list."""
    graph = model.graph
    model.functions.extend([_function("twice", 2.0), _function("thrice", 3.0)])
    logits = graph.output[0]
    for number, overload in enumerate(("twice", "thrice")):
        name = f"stretched_{overload}"
        node = helper.make_node("Stretch", [logits.name], [name], name=name, domain=USER, overload=overload, required=1)
        node.doc_string = "mine"
        _metadata(node, name)
        graph.node.append(node)
        value = graph.output.add()
        value.CopyFrom(logits)
        value.name = name
        if number == 0:
            graph.output.insert(0, value)
            del graph.output[-1]
    model.graph.initializer.append(numpy_helper.from_array(np.arange(300, dtype=np.float32), "unused"))


def _quantization(graph: onnx.GraphProto) -> None:
    """On a value that stays, on one that goes (scores), with parameters that no node reads."""
    graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "quant_scale"))
    graph.initializer.append(numpy_helper.from_array(np.uint8(7), "quant_zero"))
    softmax = next(node for node in graph.node if node.op_type == "Softmax")
    for name in (graph.input[0].name, softmax.output[0], "class_token"):
        annotation = graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="quant_scale")
        annotation.quant_parameter_tensor_names.add(key="ZERO_POINT_TENSOR", value="quant_zero")


def _sparse(graph: onnx.GraphProto) -> None:
    values = numpy_helper.from_array(np.array([1.5, 2.5], np.float32), "sparse_weight")
    indices = numpy_helper.from_array(np.array([1, 3], np.int64), "sparse_indices")
    graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [6]))


def _training(model: onnx.ModelProto) -> None:
    """Updates a weight that the in-projection of the first layer is made of."""
    step = helper.make_graph(
        [helper.make_node("Identity", [packed_weight(model)], ["new"])],
        "step",
        [],
        [helper.make_tensor_value_info("new", TensorProto.FLOAT, None)],
    )
    info = model.training_info.add()
    info.algorithm.CopyFrom(step)
    info.initialization.CopyFrom(helper.make_graph([], "start", [], []))
    info.update_binding.add(key=packed_weight(model), value="new")


def packed_weight(model: onnx.ModelProto) -> str:
    return next(tensor.name for tensor in model.graph.initializer if list(tensor.dims) == [96, 288])


def plain(message: Message) -> bytes:
    return message.SerializeToString(deterministic=True)


def field_names(message: Message) -> list[str]:
    return [field.name for field in message.DESCRIPTOR.fields]


def set_fields(messages: Iterable[Message]) -> set[str]:
    return {field.name for message in messages for field, _ in message.ListFields()}


def same_fields(before: Message, after: Message, leave_out: Iterable[str] = ()) -> list[str]:
    """The fields in which two messages of one type differ."""

    def only(message: Message, name: str) -> bytes:
        copy = type(message)()
        copy.CopyFrom(message)
        for field, _ in message.ListFields():
            if field.name != name:
                copy.ClearField(field.name)
        return plain(copy)

    return [name for name in field_names(before) if name not in leave_out and only(before, name) != only(after, name)]
