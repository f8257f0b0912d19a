"""What the parts of the server know of each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ltdeploy.classes import ClassTable
from ltdeploy.engines import TensorSpec

__all__ = ["BatchReport", "Models", "ServedModel"]

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class BatchReport:
    """One run of an engine.

    Attributes
    ----------
    images, requests : in the batch.
    queued_s : how long each request had waited when the run began.
    run_s : how long the engine took.
    failed : whether it raised.
    """

    images: int
    requests: int
    queued_s: Sequence[float]
    run_s: float
    failed: bool = False


class ServedModel(Protocol):
    """One version of a model that answers."""

    @property
    def name(self) -> str:
        """The model's name in addresses."""

    @property
    def version(self) -> str:
        """Its version, a whole number as text, as the protocol wants it."""

    @property
    def is_ready(self) -> bool:
        """Whether it answers."""

    @property
    def platform(self) -> str:
        """What runs it, e.g. ``"openvino-cpu"``."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """``images``, uint8 [N, H, W, 3]."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Of a classifier ``logits``, of a detector as its manifest says."""

    @property
    def classes(self) -> ClassTable:
        """Names, training counts and groups."""

    async def infer(
        self, feeds: Mapping[str, npt.NDArray[np.generic]], *, deadline_s: float | None = None
    ) -> Arrays:
        """Return the graph's outputs, run together with whatever else arrives.

        Parameters
        ----------
        feeds : ``{"images": uint8 [n, H, W, 3]}``, as :attr:`inputs` says.
        deadline_s : seconds from now after which the answer is of no use.

        Raises
        ------
        RequestError
            TooMany, Unavailable, Failed, or BadRequest where the feeds do not fit.
        """


class Models(Protocol):
    """The models that a server has."""

    def listed(self) -> Sequence[ServedModel]:
        """Return every version of every model, by name and version."""

    def get(self, name: str, version: str | None = None) -> ServedModel:
        """Return a version of a model; None is the newest that is ready.

        Raises
        ------
        NotFound
            If there is none.
        """

    @property
    def is_ready(self) -> bool:
        """Whether every model answers and the server does not drain."""
