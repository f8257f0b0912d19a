"""What scaled decoding of JPEG files costs on its own, before precision costs anything.

Scaled decoding changes the pixels, lower precision the arithmetic. Judged together, layers would be
restored for what decoding did.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy.classes import ClassTable
from ltdeploy.datasets import Dataset, align_labels
from ltdeploy.errors import ExportError
from ltdeploy.preprocessing import Preprocessing
from ltdeploy.progress import Tracker, silent

from .gate_run import GateRun, float32_logits, on_onnxruntime
from .search import Trial, trial_of

if TYPE_CHECKING:
    import onnx

__all__ = ["Scaling", "judge_scaling"]


@dataclass(frozen=True, eq=False)
class Scaling:
    """The float32 graph on scaled JPEG files against the same graph on whole ones.

    Attributes
    ----------
    name : of the data.
    images : how many were compared.
    margin : points of class-averaged accuracy that a group may lose.
    trial : what the gate said.
    seen : fingerprints of the images, decoded in full, array of shape (K,), uint64.
    unreadable : identifier and reason of every image that could not be used.
    """

    name: str
    images: int
    margin: float
    trial: Trial
    seen: npt.NDArray[np.uint64]
    unreadable: tuple[tuple[str, str], ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON and the report."""
        told = asdict(self.trial)
        kept = {key: told[key] for key in ("verdict", "flips", "groups")}
        return {"name": self.name, "images": self.images, "margin": self.margin, **kept}


def judge_scaling(
    model: onnx.ModelProto,
    dataset: Dataset,
    margin: float,
    classes: ClassTable,
    preprocessing: Preprocessing,
    *,
    track: Tracker = silent,
) -> Scaling:
    """Return what the gate says of scaled decoding in float32.

    Parameters
    ----------
    model : the float32 graph.

    Raises
    ------
    ExportError
        If it is not acceptable (:meth:`Trial.acceptable`): no precision would be.
    DataError
    """
    labels = align_labels(dataset, classes)
    full = float32_logits(model, dataset, labels, classes, preprocessing, track)
    scaled = replace(preprocessing, jpeg_scaling=True)
    gate = GateRun(dataset, labels, classes, scaled, full, on_onnxruntime, margin, track)
    trial = trial_of(gate.judge(model, "gate, scaled decoding"), (), model.ByteSize())
    if not trial.acceptable(margin):
        lost = ", ".join(
            f"{name} {group.difference:+.2f}"
            for name, group in trial.groups.items()
            if group.difference is not None
        )
        raise ExportError(
            f"Scaled decoding alone, in float32, costs too much for a margin of {margin:g}: {lost} "
            f"points, gate: {trial.verdict} ({trial.flips:,} of {len(full.labels):,} answers "
            "changed). Nothing was written. Leave out --jpeg-scaling, or say another --margin."
        )
    return Scaling(
        dataset.name, len(full.labels), margin, trial, full.hashes, tuple(full.unreadable)
    )
