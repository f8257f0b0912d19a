"""How a graph is brought to a precision, given which of its layers stay in float32."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from ltdeploy.errors import ExportError

from .cast import LowPrecision, at_least_opset, ready_for, segments, to_low_precision
from .layers import GraphLayers
from .quantise import measure_ranges, quantise
from .ranges import LargeTensor

if TYPE_CHECKING:
    import onnx

_Make: TypeAlias = "Callable[[Collection[str]], onnx.ModelProto]"

__all__ = ["Recipe", "cast_recipe", "int8_recipe"]

_PER_CHANNEL_OPSET = 13  # the first whose DequantizeLinear has a scale per channel


@dataclass(frozen=True, eq=False)
class Recipe:
    """What makes a graph of a precision.

    Attributes
    ----------
    whole : the float32 graph.
    parts : the weighted layers that are lowered, by the name of the first of those that share
        their weights, in the graph's order; they are restored together.
    make : makes the graph from the layers to restore; not to be changed, the last two are kept.
    large : tensors for which some are float32 whatever is restored; ``always`` names those layers.
    """

    whole: onnx.ModelProto
    parts: Mapping[str, tuple[str, ...]]
    make: _Make
    large: tuple[LargeTensor, ...] = ()
    always: frozenset[str] = frozenset()

    @property
    def layers(self) -> tuple[str, ...]:
        """What may be restored, in the graph's order."""
        return tuple(self.parts)

    def low_share(self, restored: Collection[str]) -> float:
        """Return the share of the multiply-adds that are in low precision."""
        back = {name for first in restored for name in self.parts[first]} | self.always
        low = [name for parts in self.parts.values() for name in parts if name not in back]
        return GraphLayers(self.whole).low_share(low)


def int8_recipe(model: onnx.ModelProto, images: npt.NDArray[np.uint8]) -> Recipe:
    """Return what quantises the layers between stem and head, with ranges from ``images``.

    Raises
    ------
    ExportError
        If there are none.
    """
    whole = at_least_opset(model, _PER_CHANNEL_OPSET)
    layers = GraphLayers(whole)
    parts = {layers.sharing(layer.name)[0]: layers.sharing(layer.name) for layer in layers.body}
    _require_some(parts)
    ranges = measure_ranges(whole, images)

    def make(keep: Collection[str]) -> onnx.ModelProto:
        return quantise(whole, ranges, {name for first in keep for name in parts[first]})

    return Recipe(whole, parts, _kept(make))


def cast_recipe(
    model: onnx.ModelProto,
    precision: LowPrecision,
    too_large: Collection[str] = (),
    large: tuple[LargeTensor, ...] = (),
) -> Recipe:
    """Return what casts; with a layer, the nodes up to the next one go back to float32.

    Parameters
    ----------
    too_large : nodes that are float32 whatever is restored, for the tensors ``large``; of a float16
        graph, whose nodes are those of ``model``.

    Raises
    ------
    ExportError
        If there is nothing to cast.
    """
    whole = ready_for(model, precision)
    layers = GraphLayers(whole)
    behind = segments(layers)
    _require_some(behind)
    parts: dict[str, tuple[str, ...]] = {}
    for name in behind:
        first = next(one for one in layers.sharing(name) if one in behind)
        parts[first] = (*parts.get(first, ()), name)

    def make(keep: Collection[str]) -> onnx.ModelProto:
        restored = {node for first in keep for name in parts[first] for node in behind[name]}
        return to_low_precision(whole, precision, restored.union(too_large))

    return Recipe(whole, parts, _kept(make), large, frozenset(too_large).intersection(behind))


def _kept(make: _Make) -> _Make:
    """Return the same with the last two graphs kept: a search asks for the first one again."""
    known = lru_cache(maxsize=2)(make)
    return lambda keep: known(frozenset(keep))


def _require_some(layers: Collection[str]) -> None:
    if not layers:
        raise ExportError(
            "The graph has no layer between its first and its last one: there is nothing whose "
            "precision could be changed. Use --precision fp32."
        )
