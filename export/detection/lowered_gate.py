"""A detector's graph through the gate: what it finds against what the float32 one finds."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ltdeploy.arrays import FloatArray, IntArray
from ltdeploy.boxes import Detections
from ltdeploy.canvas import Canvas, load_on_canvas
from ltdeploy.classes import ClassTable
from ltdeploy.datasets.box_labels import align_boxes
from ltdeploy.datasets.box_loader import BoxLoader
from ltdeploy.datasets.boxes import BoxDataset
from ltdeploy.engines import Engine
from ltdeploy.engines.one_by_one import any_batch
from ltdeploy.errors import DataError
from ltdeploy.inference import batch_size_for, fingerprints
from ltdeploy.metrics.matching import (
    COCO_LIMITS,
    LVIS_LIMITS,
    ImageTruth,
    Matches,
    match,
    truth_of,
)
from ltdeploy.postprocess import KeepRule, ScoreRule, postprocess_batch
from ltdeploy.progress import Tracker, silent
from ltdeploy.verify.boxes import BoxDifferences, decide
from ltdeploy.verify.boxes.gate import StratumDecision, overall_verdict
from ltdeploy.verify.result import name_some

from ..precision.gate_run import OpenGraph, on_onnxruntime
from ..precision.sampling import CalibrationImages, read_first
from ..precision.search import GroupTrade, Judged
from .lowered_tail import TailObjects, balanced_photographs, object_logits, tail_objects

if TYPE_CHECKING:
    import onnx

__all__ = ["BoxGateRun", "DetectorTask", "FoundBoxes"]


@dataclass(frozen=True, eq=False)
class FoundBoxes:
    """What a graph finds in every photograph that can be read.

    Attributes
    ----------
    indices : their places in the data set, shape (N,).
    hashes : fingerprints of the canvases, shape (N,), uint64.
    unreadable : identifier and reason of the others.
    """

    detections: tuple[Detections, ...]
    indices: IntArray
    hashes: npt.NDArray[np.uint64]
    unreadable: tuple[tuple[str, str], ...]


@dataclass(frozen=True, eq=False)
class DetectorTask:
    """How photographs with boxes are read and a detector's graphs judged."""

    classes: ClassTable
    canvas: Canvas
    score_rule: ScoreRule
    keep_rule: KeepRule

    def balanced(self, dataset: BoxDataset, budget: int) -> CalibrationImages:
        """Read at most ``budget`` canvases: one of every class, then a second of every class."""
        aligned = align_boxes(dataset, self.classes.names)

        def load(index: int, name: str) -> npt.NDArray[np.uint8]:
            return load_on_canvas(aligned.source(index), self.canvas, name=name)[0]

        order = balanced_photographs(aligned)
        images, places, unreadable = read_first(aligned, order, budget, load)
        shown = np.concatenate([aligned.truth(int(place)).labels for place in places])
        return CalibrationImages(images, places, unreadable, len(np.unique(shown)))

    def gate(
        self,
        whole: onnx.ModelProto,
        dataset: BoxDataset,
        margin: float,
        open_graph: OpenGraph,
        track: Tracker,
    ) -> BoxGateRun:
        """Return the gate on photographs, with what the float32 graph finds in them.

        Raises
        ------
        DataError
            If none of them shows a class of the rarest group: what that group loses would not be
            seen.
        """
        aligned = align_boxes(dataset, self.classes.names)
        engine = any_batch(on_onnxruntime(whole))
        try:
            reference = self.find(engine, aligned, track, "gate, float32")
        finally:
            engine.close()
        self._require_rarest(aligned, reference.indices)
        return BoxGateRun(self, aligned, reference, open_graph, margin, track)

    def find(self, engine: Engine, dataset: BoxDataset, track: Tracker, label: str) -> FoundBoxes:
        """Return what an engine's graph finds in every readable photograph."""
        loader = BoxLoader(dataset, self.canvas, batch_size=batch_size_for(self.canvas))
        found: list[Detections] = []
        indices: list[IntArray] = []
        hashes: list[npt.NDArray[np.uint64]] = []
        for batch in track(loader, total=len(loader), label=label):
            outputs = engine.run({"images": batch.images})
            rules = self.score_rule, self.keep_rule
            found += postprocess_batch(outputs, *rules, batch.placements, batch.names)
            indices.append(batch.indices)
            hashes.append(fingerprints(batch.images))
        return FoundBoxes(
            tuple(found), np.concatenate(indices), np.concatenate(hashes), tuple(loader.unreadable)
        )

    def _require_rarest(self, dataset: BoxDataset, readable: IntArray) -> None:
        table = self.classes
        rarest = next(name for name in reversed(table.rule.names) if len(table.members(name)))
        members = table.members(rarest)
        truths = [dataset.truth(index) for index in readable.tolist()]
        if not any(np.isin(one.labels[~one.crowd], members).any() for one in truths):
            raise DataError(
                f"{dataset.name} has no object of the {rarest} group, the rarest of this model, so "
                "what that group loses could not be seen. Give --val photographs of its "
                f"{len(members)} classes: {name_some([table.names[at] for at in members])}."
            )


