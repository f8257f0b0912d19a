"""The layers of a graph: which multiply by weights, how much, where the network begins and ends.

* **stem**: the weighted layers that the images reach first.
* **head**: the weighted layers that give logits, and in detectors scores, boxes and positions
  (:mod:`.places`).
* **body**: the weighted layers between; these are what precision is about.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ltdeploy.errors import ExportError

from .places import Places, find_places
from .work import multiply_adds

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
    """

    name: str
    kind: str


class GraphLayers:
    """A graph with the questions that precision asks of it.

    Parameters
    ----------
    model : a graph whose shapes were inferred and whose nodes have names.

    Raises
    ------
    ExportError
        If two nodes have one name, or the graph is in half precision already.
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
        self._float = onnx.TensorProto.FLOAT
        half = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
        lowered = next((name for name, dtype in self.dtypes.items() if dtype in half), None)
        if lowered is not None:
            raise ExportError(
                f"The graph computes in half precision already (the tensor {lowered!r}); its "
                "precision can only be chosen from float32. Give the float32 model."
            )
        self._entries = {value.name for value in graph.input}

    def is_float(self, name: str) -> bool:
        """Whether a tensor is float32."""
        return self.dtypes.get(name) == self._float

    def weight_of(self, node: Any) -> Any:
        """Return the stored weight that a node multiplies by from the right, or None.

        A weight on the left has no scale per output channel that engines agree on.
        """
        if node.op_type not in _MULTIPLYING:
            return None
        return self.stored.get(node.input[1])

    @cached_property
    def weighted(self) -> tuple[Layer, ...]:
        """The layers that multiply by stored weights, in the graph's order."""
        return tuple(
            Layer(node.name, node.op_type)
            for node in self.model.graph.node
            if self.weight_of(node) is not None
        )

    @cached_property
    def _work(self) -> dict[str, int]:
        return multiply_adds(self.model)

    @cached_property
    def multiply_adds(self) -> int:
        """All multiply-adds for one image, those between two activations too."""
        return sum(self._work.values())

    @cached_property
    def stem(self) -> frozenset[str]:
        """Names of the weighted layers that the images reach without passing another."""
        return frozenset(self._walk(self._entries, self._behind)[0])

    @cached_property
    def _places(self) -> Places:
        return find_places(self)

    @property
    def head(self) -> frozenset[str]:
        """Names of the weighted layers that logits, and boxes and positions, come from."""
        return self._places.head

    @property
    def body(self) -> tuple[Layer, ...]:
        """The weighted layers between stem and head, in the graph's order.

        A layer whose weights stem or head use too is not among them.
        """
        ends = self.stem | self.behind_head()
        weighted = [layer.name for layer in self.weighted if layer.name in ends]
        fixed = {self._weight_name(name) for name in weighted}
        return tuple(layer for layer in self.weighted if self._weight_name(layer.name) not in fixed)

    def sharing(self, name: str) -> tuple[str, ...]:
        """Return the names of the weighted layers that have a layer's weights, itself among them.

        A head that looks at every level of a pyramid is several nodes and one layer: a quantiser
        replaces the weights of all, so that they are restored together.
        """
        return self._sharing[self._weight_name(name)]

    @cached_property
    def _sharing(self) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        for layer in self.weighted:
            weight = self._weight_name(layer.name)
            found[weight] = (*found.get(weight, ()), layer.name)
        return found

    def _weight_name(self, name: str) -> str:
        weight: str = self.nodes[name].input[1]
        return weight

    def before_stem(self) -> frozenset[str]:
        """Names of the nodes that prepare the images: normalisation."""
        feeding = [n for layer in self.stem for n in self.nodes[layer].input]
        return frozenset(self._walk(feeding, self._before)[1])

    def behind_head(self) -> frozenset[str]:
        """Names of the head and of everything whose numbers are scores, boxes or positions."""
        return self._places.head | self._places.exact

    def low_share(self, layers: Collection[str]) -> float:
        """Return the share of the multiply-adds that these layers are."""
        return sum(self._work[name] for name in layers) / self.multiply_adds

    def _before(self, name: str) -> Iterator[tuple[Any, Iterable[str]]]:
        node = self.producers.get(name)
        if node is not None:
            yield node, node.input

    def _behind(self, name: str) -> Iterator[tuple[Any, Iterable[str]]]:
        for node in self.consumers.get(name, ()):
            yield node, node.output

    def _walk(self, start: Iterable[str], step: _Step) -> tuple[set[str], set[str]]:
        """Return the weighted nodes met first and the others passed, on float tensors.

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
                    continue
                passed.add(node.name)
                fresh = {name for name in names if self.is_float(name) or name in self._entries}
                waiting.extend(fresh - seen)
                seen |= fresh
        return weighted, passed
