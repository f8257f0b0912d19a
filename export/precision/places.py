"""Where a graph's numbers say *where* instead of *what*: scores, boxes, positions and indices.

Sixteen bits are 8 or 11 digits: a coordinate of 700 pixels moves in steps of 4 or 0.5, and a score
that ranks anchors ties with its neighbours. Such numbers stay float32, whatever the architecture:

* **exits**: the graph's outputs, and every input of a node that says where to look (the grid of a
  GridSample, the indices of a Gather) or in which order (TopK).
* **head**: the weighted layers that an exit comes from without passing another.
* **exact**: the nodes between head and exits, the nodes that look, everything that is computed from
  what those give alone, and the weighted layers that take such numbers in.

Where such a number meets a feature (a bilinear weight times what was looked up) the result is a
feature again, and a layer may have any precision. In a classifier, the exit is its logits.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .layers import GraphLayers

__all__ = ["Places", "find_places"]

# Inputs that say where: an index, a position, or what an order is made of.
_WHERE: dict[str, tuple[int, ...]] = {
    "ArgMax": (0,),
    "ArgMin": (0,),
    "Gather": (1,),
    "GatherElements": (1,),
    "GatherND": (1,),
    "GridSample": (1,),
    "NonMaxSuppression": (0, 1),
    "NonZero": (0,),
    "OneHot": (0,),
    "RoiAlign": (1, 2),
    "ScatterElements": (1,),
    "ScatterND": (1,),
    "TopK": (0,),
}
# Their other inputs are of the same type, or what they give is a place too.
_LOOKING = frozenset({"ArgMax", "ArgMin", "GridSample", "NonMaxSuppression", "RoiAlign", "TopK"})
_SIZES = ("Shape", "Size")  # of a tensor, whatever is in it
_MOVING = frozenset({"Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Identity"})


@dataclass(frozen=True)
class Places:
    """Names of the nodes that stay in float32 for what their numbers mean.

    Attributes
    ----------
    head : weighted layers that give scores, boxes and positions.
    exact : the other nodes, as the module says.
    """

    head: frozenset[str]
    exact: frozenset[str]


def find_places(layers: GraphLayers) -> Places:
    """Return where a graph's scores, boxes and positions are computed."""
    head, exact = _behind_head(layers)
    exact |= {n.name for n in layers.model.graph.node if _looks(layers, n)}
    return Places(frozenset(head), frozenset(exact | _computed_from(layers, head | exact)))


def _where_inputs(node: Any) -> Iterator[str]:
    for place in _WHERE.get(node.op_type, ()):
        if place < len(node.input):
            yield node.input[place]


def _looks(layers: GraphLayers, node: Any) -> bool:
    """Whether a node looks at places that are no constants."""
    known = any(name in layers.producers for name in _where_inputs(node))
    return node.op_type in _LOOKING and known


def _behind_head(layers: GraphLayers) -> tuple[set[str], set[str]]:
    """Return the head, and the nodes between it and the exits."""
    graph = layers.model.graph
    waiting = [value.name for value in graph.output]
    waiting += [name for node in graph.node for name in _where_inputs(node)]
    head: set[str] = set()
    passed: set[str] = set()
    seen = set(waiting)
    while waiting:
        node = layers.producers.get(waiting.pop())
        if node is None or node.op_type in _SIZES:
            continue
        if layers.weight_of(node) is not None and not _is_expectation(layers, node):
            head.add(node.name)
            continue
        passed.add(node.name)
        fresh = set(node.input) - seen
        waiting.extend(fresh)
        seen |= fresh
    return head, passed


def _is_expectation(layers: GraphLayers, node: Any) -> bool:
    """Whether a weighted layer is the mean of a distribution, as that of a box's side is.

    Its weights are the values that a side may have (Li et al. 2020, arXiv 2006.04388, §3.2), and
    the layer that is learnt stands before the softmax.
    """
    before = layers.producers.get(node.input[0])
    while before is not None and before.op_type in _MOVING:
        before = layers.producers.get(before.input[0])
    return before is not None and before.op_type == "Softmax"


def _computed_from(layers: GraphLayers, start: set[str]) -> set[str]:
    """Return the nodes behind ``start`` whose inputs all come from there; sizes do not count."""
    where = {name for node in start for name in layers.nodes[node].output}
    neutral = set(layers.stored)  # constants, and what follows from sizes alone
    found: set[str] = set()
    for node in layers.model.graph.node:
        told = {name for name in node.input if name} - neutral
        if not told or node.op_type in _SIZES:
            neutral.update(node.output)
        elif node.name not in start and told <= where:
            found.add(node.name)
            if layers.weight_of(node) is None:  # of a layer that takes places in comes a feature
                where.update(node.output)
    return found
