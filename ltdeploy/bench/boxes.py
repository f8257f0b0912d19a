"""What each engine finds in annotated photographs, next to its speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..arrays import IntArray
from ..boxes import Detections
from ..bundle import Bundle
from ..canvas import load_on_canvas
from ..classes import ClassTable
from ..datasets.box_labels import align_boxes
from ..datasets.box_loader import BoxLoader
from ..datasets.boxes import BoxDataset
from ..errors import DataError, ImageError
from ..inference import batch_size_for, fingerprints
from ..metrics import Figure
from ..metrics.matching import COCO_LIMITS, LVIS_LIMITS, Matches, match, truth_of
from ..progress import Tracker
from ..verify.boxes import BoxDifferences, bundle_side, decide, precision_figures
from .accuracy import Accuracy, Change

__all__ = ["DetectorTask"]


@dataclass(frozen=True, eq=False)
class _Found:
    """What one engine found in the photographs at ``indices``, and what of it is right."""

    classes: ClassTable
    indices: IntArray
    detections: tuple[Detections, ...]
    matches: Matches


class DetectorTask:
    """Annotated photographs that detectors are timed on and look at.

    Parameters
    ----------
    dataset : None times them on their golden samples.
    """

    measure = "average precision"

    def __init__(self, dataset: BoxDataset | None) -> None:
        self.dataset = dataset
        self._first: _Found | None = None

    def require_fitting(self, bundle: Bundle) -> None:
        """Raise if there are boxes of classes that a bundle does not know.

        Raises
        ------
        DataError
        """
        if self.dataset is not None:
            align_boxes(self.dataset, bundle.classes.names)

    def images(self, bundle: Bundle, count: int) -> npt.NDArray[np.uint8]:
        """Return at most ``count`` canvases, and at least one, uint8 (n, H, W, 3).

        Raises
        ------
        DataError
            If none is readable.
        """
        if self.dataset is None:
            return bundle.golden_detections().images
        found: list[npt.NDArray[np.uint8]] = []
        reason: ImageError | None = None
        for index in range(len(self.dataset)):
            try:
                found.append(load_on_canvas(self.dataset.source(index), bundle.canvas)[0])
            except ImageError as error:
                reason = reason or error
            if len(found) == count:
                break
        if not found:
            raise DataError(
                f"None of the {len(self.dataset)} images of {self.dataset.name} is readable; the "
                f"first: {reason}"
            )
        return np.stack(found)

    def accuracy(
        self, bundle: Bundle, engine: str, *, is_first: bool, track: Tracker, label: str
    ) -> Accuracy:
        """Run a bundle on an engine over the data.

        Parameters
        ----------
        is_first : whether it is what those after it are compared with.

        Raises
        ------
        DataError
            If classes or sizes of the photographs do not fit, or nothing is readable.
        EngineError
            If the engine cannot be opened, or gives what is no number.
        """
        assert self.dataset is not None
        side = bundle_side(bundle, engine)
        aligned = align_boxes(self.dataset, side.classes.names)
        loader = BoxLoader(aligned, side.canvas, batch_size=batch_size_for(side.canvas))
        found: list[Detections] = []
        indices: list[int] = []
        chose = 0
        try:
            for batch in track(loader, total=len(loader), label=label):
                found += side.found(side.raw(batch.images), batch.placements, batch.names)
                indices += batch.indices.tolist()
                chose += int(np.isin(fingerprints(batch.images), side.seen).sum())
        finally:
            side.engine.close()
        known = truth_of(aligned)
        limits = LVIS_LIMITS if aligned.is_federated else COCO_LIMITS
        matches = match([known[at] for at in indices], found, len(side.classes), limits)
        this = _Found(side.classes, np.array(indices, np.int64), tuple(found), matches)
        figures = precision_figures(matches, _strata(side.classes))
        overall = figures.pop("overall")
        if overall is None:
            raise DataError(f"No photograph of {self.dataset.name} holds an object to find.")
        change = None if self._first is None else _change(self._first, this)
        if is_first:
            self._first = this
        return Accuracy(
            images=len(indices),
            unreadable=len(loader.unreadable),
            overall=overall,
            balanced=overall,
            groups=dict(figures),
            chose_fix=chose,
            change=change,
        )


def _strata(classes: ClassTable) -> dict[str, IntArray]:
    groups = {name: np.array(classes.members(name), np.int64) for name in classes.rule.names}
    return {"overall": np.arange(len(classes)), **groups}


def _change(first: _Found, other: _Found) -> Change | None:
    """Return what ``other`` wins over ``first``; None where they cannot be compared by image."""
    if first.classes != other.classes or not np.array_equal(first.indices, other.indices):
        return None
    apart = BoxDifferences(len(other.classes))
    for ours, theirs in zip(first.detections, other.detections, strict=True):
        apart.add(ours, theirs)
    strata = _strata(other.classes)
    decided = decide(first.matches, other.matches, strata, margin=1.0)
    moved: Mapping[str, Figure | None] = {
        name: None
        if one.difference is None or one.ci_low is None or one.ci_high is None
        else Figure(one.difference, one.ci_low, one.ci_high)
        for name, one in decided.items()
    }
    return Change(
        balanced=moved["overall"],
        groups={name: figure for name, figure in moved.items() if name != "overall"},
        flips=int(apart.lost.sum() + apart.new.sum()),
    )
