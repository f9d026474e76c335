"""Partition and reverse as one visible node each: calls of local functions, or plain operators.

    onnx_attn.WindowPartition_56x56x96_by_7x7_shift_3x3 (map) -> (windows)      b (gh wh) (gw ww) c -> (wh ww b gh gw) c
    onnx_attn.WindowReverse_56x56x96_by_7x7_shift_3x3   (windows) -> (map)

One function a signature, as for attention (forms/function.py): TensorRT's parser knows neither optional inputs nor overloads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import onnx
from onnx import helper

from onnx_attn.domain import DOMAIN, WINDOW_PARTITION, WINDOW_REVERSE
from onnx_attn.forms.function import PlainNames
from onnx_attn.graph.edit import Names, Writer
from onnx_attn.row_order.partition import Partition, write_partition, write_reverse
from onnx_attn.row_order.trips import Trip

Written = tuple[str, onnx.FunctionProto | None]


class Movements:
    """Writes partitions and reverses; as functions, if `opset` is that of their bodies and not 0. trips: what was written."""

    def __init__(self, names: Names, opset: int, trips: list[Trip]):
        self.names, self.opset, self.trips = names, opset, trips

    def into(self, writer: Writer, source: str, partition: Partition, channels: int) -> Written:
        """A map's rows as `(tokens · windows, C)`."""

        def write(into: Writer, given: str, output: str) -> None:
            write_partition(into, given, partition, channels, output)

        name = f"{WINDOW_PARTITION}{suffix(partition, channels)}"
        return self._written(writer, Trip(partition, False, source, "", frozenset()), name, write)

    def back(self, writer: Writer, source: str, partition: Partition, target: Sequence[int], output: str) -> Written:
        """`(tokens · windows, C)` as a map with the sizes `target`, under the name `output`."""

        def write(into: Writer, given: str, result: str) -> None:
            write_reverse(into, given, partition, target, result)

        name = f"{WINDOW_REVERSE}{suffix(partition, target[-1])}"
        name += "" if len(target) == 4 else f"_rows{len(target)}"
        return self._written(writer, Trip(partition, True, source, output, frozenset()), name, write)

    def _written(self, writer: Writer, trip: Trip, name: str, write: Callable[[Writer, str, str], None]) -> Written:
        hint, first, function = ("reverse" if trip.back else "partition"), len(writer.nodes), None
        output = trip.output or writer.names.value(f"{writer.prefix}/windows")
        if self.opset and trip.partition.moves:
            function = self._function(name, write)
            writer.add(function.name, [trip.source], hint, output=output, domain=DOMAIN)
        else:
            write(writer, trip.source, output)
        nodes = frozenset(made for node in writer.nodes[first:] for made in node.output)
        self.trips.append(replace(trip, output=output, nodes=nodes))
        return output, function

    def _function(self, wanted: str, write: Callable[[Writer, str, str], None]) -> onnx.FunctionProto:
        body = Writer(PlainNames(), "")
        write(body, "rows", "moved")
        stored = [helper.make_node("Constant", [], [name], value=tensor) for name, tensor in body.initializers.items()]
        opsets = [helper.make_opsetid("", self.opset)]
        nodes = [*stored, *body.nodes]
        return self.names.function(helper.make_function(DOMAIN, wanted, ["rows"], ["moved"], nodes, opsets))


def suffix(partition: Partition, channels: int) -> str:
    """What tells one partition from another, for people."""
    inside = partition.order[-partition.inside :]
    window = [math.prod(digit.size or 1 for digit in inside if digit.axis == axis) for axis in (1, 2)]
    parts = f"_{partition.height}x{partition.width}x{channels}_by_{window[0]}x{window[1]}"
    parts += "_apart" if any(digit.step > 1 for digit in inside) else ""
    parts += "_rolled_{}x{}".format(*partition.rolled) if partition.rolled != (0, 0) else ""
    return parts + (f"_shift_{partition.shift[0]}x{partition.shift[1]}" if partition.shift != (0, 0) else "")
