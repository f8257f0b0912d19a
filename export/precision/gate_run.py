"""A graph through the gate: its answers against the float32 ones, on images kept for choosing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy.arrays import FloatArray
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import Dataset, align_labels
from ltdeploy.engines import Engine
from ltdeploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from ltdeploy.errors import DataError
from ltdeploy.images import load_prepared
from ltdeploy.inference import Logits, batch_size_for, collect_logits
from ltdeploy.preprocessing import Preprocessing
from ltdeploy.progress import Tracker, silent
from ltdeploy.verify.assess import Accumulator
from ltdeploy.verify.result import VerifyResult, name_some

from .damage import tail_images
from .sampling import CalibrationImages, read_balanced

if TYPE_CHECKING:
    import onnx

__all__ = ["ClassifierTask", "GateRun", "OpenGraph", "float32_logits", "on_onnxruntime"]

OpenGraph = Callable[["onnx.ModelProto"], Engine]
_RANKING_IMAGES = 256


def on_onnxruntime(model: onnx.ModelProto) -> Engine:
    """Load a graph into ONNX Runtime's CPU engine, which is what float32 answers come from."""
    return OnnxRuntimeEngine(model.SerializeToString())


def float32_logits(
    model: onnx.ModelProto,
    dataset: Dataset,
    labels: npt.NDArray[np.int64],
    classes: ClassTable,
    preprocessing: Preprocessing,
    track: Tracker = silent,
) -> Logits:
    """Return the float32 graph's answers to the images that a gate is to run on.

    Parameters
    ----------
    labels : array of shape (N,), aligned to ``classes``.

    Raises
    ------
    DataError
        If no image of the rarest group is among them: what that group loses would not be seen.
    """
    engine = on_onnxruntime(model)
    try:
        logits = collect_logits(
            engine, dataset, labels, preprocessing, track=track, label="gate, float32"
        )
    finally:
        engine.close()
    rarest = next(name for name in reversed(classes.rule.names) if len(classes.members(name)))
    members = classes.members(rarest)
    if not np.isin(logits.labels, members).any():
        raise DataError(
            f"{dataset.name} has no image of the {rarest} group, the rarest of this model, so what "
            "that group loses could not be seen. Give --val images of its "
            f"{len(members)} classes: {name_some([classes.names[label] for label in members])}."
        )
    return logits


@dataclass(eq=False)
class GateRun:
    """The images that precision is chosen on, with the reference's answers.

    Parameters
    ----------
    dataset, labels : N labelled images, labels aligned to ``classes``.
    reference : the float32 logits of every readable one.
    open_graph : loads a graph into the engine that is to run it.
    margin : points of class-averaged accuracy that a group may lose.
    """

    dataset: Dataset
    labels: npt.NDArray[np.int64]
    classes: ClassTable
    preprocessing: Preprocessing
    reference: Logits
    open_graph: OpenGraph
    margin: float = 1.0
    track: Tracker = silent

    def judge(self, model: onnx.ModelProto, label: str) -> VerifyResult:
        """Run a graph on all images and return what ``verify`` would say of it.

        Raises
        ------
        DataError
            If other images are readable now than when the reference ran.
        """
        engine = self.open_graph(model)
        try:
            answers = collect_logits(
                engine,
                self.dataset,
                self.labels,
                self.preprocessing,
                track=self.track,
                label=label,
            )
        finally:
            engine.close()
        if not np.array_equal(answers.indices, self.reference.indices):
            raise DataError(
                f"An image of {self.dataset.name} was readable once and unreadable later; the two "
                "graphs would be compared on different images. Run the same command again."
            )
        compared = Accumulator(self.classes)
        compared.update(
            answers.labels, self.reference.logits, answers.logits, indices=answers.indices
        )
        return compared.result(self.margin, unreadable=len(answers.unreadable))

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """Fingerprints of its images, shape (N,)."""
        return self.reference.hashes

    @property
    def unreadable(self) -> tuple[tuple[str, str], ...]:
        """Identifier and reason of every image that could not be used."""
        return self.reference.unreadable

    def facts(self) -> dict[str, Any]:
        """Return for JSON what its measurements follow from, beside the images."""
        return {
            "counts": self.classes.counts,
            "groups": self.classes.groups,
            "preprocessing": self.preprocessing.to_dict(),
        }

    def truth(self) -> bytes:
        """Return the labels of the images as bytes."""
        return self.reference.labels.tobytes()

    @cached_property
    def tail(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Up to 256 prepared images of the rarest classes, and their labels."""
        chosen = tail_images(self.reference.labels, self.classes, _RANKING_IMAGES)
        images = [
            load_prepared(self.dataset.source(int(index)), self.preprocessing)
            for index in self.reference.indices[chosen]
        ]
        return np.stack(images), self.reference.labels[chosen]

    def tail_logits(self, model: onnx.ModelProto) -> FloatArray:
        """Return a graph's logits of the images of :attr:`tail`; they need not be finite."""
        images, _ = self.tail
        size = batch_size_for(self.preprocessing)
        engine = self.open_graph(model)
        try:
            entry = engine.inputs[0].name
            return np.concatenate(
                [
                    engine.run({entry: images[start : start + size]})["logits"]
                    for start in range(0, len(images), size)
                ]
            )
        finally:
            engine.close()


@dataclass(frozen=True, eq=False)
class ClassifierTask:
    """How labelled images are read and a classifier's graphs judged.

    Parameters
    ----------
    preprocessing : of the bundle.
    """

    classes: ClassTable
    preprocessing: Preprocessing

    def balanced(self, dataset: Dataset, budget: int) -> CalibrationImages:
        """Read at most ``budget`` images, as many of each class as there are."""
        labels = align_labels(dataset, self.classes)
        return read_balanced(dataset, labels, self.preprocessing, budget)

    def gate(
        self,
        whole: onnx.ModelProto,
        dataset: Dataset,
        margin: float,
        open_graph: OpenGraph,
        track: Tracker,
    ) -> GateRun:
        """Return the gate on labelled images, with what the float32 graph answers."""
        labels = align_labels(dataset, self.classes)
        how = self.classes, self.preprocessing
        reference = float32_logits(whole, dataset, labels, *how, track)
        return GateRun(dataset, labels, *how, reference, open_graph, margin, track)
