"""Batches for a graph that takes one image at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from .base import Engine, TensorSpec, check_feeds

__all__ = ["OneByOne", "any_batch"]


def any_batch(engine: Engine) -> Engine:
    """Return an engine that takes batches: the same, or around one whose graph takes one image."""
    axes = {spec.shape[0] for spec in engine.inputs}
    return OneByOne(engine) if axes == {1} else engine


class OneByOne:
    """An engine whose graph was exported for one image, run once for each image of a batch."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.inputs = tuple(map(_open, engine.inputs))
        self.outputs = tuple(map(_open, engine.outputs))

    @property
    def name(self) -> str:
        """What runs."""
        return self._engine.name

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch; see :meth:`ltdeploy.engines.base.Engine.run`."""
        check_feeds(self.name, self.inputs, feeds)
        count = min(len(array) for array in feeds.values())
        found = [
            self._engine.run({name: array[at : at + 1] for name, array in feeds.items()})
            for at in range(count)
        ]
        return {
            spec.name: np.concatenate([one[spec.name] for one in found])
            if found
            else np.empty([0 if axis is None else axis for axis in spec.shape], spec.dtype)
            for spec in self.outputs
        }

    def close(self) -> None:
        """Release what the engine holds."""
        self._engine.close()


def _open(spec: TensorSpec) -> TensorSpec:
    return replace(spec, shape=(None, *spec.shape[1:]))
