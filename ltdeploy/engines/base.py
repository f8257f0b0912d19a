"""The engine protocol: what executes a graph, whatever library does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..errors import EngineError

__all__ = ["Engine", "TensorSpec", "check_finite"]


@dataclass(frozen=True)
class TensorSpec:
    """Name, dtype and shape of a graph input or output; None stands for an axis of any length."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@runtime_checkable
class Engine(Protocol):
    """A loaded graph that can be run.

    Implementations are thread-safe in :meth:`run`, hold their resources until :meth:`close`, and
    refuse to be anything but the engine that was asked for.
    """

    @property
    def name(self) -> str:
        """What runs, for reports: ``"onnxruntime-cpu"``, ``"torch-cpu"``."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The graph's inputs."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs."""

    def run(self, feeds: Mapping[str, npt.NDArray[np.generic]]) -> dict[str, FloatArray]:
        """Run one batch.

        Parameters
        ----------
        feeds : arrays by input name; for a classifier ``{"images": uint8 [N, H, W, 3]}``.

        Returns
        -------
        dict of arrays by output name; for a classifier ``{"logits": float32 [N, C]}``.
        """

    def close(self) -> None:
        """Release what the engine holds; running it afterwards is an error."""


def check_finite(engine: str, logits: FloatArray, names: list[str]) -> None:
    """Raise if any row of ``logits`` (N, C) is not finite, naming the image and the engine.

    Parameters
    ----------
    engine : the engine's name, for the message.
    names : one name per row.
    """
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        first = int(np.flatnonzero(~finite)[0])
        values = int(np.sum(~np.isfinite(logits[first])))
        raise EngineError(
            f"The engine {engine} gave {values} non-finite logits (NaN or infinity) for the image "
            f"{names[first]} ({int(np.sum(~finite))} of {len(names)} images in this batch); the "
            "model's weights are at fault. Check the checkpoint with 'ltdeploy inspect'."
        )
