"""The engine protocol: what executes a graph, whatever library does it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..errors import EngineError

__all__ = ["Engine", "TensorSpec", "check_feeds", "check_finite", "check_threads", "failed_batch"]

# ONNX Runtime starts as many threads as it is told, and a hundred thousand stop a machine.
_MOST_THREADS = 1024
_LONGEST_REASON = 500


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
        """What runs, for reports: ``"onnxruntime-cpu"``, ``"openvino-cpu"``, ``"torch-cpu"``."""

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
        dict of arrays by output name; for a classifier ``{"logits": float32 [N, C]}``. They are the
        caller's: no later run writes into them.

        Raises
        ------
        EngineError
            If the feeds are not what :attr:`inputs` says, or the device fails.
        """

    def close(self) -> None:
        """Release what the engine holds; running it afterwards is an error."""


def check_feeds(
    engine: str, inputs: tuple[TensorSpec, ...], feeds: Mapping[str, npt.NDArray[np.generic]]
) -> None:
    """Raise unless ``feeds`` are arrays of the names, dtypes and shapes that ``inputs`` say.

    Some runtimes cast another dtype, or run the last batch again where an input is missing.
    """
    if set(feeds) != {spec.name for spec in inputs}:
        raise EngineError(
            f"{engine} was given the inputs {sorted(feeds)}; expected "
            f"{sorted(spec.name for spec in inputs)}."
        )
    for spec in inputs:
        array = feeds[spec.name]
        fits = len(array.shape) == len(spec.shape) and all(
            wanted in (None, length) for wanted, length in zip(spec.shape, array.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(spec.dtype):
            wanted = ", ".join("N" if axis is None else str(axis) for axis in spec.shape)
            raise EngineError(
                f"{engine} was given {spec.name} as {array.dtype} {array.shape}; expected "
                f"{spec.dtype} ({wanted})."
            )


def check_threads(threads: int | None) -> None:
    """Raise unless ``threads`` is a number of threads, or None for all cores."""
    if threads is not None and not 1 <= threads <= _MOST_THREADS:
        raise EngineError(
            f"threads is {threads}; expected 1 to {_MOST_THREADS}, or nothing for all cores."
        )


def failed_batch(
    engine: str, feeds: Mapping[str, npt.NDArray[np.generic]], error: Exception
) -> EngineError:
    """Return the error of a batch that an engine's library could not run, in one line."""
    shapes = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
    reason = " ".join(str(error).split()) or type(error).__name__
    return EngineError(
        f"{engine} failed on the batch {shapes}: {reason[:_LONGEST_REASON]}. Where memory is "
        "short, use smaller batches; where the device is gone, see 'ltdeploy doctor'."
    )


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
            f"{names[first]} ({int(np.sum(~finite))} of {len(names)} images in this batch). The "
            "model's weights are at fault, or the range of the bundle's precision: check the "
            "checkpoint with 'ltdeploy inspect', or export with --precision fp32."
        )
