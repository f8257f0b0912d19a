"""Write a checkpoint in ltdeploy's own layout: plain types, loadable with ``weights_only=True``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .._optional import require
from ..canvas import Canvas
from ..classes import ClassTable
from ..errors import CheckpointError
from ..files import replacing
from ..preprocessing import Preprocessing

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "SCHEMA",
    "TrainData",
    "save_checkpoint",
    "save_detector_checkpoint",
    "write_content",
]

SCHEMA = 1


@dataclass(frozen=True)
class TrainData:
    """What a model was trained on.

    Parameters
    ----------
    name : of the data set.
    images : how many of its images were readable.
    hashes : their fingerprints, array of shape (M,), uint64: so that nobody chooses a fix on them.
    """

    name: str
    images: int
    hashes: npt.NDArray[np.uint64]


def save_checkpoint(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    *,
    arch: str,
    classes: ClassTable,
    preprocessing: Preprocessing,
    trained_with: str,
    epochs: int,
    seed: int,
    train_data: TrainData,
) -> None:
    """Write weights and all that is needed to use them.

    The layout is ``{"ltdeploy": {"schema": 1, "arch", "class_names", "train_counts",
    "preprocessing", "trained_with", "epochs", "seed", "train_data": {"name", "images", "hashes"}},
    "state_dict"}``. The file appears complete or not at all; one of that name is replaced.

    Parameters
    ----------
    state_dict : weights by name; copied to the CPU.
    trained_with : name of the loss, for example ``"cross_entropy"``.

    Raises
    ------
    CheckpointError
        If the file cannot be written.
    """
    told = _header(arch, classes, trained_with, epochs, seed, train_data)
    _write(path, told | {"preprocessing": preprocessing.to_dict()}, state_dict)


def save_detector_checkpoint(
    path: str | os.PathLike[str],
    state_dict: Mapping[str, Tensor],
    *,
    arch: str,
    classes: ClassTable,
    instances: Sequence[int],
    canvas: Canvas,
    trained_with: str,
    sampler: Mapping[str, Any] | None,
    epochs: int,
    seed: int,
    train_data: TrainData,
) -> None:
    """Write a detector's weights and all that is needed to use them.

    The layout is :func:`save_checkpoint`'s with ``"task": "detection"``, ``"canvas"`` in place of
    ``"preprocessing"``, ``"instances"`` and ``"sampler"``.

    Parameters
    ----------
    arch : ``torchvision:NAME``.
    classes : the foreground; its counts are images per class.
    instances : boxes per class, in label order.
    sampler : name and parameters of what dealt the images; None for each of them once an epoch.

    Raises
    ------
    CheckpointError
        If the file cannot be written.
    """
    told = _header(arch, classes, trained_with, epochs, seed, train_data)
    told |= {
        "task": "detection",
        "canvas": canvas.to_dict(),
        "instances": list(instances),
        "sampler": None if sampler is None else dict(sampler),
    }
    _write(path, told, state_dict)


def _header(
    arch: str,
    classes: ClassTable,
    trained_with: str,
    epochs: int,
    seed: int,
    train_data: TrainData,
) -> dict[str, Any]:
    torch = require("torch", extra="torch", purpose="write checkpoints")
    return {
        "schema": SCHEMA,
        "arch": arch,
        "class_names": list(classes.names),
        "train_counts": list(classes.counts),
        "trained_with": trained_with,
        "epochs": epochs,
        "seed": seed,
        "train_data": {
            "name": train_data.name,
            "images": train_data.images,
            # torch has no unsigned type of this width that old versions read
            "hashes": torch.from_numpy(np.sort(train_data.hashes).view(np.int64)),
        },
    }


def _write(
    path: str | os.PathLike[str], told: dict[str, Any], state_dict: Mapping[str, Tensor]
) -> None:
    weights = {name: value.detach().cpu() for name, value in state_dict.items()}
    write_content(Path(path), {"ltdeploy": told, "state_dict": weights})


def write_content(path: Path, content: dict[str, Any]) -> None:
    """Write tensors and plain values with ``torch.save``; whole, or not at all.

    Raises
    ------
    CheckpointError
        If the file cannot be written.
    """
    torch = require("torch", extra="torch", purpose="write checkpoints")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as temporary:
            torch.save(content, temporary)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise CheckpointError(
            f"The checkpoint {path} cannot be written: {reason}. Check the folder and the space "
            "left on the disk; nothing was changed."
        ) from error
