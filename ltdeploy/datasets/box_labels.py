"""A data set of boxes in the label order of a model: by names, never by order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..arrays import IntArray
from ..errors import DataError, did_you_mean
from .boxes import BoxDataset

__all__ = ["align_boxes"]

_SHOWN = 5


def align_boxes(dataset: BoxDataset, class_names: Sequence[str]) -> BoxDataset:
    """Return the data set with its labels in a model's order; names decide, never the order.

    Classes that the model does not know are left out where no box has them, and classes that the
    file does not know stay without boxes; both are told in the notes.

    Parameters
    ----------
    class_names : the model's foreground classes in label order.

    Raises
    ------
    DataError
        If a class with boxes is not among the model's, with what is missing on either side; or if
        the model's classes have no names.
    """
    names = tuple(class_names)
    if names == dataset.class_names:
        return dataset
    label_of = {name: label for label, name in enumerate(names)}
    strange = [name for name in dataset.class_names if name not in label_of]
    lacking = [name for name in names if name not in set(dataset.class_names)]
    has_boxes = np.bincount(
        np.concatenate([truth.labels for truth in dataset.truths]),
        minlength=len(dataset.class_names),
    )
    drawn = dict(zip(dataset.class_names, has_boxes.tolist(), strict=True))
    unknown = [name for name in strange if drawn[name]]
    if unknown and names == tuple(map(str, range(len(names)))):
        raise DataError(
            f"The model's {len(names)} classes have no names, and boxes are matched by name; "
            f"{dataset.name} has {_listed(dataset.class_names)}. Give the names in label order "
            "with --classes FILE."
        )
    if unknown:
        other = f" Of the model's classes the file lacks {_listed(lacking)}." if lacking else ""
        raise DataError(
            f"{dataset.name} has boxes of classes that the model does not know: "
            f"{_listed(unknown)}. Expected the names of its {len(names)} classes.{other}"
            f"{did_you_mean(unknown[0], lacking or names)}"
        )
    notes = list(dataset.notes)
    if strange:
        notes.append(
            f"{_classes(strange)} of {dataset.name} without a box {_are(strange)} not known to the "
            f"model and left out: {_listed(strange)}."
        )
    if lacking:
        notes.append(
            f"{_classes(lacking)} of the model {_are(lacking)} not known to {dataset.name} and "
            f"cannot be measured: {_listed(lacking)}."
        )
    target = np.array([label_of.get(name, -1) for name in dataset.class_names], dtype=np.int64)
    place = {name: label for label, name in enumerate(dataset.class_names)}
    order = [place.get(name) for name in names]
    return BoxDataset(
        dataset.name,
        names,
        [
            replace(
                image,
                negative=_mapped(image.negative, target),
                not_exhaustive=_mapped(image.not_exhaustive, target),
            )
            for image in dataset.images
        ],
        [replace(truth, labels=target[truth.labels]) for truth in dataset.truths],
        category_ids=np.array(
            [-1 if at is None else dataset.category_ids[at] for at in order], dtype=np.int64
        ),
        groups=_reordered(dataset.groups, order),
        train_counts=_reordered(dataset.train_counts, order),
        notes=notes,
        segmentations=lambda: dataset.segmentations,
    )


def _reordered(values: Sequence[Any] | None, order: Sequence[int | None]) -> list[Any] | None:
    """Return the values in another order; None where there are none, or one has no place."""
    if values is None or None in order:
        return None
    return [values[at] for at in order if at is not None]


def _mapped(labels: IntArray | None, target: IntArray) -> IntArray | None:
    if labels is None:
        return None
    moved: IntArray = target[labels]
    return moved[moved >= 0]


def _classes(names: Sequence[str]) -> str:
    return "1 class" if len(names) == 1 else f"{len(names)} classes"


def _are(names: Sequence[str]) -> str:
    return "is" if len(names) == 1 else "are"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(repr(name) for name in names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown
