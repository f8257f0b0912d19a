"""What each engine answers on labelled images, next to its speed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bundle import Bundle
from ..classes import ClassTable
from ..datasets import Dataset, Loader, align_labels
from ..engines import open_engine
from ..errors import DataError
from ..inference import collect_logits
from ..metrics import Bootstrap, Figure, figures_of
from ..progress import Tracker
from ..verify.gate import Decision, judge

__all__ = ["Accuracy", "Answers", "Change", "ClassifierTask", "change_between"]


@dataclass(frozen=True, eq=False)
class Answers:
    """The top-1 labels of one engine.

    Parameters
    ----------
    classes : of the model.
    indices, labels, predicted : arrays of shape (N,): place in the data, true label, answer.
    """

    classes: ClassTable
    indices: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    predicted: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Change:
    """Points won over the first engine on the same images: of accuracy, or of average precision.

    Parameters
    ----------
    balanced, groups : difference with its 95 % interval, of all classes and of each group.
    flips : images with another top-1 label; of detectors, detections that only one of the two has.
    """

    balanced: Figure | None
    groups: dict[str, Figure | None]
    flips: int

    def lost(self, margin: float = 0.0) -> dict[str, Figure]:
        """Return the groups that lost at least ``margin`` points, beyond chance."""
        return {
            name: figure
            for name, figure in self.groups.items()
            if figure is not None and figure.high < 0.0 and figure.value <= -margin
        }


@dataclass(frozen=True)
class Accuracy:
    """Accuracies in percent with their 95 % intervals; of detectors, average precisions.

    Parameters
    ----------
    images, unreadable : that were answered, and that could not be read.
    overall : share of the images that are right; of detectors the same as ``balanced``.
    balanced : mean over the classes.
    groups : mean over the classes of each group; None without images.
    chose_fix : images among them that chose the bundle's fix, and flatter it.
    change : against the first engine; None for itself, and where the classes are others.
    """

    images: int
    unreadable: int
    overall: Figure
    balanced: Figure
    groups: dict[str, Figure | None]
    chose_fix: int
    change: Change | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields, ready for JSON."""
        return asdict(self)


class ClassifierTask:
    """Labelled images that classifiers are timed on and answer.

    Parameters
    ----------
    dataset : None times them on their golden samples.
    """

    measure = "accuracy"

    def __init__(self, dataset: Dataset | None) -> None:
        self.dataset = dataset
        self._first: Answers | None = None

    def require_fitting(self, bundle: Bundle) -> None:
        """Raise if the labels do not fit a bundle's class table.

        Raises
        ------
        DataError
        """
        if self.dataset is not None:
            align_labels(self.dataset, bundle.classes)

    def images(self, bundle: Bundle, count: int) -> npt.NDArray[np.uint8]:
        """Return at most ``count`` prepared images, and at least one, uint8 (n, H, W, 3).

        Raises
        ------
        DataError
            If none is readable.
        """
        if self.dataset is None:
            return bundle.golden().images
        loader = Loader(self.dataset, self.dataset.labels, bundle.preprocessing, batch_size=count)
        for batch in loader:
            return batch.images
        raise DataError(
            f"None of the {len(self.dataset)} images of {self.dataset.name} is readable; the first "
            f"is {loader.unreadable[0][0]}: {loader.unreadable[0][1]}"
        )

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
            If labels do not fit the class table, or nothing is readable.
        EngineError
            If the engine cannot be opened, or gives non-finite logits.
        """
        assert self.dataset is not None
        classes = bundle.classes
        labels = align_labels(self.dataset, classes)
        opened = open_engine(bundle, engine)
        try:
            told = collect_logits(
                opened, self.dataset, labels, bundle.preprocessing, track=track, label=label
            )
        finally:
            opened.close()
        # Accuracies have Wilson's intervals; the replicates are for calibration, not shown here.
        bootstrap = Bootstrap(told.labels, classes, replicates=2)
        activation = bundle.manifest.head.activation
        figures = figures_of(told.logits, told.labels, classes, bootstrap, activation)
        answers = Answers(
            classes, told.indices, told.labels, told.logits.argmax(axis=1).astype(np.int64)
        )
        change = None if self._first is None else change_between(self._first, answers)
        if is_first:
            self._first = answers
        return Accuracy(
            images=len(told.labels),
            unreadable=len(told.unreadable),
            overall=figures.overall,
            balanced=figures.balanced,
            groups=figures.groups,
            chose_fix=int(np.isin(told.hashes, bundle.selection_hashes()).sum()),
            change=change,
        )


def change_between(first: Answers, other: Answers) -> Change | None:
    """Return what ``other`` wins over ``first``; None where they cannot be compared by image."""
    if first.classes != other.classes or not np.array_equal(first.indices, other.indices):
        return None
    classes, labels = other.classes, other.labels

    def per_class(chosen: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
        return np.bincount(labels[chosen], minlength=len(classes)).astype(np.int64)

    before, after = first.predicted == labels, other.predicted == labels
    decided = judge(
        per_class(np.ones(len(labels), dtype=bool)),
        per_class(before & ~after),
        per_class(after & ~before),
        {name: classes.members(name) for name in classes.rule.names},
    )
    return Change(
        balanced=_figure(decided.overall),
        groups={name: _figure(one) for name, one in decided.groups.items()},
        flips=int((first.predicted != other.predicted).sum()),
    )


def _figure(decision: Decision | None) -> Figure | None:
    if decision is None or decision.difference is None:
        return None
    assert decision.ci_low is not None
    assert decision.ci_high is not None
    return Figure(decision.difference, decision.ci_low, decision.ci_high)
