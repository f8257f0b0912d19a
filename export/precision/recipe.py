"""How a graph is brought to a precision, given which of its layers stay in float32."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ltdeploy.errors import ExportError

from .cast import LowPrecision, at_least_opset, ready_for, segments, to_low_precision
from .layers import GraphLayers
from .quantise import measure_ranges, quantise
from .ranges import LargeTensor

if TYPE_CHECKING:
    import onnx

__all__ = ["Recipe", "cast_recipe", "int8_recipe"]

_PER_CHANNEL_OPSET = 13  # the first whose DequantizeLinear has a scale per channel


@dataclass(frozen=True, eq=False)
class Recipe:
    """What makes a graph of a precision.

    Attributes
    ----------
    whole : the float32 graph.
    layers : those that are lowered, in the graph's order.
    make : makes the graph from the layers to restore.
    large : tensors for which some are float32 whatever is restored; ``always`` names those layers.
    """

    whole: onnx.ModelProto
    layers: tuple[str, ...]
    make: Callable[[Collection[str]], onnx.ModelProto]
    large: tuple[LargeTensor, ...] = ()
    always: frozenset[str] = frozenset()

    def low_share(self, restored: Collection[str]) -> float:
        """Return the share of the multiply-adds that are in low precision."""
        low = [n for n in self.layers if n not in restored and n not in self.always]
        return GraphLayers(self.whole).low_share(low)


def int8_recipe(model: onnx.ModelProto, images: npt.NDArray[np.uint8]) -> Recipe:
    """Return what quantises the layers between stem and head, with ranges from ``images``.

    Raises
    ------
    ExportError
        If there are none.
    """
    whole = at_least_opset(model, _PER_CHANNEL_OPSET)
    layers = tuple(layer.name for layer in GraphLayers(whole).body)
    _require_some(layers)
    ranges = measure_ranges(whole, images)
    return Recipe(whole, layers, lambda keep: quantise(whole, ranges, keep))


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
    parts = segments(GraphLayers(whole))
    layers = tuple(parts)
    _require_some(layers)

    def make(keep: Collection[str]) -> onnx.ModelProto:
        restored = {node for name in keep for node in parts[name]}
        return to_low_precision(whole, precision, restored.union(too_large))

    return Recipe(whole, layers, make, large, frozenset(too_large).intersection(layers))


def _require_some(layers: Collection[str]) -> None:
    if not layers:
        raise ExportError(
            "The graph has no layer between its first and its last one: there is nothing whose "
            "precision could be changed. Use --precision fp32."
        )
