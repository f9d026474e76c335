"""A block written tokens first: its rows go into windows once, and back once, around all that works row by row.

In between they are `(rows, C)`: with three axes the compiler adds the residual in front of the next LayerNorm, in two axes in the
out-projection's own kernel (four Swin blocks: 71.4 MB, 69.0; TensorRT for RTX 1.7.1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
import onnx_graphsurgeon as gs

from onnx_attn.forms.again import copied
from onnx_attn.graph.edit import Names, SiteEdit, Splice, Writer
from onnx_attn.graph.view import GraphView
from onnx_attn.row_order.block import Block
from onnx_attn.row_order.functions import Movements
from onnx_attn.row_order.region import Region
from onnx_attn.row_order.token_wise import keeps_rows, row_operands


class CannotSay(Exception):
    """A value that goes is asked for its shape, and no value that stays has it."""


def write_block(view: GraphView, names: Names, block: Block, region: Region, movements: Movements) -> SiteEdit:
    """The edit that computes `region` in window order. Raises CannotSay where a shape would be lost."""
    writer = Writer(names, block.site.name)
    written = _Written(view, writer, block, movements)
    splices = [*written.begin(), *written.attention_back(), *written.rest(region)]
    asking = {id(reader): (reader, tensor) for reader, tensor in (*block.shapes, *region.shapes)}
    splices += [written.shape(reader, tensor) for reader, tensor in asking.values()]
    return SiteEdit(
        block.site.name,
        tuple(splices),
        tuple(writer.initializers.values()),
        tuple(written.functions.values()),
        (block.entry.name,),
        False,
    )


class _Written:
    """The parts of one block, each with the names of values in window order."""

    def __init__(self, view: GraphView, writer: Writer, block: Block, movements: Movements):
        self.view, self.writer, self.block, self.movements = view, writer, block, movements
        self.renamed: dict[str, str] = {}
        """Values of the map's order → the same in window order."""
        self.functions: dict[str, onnx.FunctionProto] = {}

    def begin(self) -> Iterator[Splice]:
        """x in windows, the norm behind that, and what the in-projection reads, under its old name."""
        block = self.block
        places = {tensor.name: self._position(tensor) for tensor in block.windows}
        part = self._part()
        shapes = self.view.shapes(block.entry)
        assert shapes is not None
        source, function = self.movements.into(part, block.entry.name, block.partition, shapes[0][-1])
        self._calls(function)
        self.renamed[block.entry.name] = source
        if block.norm is not None:
            self._again(part, block.norm)
            source = self.renamed[block.norm.outputs[0].name]
        # As the site has them: maps apart from windows, where a mask tells windows apart.
        windows = block.partition.windows if (self.view.rank(block.site.query.tensor) or 0) > 4 else None
        sizes = [block.partition.tokens, -1, *([windows] if windows is not None else [])]
        turned = part.add("Reshape", [source, part.shape(*sizes, shapes[0][-1])], "tokens")
        if not block.enters_first:
            turned = part.add("Transpose", [turned], "windows", perm=[*range(1, len(sizes)), 0, len(sizes)])
        yield Splice(min(places.values()), tuple(part.nodes), ())
        for tensor in block.windows:
            part = self._part()
            self._shaped(part, turned, tensor)
            yield Splice(places[tensor.name], tuple(part.nodes), (tensor.name,))

    def attention_back(self) -> Iterator[Splice]:
        """The out-projection and what follows it row by row, on tokens first."""
        block, part = self.block, self._part()
        shapes = self.view.shapes(block.merged)
        assert shapes is not None
        merged, tokens, width = block.merged.name, block.partition.tokens, shapes[0][-1]
        if not block.leaves_first:
            if len(shapes[0]) != 3 or any(shape[1] != tokens for shape in shapes):
                merged = part.add("Reshape", [merged, part.shape(-1, tokens, width)], "windows")
            merged = part.add("Transpose", [merged], "tokens", perm=[1, 0, 2])
        self.renamed[block.merged.name] = part.add("Reshape", [merged, part.shape(-1, width)], "rows")
        for node in block.tail:
            self._again(part, node)
            yield Splice(self.view.position(node), tuple(part.nodes), ())
            part = self._part()
        self.renamed[block.landed.name] = self.renamed[block.tail[-1].outputs[0].name]

    def rest(self, region: Region) -> Iterator[Splice]:
        """What follows in window order; and what others read, moved back."""
        exits = {tensor.name for tensor in region.exits}
        if self.block.landed.name in exits:
            yield self._exit(self._part(), self._position(self.block.landed), self.block.landed)
        for node in region.nodes:
            result, part = node.outputs[0], self._part()
            if keeps_rows(self.view, node):
                self.renamed[result.name] = self._name(node.inputs[0])
            else:
                self._again(part, node)
            if result.name in exits:
                yield self._exit(part, self.view.position(node), result)
            elif part.nodes:
                yield Splice(self.view.position(node), tuple(part.nodes), ())

    def shape(self, reader: gs.Node, tensor: gs.Tensor) -> Splice:
        """The answer to a Shape whose value goes: as numbers, or put together from sizes of values that stay."""
        part, output = self._part(), reader.outputs[0]
        value = self.view.constant(output)
        if value is not None:
            part.add("Identity", [part.shape(*value.tolist())], "shape", output=output.name)
            return Splice(self.view.position(reader), tuple(part.nodes), (output.name,))
        for other in self._staying(reader):
            if self.view.shapes(other) == self.view.shapes(tensor) is not None:
                part.nodes.append(copied(self.view, reader, {tensor.name: other.name}))
                return Splice(self.view.position(reader), tuple(part.nodes), (output.name,))
        part.add("Concat", list(self._sizes(part, reader, tensor)), "shape", output=output.name, axis=0)
        return Splice(self.view.position(reader), tuple(part.nodes), (output.name,))

    def _staying(self, reader: gs.Node) -> list[gs.Tensor]:
        """Values that stay and are made before a node."""
        own = (*self.block.windows, self.block.merged)
        before = [each for each in own if self._position(each) < self.view.position(reader)]
        return [self.block.entry, *before]

    def _sizes(self, part: Writer, reader: gs.Node, tensor: gs.Tensor) -> Iterator[str]:
        """Vectors that make up what `reader` says of the tensor: numbers, and sizes of values that stay or multiples of them."""
        known = [(each, axis, sizes) for each in self._staying(reader) for axis, sizes in enumerate(self._axes(each))]
        for wanted in self._axes(tensor)[slice(reader.attrs.get("start", 0), reader.attrs.get("end"))]:
            if len(set(wanted)) == 1:
                yield part.shape(wanted[0])
                continue
            times = [(each, axis, wanted[0] // sizes[0]) for each, axis, sizes in known if _is_multiple(wanted, sizes)]
            if not times:
                raise CannotSay(f"'{reader.name or reader.outputs[0].name}' asks for a size that nothing else has")
            other, axis, factor = min(times, key=lambda each: each[2])
            size = part.add("Shape", [other.name], "sizes")
            size = part.add("Slice", [size, part.shape(axis), part.shape(axis + 1)], "size")
            yield part.add("Mul", [size, part.shape(factor)], "size") if factor > 1 else size

    def _axes(self, tensor: gs.Tensor) -> list[tuple[int, ...]]:
        """Axis by axis, the sizes in every world."""
        shapes = self.view.shapes(tensor)
        return list(zip(*shapes, strict=True)) if shapes is not None else []

    def _part(self) -> Writer:
        return Writer(self.writer.names, self.writer.prefix, initializers=self.writer.initializers)

    def _position(self, tensor: gs.Tensor) -> int:
        producer = self.view.producer(tensor)
        assert producer is not None
        return self.view.position(producer)

    def _exit(self, part: Writer, position: int, tensor: gs.Tensor) -> Splice:
        """A value back out of its windows, under its own name."""
        sizes, source = self._sizes_of(tensor), self.renamed[tensor.name]
        self._calls(self.movements.back(part, source, self.block.partition, sizes, tensor.name)[1])
        return Splice(position, tuple(part.nodes), (tensor.name,))

    def _calls(self, function: onnx.FunctionProto | None) -> None:
        if function is not None:
            self.functions[function.name] = function

    def _shaped(self, part: Writer, source: str, target: gs.Tensor) -> None:
        """`(…, tokens, C)` in the axes of the target."""
        part.add("Reshape", [source, part.shape(*self._sizes_of(target))], "windows", output=target.name)

    def _sizes_of(self, tensor: gs.Tensor) -> list[int]:
        """What a Reshape is told to make a value of this shape, whatever the batch."""
        axes = self._axes(tensor)
        varying = [axis for axis, sizes in enumerate(axes) if len(set(sizes)) > 1]
        if len(varying) > 1:
            raise CannotSay(f"'{tensor.name}' has two sizes that vary")
        return [-1 if axis in (varying or [0]) else sizes[0] for axis, sizes in enumerate(axes)]

    def _name(self, tensor: gs.Tensor) -> str:
        """In window order, where the map's order has it, if need be with other axes before the last."""
        above = tensor
        while above.name not in self.renamed:
            node = self.view.producer(above)
            if node is None or not keeps_rows(self.view, node):
                return str(tensor.name)
            above = node.inputs[0]
        return self.renamed[above.name]

    def _again(self, part: Writer, node: gs.Node) -> None:
        """A token-wise node on rows in window order `(rows, C)`."""
        fresh = copied(self.view, node, {tensor.name: self._name(tensor) for tensor in node.inputs})
        for place, tensor in enumerate(node.inputs):
            if place not in row_operands(self.view, node) and (self.view.rank(tensor) or 0) > 2:
                fresh.input[place] = part.add("Reshape", [tensor.name, part.shape(1, -1)], "for_rows")
        for attribute in fresh.attribute:
            if attribute.name == "axis":
                attribute.i = -1
            elif attribute.name == "axes":
                attribute.ints[:] = [-1]
        if node.op.startswith("Reduce") and len(node.inputs) > 1 and node.inputs[1].name:
            fresh.input[1] = self.writer.shape(-1)
        result = node.outputs[0].name
        del fresh.output[1:]
        self.renamed[result] = fresh.output[0] = self.writer.names.value(f"{self.writer.prefix}/{result.lstrip('/')}")
        if fresh.name:
            fresh.name = self.writer.names.claim(fresh.name)
        part.nodes.append(fresh)


def _is_multiple(sizes: Sequence[int], of: Sequence[int]) -> bool:
    factors = {divmod(size, one) for size, one in zip(sizes, of, strict=True)}
    return len(set(of)) > 1 and len(factors) == 1 and factors.pop()[1] == 0