@dataclass(eq=False)
class BoxGateRun:
    """The photographs that precision is chosen on, with what the reference finds.

    Parameters
    ----------
    dataset : its classes in the model's order.
    reference : what the float32 graph finds.
    open_graph : loads a graph into the engine that is to run it.
    margin : points of average precision that a group may lose.
    """

    task: DetectorTask
    dataset: BoxDataset
    reference: FoundBoxes
    open_graph: OpenGraph
    margin: float = 1.0
    track: Tracker = silent

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """Fingerprints of the canvases, shape (N,)."""
        return self.reference.hashes

    @property
    def unreadable(self) -> tuple[tuple[str, str], ...]:
        """Identifier and reason of every photograph that could not be used."""
        return self.reference.unreadable

    def facts(self) -> dict[str, Any]:
        """Return for JSON what its measurements follow from, beside the photographs."""
        task = self.task
        return {
            "names": task.classes.names,
            "counts": task.classes.counts,
            "groups": task.classes.groups,
            "canvas": task.canvas.to_dict(),
            "scores": asdict(task.score_rule),
            "keep": asdict(task.keep_rule),
            "federated": self.dataset.is_federated,
        }

    def truth(self) -> bytes:
        """Return the boxes of the photographs as bytes."""
        told = [
            [
                one.boxes.tolist(),
                one.labels.tolist(),
                one.crowd.tolist(),
                *(None if some is None else some.tolist() for some in _federated(one)),
            ]
            for one in self._truth
        ]
        return json.dumps(told).encode()

    def judge(self, model: onnx.ModelProto, label: str) -> Judged:
        """Run a graph on all photographs and return what ``verify`` would say of it.

        Raises
        ------
        DataError
            If other photographs are readable now than when the reference ran.
        """
        engine = self.open_graph(model)
        try:
            found = self.task.find(engine, self.dataset, self.track, label)
        finally:
            engine.close()
        if not np.array_equal(found.indices, self.reference.indices):
            raise DataError(
                f"An image of {self.dataset.name} was readable once and unreadable later; the two "
                "graphs would be compared on different images. Run the same command again."
            )
        table = self.task.classes
        apart = BoxDifferences(len(table))
        for ours, theirs in zip(self.reference.detections, found.detections, strict=True):
            apart.add(ours, theirs)
        strata = {"overall": np.arange(len(table))}
        strata |= {name: table.members(name) for name in table.rule.names}
        strata = {name: labels for name, labels in strata.items() if len(labels)}
        decided = decide(
            self._reference_matches,
            self._matches(found),
            strata,
            self.margin,
            equivalent=apart.equivalent,
        )
        groups = {name: _group(len(strata[name]), one) for name, one in decided.items()}
        flips = int(apart.lost.sum() + apart.new.sum())
        verdict = overall_verdict(list(decided.values()))
        return Judged(verdict, flips, groups.pop("overall"), groups)

    @cached_property
    def tail(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
        """Canvases with objects of the rarest classes; the first logit of an object is its own."""
        images = [
            load_on_canvas(self.dataset.source(int(index)), self.task.canvas)[0]
            for index in self.reference.indices[self._tail.photographs]
        ]
        return np.stack(images), np.zeros(len(self._tail.rows), np.int64)

    def tail_logits(self, model: onnx.ModelProto) -> FloatArray:
        """Return what speaks for and against each object of the tail, see :mod:`.lowered_tail`.

        NaN where the graph gives what is not finite.
        """
        images, _ = self.tail
        tail, task = self._tail, self.task
        size = batch_size_for(task.canvas)
        logits = np.full((len(tail.rows), 2), np.nan)
        engine = self.open_graph(model)
        try:
            for start in range(0, len(images), size):
                outputs = engine.run({"images": images[start : start + size]})
                for at, place in enumerate(tail.photographs[start : start + size].tolist()):
                    own = tail.rows == start + at
                    logits[own] = self._of_photograph(outputs, at, place, tail.objects[own])
        finally:
            engine.close()
        return logits

    def _of_photograph(
        self, outputs: dict[str, FloatArray], at: int, place: int, objects: IntArray
    ) -> FloatArray:
        task = self.task
        one = {name: values[at : at + 1] for name, values in outputs.items()}
        if not all(np.isfinite(values).all() for values in one.values()):
            return np.full((len(objects), 2), np.nan)
        index = int(self.reference.indices[place])
        width_px, height_px = self.dataset.size_px(index)
        rules = task.score_rule, task.keep_rule
        placed = [task.canvas.place(height_px, width_px)]
        (found,) = postprocess_batch(one, *rules, placed, [self.dataset.identifier(index)])
        return object_logits(found, self._truth[place], objects, task.keep_rule.score_threshold)

    @cached_property
    def _truth(self) -> list[ImageTruth]:
        known = truth_of(self.dataset)
        return [known[index] for index in self.reference.indices.tolist()]

    @cached_property
    def _tail(self) -> TailObjects:
        canvas = self.task.canvas
        return tail_objects(self._truth, self.task.classes, canvas.height_px * canvas.width_px)

    @cached_property
    def _reference_matches(self) -> Matches:
        return self._matches(self.reference)

    def _matches(self, found: FoundBoxes) -> Matches:
        limits = LVIS_LIMITS if self.dataset.is_federated else COCO_LIMITS
        return match(self._truth, found.detections, len(self.task.classes), limits)


def _federated(truth: ImageTruth) -> tuple[IntArray | None, IntArray | None]:
    return truth.negative, truth.not_exhaustive


def _group(classes: int, decision: StratumDecision) -> GroupTrade:
    return GroupTrade(
        reference=decision.reference,
        candidate=decision.candidate,
        difference=decision.difference,
        ci_low=decision.ci_low,
        ci_high=decision.ci_high,
        verdict=decision.verdict,
        classes=classes,
        classes_without_images=classes - decision.classes,
    )
