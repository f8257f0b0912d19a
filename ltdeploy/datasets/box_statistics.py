"""How large the boxes of a data set are, and how many each class has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..arrays import IntArray
from .boxes import BoxDataset

__all__ = ["LARGE_FROM_PX2", "SMALL_BELOW_PX2", "BoxStatistics", "box_statistics"]

SCHEMA = 1
# COCO's sizes (Lin et al. 2014, arXiv 1405.0312; cocodataset.org/#detection-eval), by area.
SMALL_BELOW_PX2 = 32**2
LARGE_FROM_PX2 = 96**2
SIZES = ("small", "medium", "large")


@dataclass(frozen=True)
class SizeStatistics:
    """The boxes of one size.

    Parameters
    ----------
    boxes : how many there are.
    box_share : of all boxes, in percent; None where there is no box.
    images : how many images hold at least one.
    image_share : of all images, in percent.
    """

    boxes: int
    box_share: float | None
    images: int
    image_share: float


@dataclass(frozen=True)
class ClassStatistics:
    """The boxes of one class.

    Parameters
    ----------
    group : the file's group of the class; else what its images here would make it in training.
    images : how many images hold at least one of its boxes.
    boxes : how many there are.
    small, medium, large : how many of them are of this size.
    """

    name: str
    label: int
    group: str
    images: int
    boxes: int
    small: int
    medium: int
    large: int


@dataclass(frozen=True)
class BoxStatistics:
    """Sizes and classes of a data set's boxes; crowds are counted by themselves.

    Parameters
    ----------
    name : of the data set.
    images, empty_images : how many there are, and how many of them have no box.
    boxes, crowds : how many boxes are of one object, and of many.
    federated : whether each image was searched for a few classes only.
    groups : the group names, most frequent first.
    sizes : ``small``, ``medium`` and ``large``, as COCO has them: below 32², below 96², above.
    classes : in label order.
    notes : what was cut or left out on reading.
    """

    name: str
    images: int
    empty_images: int
    boxes: int
    crowds: int
    federated: bool
    groups: tuple[str, ...]
    sizes: Mapping[str, SizeStatistics]
    classes: tuple[ClassStatistics, ...]
    notes: tuple[str, ...]

    @property
    def imbalance(self) -> float | None:
        """Boxes of the most frequent class over those of the rarest that has any."""
        counts = [one.boxes for one in self.classes if one.boxes]
        return max(counts) / min(counts) if counts else None

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable result; shares are in percent."""
        return {"schema": SCHEMA, "imbalance": self.imbalance, **asdict(self)}


def box_statistics(dataset: BoxDataset) -> BoxStatistics:
    """Count a data set's boxes by size and class, and the images that hold them.

    Sizes go by the file's areas: of the masks, where there are any. The share of images beside the
    share of boxes shows what hides in an average: of COCO's boxes 41 % are small, but only 52 % of
    its images hold one (Kisantal et al. 2019, arXiv 1902.07296).
    """
    single = [~truth.crowd for truth in dataset.truths]
    labels = np.concatenate(
        [truth.labels[one] for truth, one in zip(dataset.truths, single, strict=True)]
    )
    areas = np.concatenate(
        [truth.area[one] for truth, one in zip(dataset.truths, single, strict=True)]
    )
    image_of = np.repeat(np.arange(len(dataset)), [one.sum() for one in single])
    size_of = np.digitize(areas, (SMALL_BELOW_PX2, LARGE_FROM_PX2))
    by_class = _table(labels, size_of, len(dataset.class_names))
    counts = dataset.counts().tolist()
    rule = dataset.group_rule
    ruling = counts if dataset.train_counts is None else dataset.train_counts
    groups = dataset.groups or [rule.group_of(count) for count in ruling]
    return BoxStatistics(
        name=dataset.name,
        images=len(dataset),
        empty_images=sum(not len(truth) for truth in dataset.truths),
        boxes=len(labels),
        crowds=sum(len(truth) for truth in dataset.truths) - len(labels),
        federated=dataset.is_federated,
        groups=rule.names,
        sizes={
            name: _size(image_of[size_of == at], len(labels), len(dataset))
            for at, name in enumerate(SIZES)
        },
        classes=tuple(
            ClassStatistics(name, label, group, images, sum(sizes), *sizes)
            for label, (name, group, images, sizes) in enumerate(
                zip(dataset.class_names, groups, counts, by_class.tolist(), strict=True)
            )
        ),
        notes=dataset.notes,
    )


def _size(image_of: IntArray, boxes: int, images: int) -> SizeStatistics:
    holding = len(np.unique(image_of))
    return SizeStatistics(
        boxes=len(image_of),
        box_share=100 * len(image_of) / boxes if boxes else None,
        images=holding,
        image_share=100 * holding / images,
    )


def _table(rows: IntArray, columns: IntArray, count: int) -> IntArray:
    """Return how often each row and size stand together, shape (count, 3)."""
    flat = np.bincount(rows * len(SIZES) + columns, minlength=count * len(SIZES))
    return flat.reshape(count, len(SIZES)).astype(np.int64)
