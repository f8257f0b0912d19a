"""The layers of a graph: which multiply by weights, how much, where the network begins and ends.

* **stem**: the weighted layers that the images reach first.
* **head**: the weighted layers behind which no other comes.
* **body**: the weighted layers between; these are what precision is about.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ltdeploy.errors import ExportError

if TYPE_CHECKING:
    import onnx

__all__ = ["GraphLayers", "Layer"]

_MULTIPLYING = ("Conv", "Gemm", "MatMul")
_Step = Callable[[str], Iterator[tuple[Any, Iterable[str]]]]


@dataclass(frozen=True)
class Layer:
    """A layer that multiplies by weights.

    Attributes
    ----------
    name : its node's name.
    kind : ONNX operator.
    multiply_adds : per image.
    """

    name: str
    kind: str
    multiply_adds: int


class GraphLayers:
    """A graph with the questions that precision asks of it.

    Parameters
    ----------
    model : a classifier's graph whose shapes were inferred and whose nodes have names.

    Raises
    ------
    ExportError
        If two nodes have one name, or there is no layer between stem and head.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        import onnx

        self.model = model
        graph = model.graph
        self.nodes = {node.name: node for node in graph.node}
        if len(self.nodes) != len(graph.node):
            raise ExportError("Two nodes of the graph have the same name; give each its own.")
        self.stored = {tensor.name: tensor for tensor in graph.initializer}
        self.producers = {name: node for node in graph.node for name in node.output}
        self.consumers: dict[str, list[Any]] = {}
        for node in graph.node:
            for name in node.input:
                self.consumers.setdefault(name, []).append(node)
        values = (*graph.value_info, *graph.input, *graph.output)
        self.dtypes: dict[str, int] = {v.name: v.type.tensor_type.elem_type for v in values}
        self.dtypes |= {tensor.name: tensor.data_type for tensor in graph.initializer}
        self.shapes: dict[str, tuple[int | None, ...]] = {
            v.name: tuple(d.dim_value or None for d in v.type.tensor_type.shape.dim) for v in values
        }
        self._float = onnx.TensorProto.FLOAT
        self._entries = {value.name for value in graph.input}

    def is_float(self, name: str) -> bool:
        """Whether a tensor is float32."""
        return self.dtypes.get(name) == self._float

    def weight_of(self, node: Any) -> Any:
        """Return the stored weight that a node multiplies by, or None."""
        if node.op_type not in _MULTIPLYING:
            return None
        return next((self.stored[n] for n in node.input[:2] if n in self.stored), None)

    @cached_property
    def weighted(self) -> tuple[Layer, ...]:
        """The layers that multiply by stored weights, in the graph's order."""
        return tuple(
            Layer(node.name, node.op_type, self._multiply_adds(node))
            for node in self.model.graph.node
            if self.weight_of(node) is not None
        )

    @cached_property
    def multiply_adds(self) -> int:
        """All multiply-adds for one image, those between two activations too."""
        nodes = (n for n in self.model.graph.node if n.op_type in _MULTIPLYING)
        return sum(self._multiply_adds(node) for node in nodes)

    @cached_property
    def stem(self) -> frozenset[str]:
        """Names of the weighted layers that the images reach without passing another."""
        return frozenset(self._walk(self._entries, self._behind, stop=True)[0])

    @cached_property
    def head(self) -> frozenset[str]:
        """Names of the weighted layers that the logits come from without passing another."""
        exits = [value.name for value in self.model.graph.output]
        return frozenset(self._walk(exits, self._before, stop=True)[0])

    @cached_property
    def body(self) -> tuple[Layer, ...]:
        """The weighted layers between stem and head, in the graph's order."""
        ends = self.stem | self.head
        return tuple(layer for layer in self.weighted if layer.name not in ends)

    def before_stem(self) -> frozenset[str]:
        """Names of the nodes that prepare the images: normalisation."""
        feeding = [n for layer in self.stem for n in self.nodes[layer].input]
        return frozenset(self._walk(feeding, self._before, stop=True)[1])

    def behind_head(self) -> frozenset[str]:
        """Names of the head and of everything that works on what it gives."""
        given = [n for layer in self.head for n in self.nodes[layer].output]
        weighted, passed = self._walk(given, self._behind, stop=False)
        return self.head | weighted | passed

    def low_share(self, restored: Collection[str]) -> float:
        """Return the share of the multiply-adds in low precision, ``restored`` being float32."""
        low = sum(layer.multiply_adds for layer in self.body if layer.name not in restored)
        return low / self.multiply_adds

    def residual_adds(self, layers: Iterable[str]) -> tuple[str, ...]:
        """Return the sums of two branches of convolutions, one of which at least is in ``layers``.

        With its inputs in int8 such a sum is fused into the convolution before it.
        """
        quantised = set(layers)
        found: list[str] = []
        for node in self.model.graph.node:
            ends = [self._end(name) for name in node.input] if node.op_type == "Add" else []
            if ends and None not in ends and quantised.intersection(end for end in ends if end):
                quantised.add(node.name)
                found.append(node.name)
        return tuple(found)

    def _end(self, name: str) -> str | None:
        """Return the convolution or sum that a branch ends in, before what only moves values."""
        node = self.producers.get(name)
        while node is not None and node.op_type in ("Relu", "MaxPool", "Slice", "Pad"):
            node = self.producers.get(node.input[0])
        return node.name if node is not None and node.op_type in ("Conv", "Add") else None

    def _before(self, name: str) -> Iterator[tuple[Any, Iterable[str]]]:
        node = self.producers.get(name)
        if node is not None:
            yield node, node.input

    def _behind(self, name: str) -> Iterator[tuple[Any, Iterable[str]]]:
        for node in self.consumers.get(name, ()):
            yield node, node.output

    def _walk(self, start: Iterable[str], step: _Step, *, stop: bool) -> tuple[set[str], set[str]]:
        """Return the weighted nodes met and the others passed, on float tensors from ``start`` on.

        Shapes are computed on tensors of integers, and would connect everything with everything.
        """
        weighted: set[str] = set()
        passed: set[str] = set()
        waiting = list(start)
        seen = set(waiting)
        while waiting:
            for node, names in step(waiting.pop()):
                if self.weight_of(node) is not None:
                    weighted.add(node.name)
                    if stop:
                        continue
                else:
                    passed.add(node.name)
                fresh = {name for name in names if self.is_float(name) or name in self._entries}
                waiting.extend(fresh - seen)
                seen |= fresh
        return weighted, passed

    def _multiply_adds(self, node: Any) -> int:
        """Return the multiply-adds of one image; the batch axis and unknown ones count as one."""
        made = math.prod(side or 1 for side in self.shapes.get(node.output[0], ())[1:])
        weight = self.weight_of(node)
        if weight is not None:
            if node.op_type == "Conv":
                return int(made * math.prod(weight.dims[1:]))
            if node.op_type == "Gemm":
                return int(math.prod(weight.dims))
            return made * int(weight.dims[-2 if len(weight.dims) > 1 else 0])
        return made * (self.shapes.get(node.input[0], (1,))[-1] or 1)
