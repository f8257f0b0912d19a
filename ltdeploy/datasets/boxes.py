"""Photographs with boxes: what every data set for detectors offers, wherever it comes from."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from ..boxes import box_area
from ..classes import LVIS_GROUPS, ClassTable, GroupRule
from ..errors import DataError
from ..images import ImageSource, load_image

__all__ = ["BoxDataset", "BoxImage", "BoxTruth", "Segmentation"]

Segmentation: TypeAlias = list[list[float]] | dict[str, Any]  # polygons, or COCO's RLE


@dataclass(frozen=True, eq=False)
class BoxTruth:
    """The boxes that people drew into one photograph, in the order of the file.

    Parameters
    ----------
    boxes : array of shape (G, 4), float32, xyxy in pixels, inside the photograph.
    labels : array of shape (G,), int64, over the data set's classes.
    crowd : array of shape (G,), bool: the box holds many that were not told apart (COCO's
        ``iscrowd``). Detections in it are neither right nor wrong.
    area : array of shape (G,), float64, px² as the file has it: of the mask where there is one, and
        of the box before it was cut. COCO's small, medium and large go by it.
    ids : array of shape (G,), int64: the file's annotation ids.
    """

    boxes: FloatArray
    labels: IntArray
    crowd: npt.NDArray[np.bool_]
    area: FloatArray
    ids: IntArray

    def __post_init__(self) -> None:
        count = len(self.labels)
        shapes = [a.shape for a in (self.boxes, self.labels, self.crowd, self.area, self.ids)]
        if shapes != [(count, 4), *[(count,)] * 4]:
            raise DataError(
                "Boxes, labels, crowd marks, areas and ids have the shapes "
                f"{', '.join(map(str, shapes))}; expected (G, 4) and four times (G,)."
            )

    @classmethod
    def empty(cls) -> BoxTruth:
        """Return no box."""
        return cls(
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.int64),
            np.zeros(0, np.bool_),
            np.zeros(0, np.float64),
            np.zeros(0, np.int64),
        )

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class BoxImage:
    """One photograph of a data set, undecoded.

    Parameters
    ----------
    id : the file's image id.
    name : what it is called in reports.
    source : where its pixels are.
    width_px, height_px : its size, which the boxes go by.
    negative : labels of which it was checked that none is in the photograph, int64; None where
        every class was looked for (COCO).
    not_exhaustive : labels that have boxes here and may be in the photograph more often, int64;
        None as above. LVIS (Gupta et al. 2019, arXiv 1908.03195, §3.1) scores a photograph only for
        the classes that have boxes in it or are negative, and takes detections that match no box
        for wrong only where the class is not in this set.
    """

    id: int
    name: str
    source: ImageSource
    width_px: int
    height_px: int
    negative: IntArray | None = None
    not_exhaustive: IntArray | None = None


class BoxDataset:
    """Photographs with boxes of classes; decoded by whoever asks, and not before.

    Parameters
    ----------
    name : for reports, for example ``"val.json"``.
    class_names : the foreground classes in label order; distinct.
    images : the photographs.
    truths : the boxes of each, empty where it has none.
    category_ids : the file's id of each class, -1 where the file does not have it; None means the
        labels.
    groups : LVIS's group of each class (``"frequent"``, ``"common"``, ``"rare"``), where the file
        tells it; it goes by the training images of LVIS, whatever the file holds.
    train_counts : training images per class, where a file that is not the training set tells them.
    notes : what was cut, left out or odd, as sentences for people.
    segmentations : gives polygons or RLE by annotation id; called once, when first asked for.

    Raises
    ------
    DataError
        For no image, ids or class names that stand twice, labels without a class, boxes that are
        not finite or have no area, and images of which only some have federated sets.
    """

    def __init__(
        self,
        name: str,
        class_names: Sequence[str],
        images: Sequence[BoxImage],
        truths: Sequence[BoxTruth],
        *,
        category_ids: IntArray | None = None,
        groups: Sequence[str] | None = None,
        train_counts: Sequence[int] | None = None,
        notes: Sequence[str] = (),
        segmentations: Callable[[], Mapping[int, Segmentation]] | None = None,
    ) -> None:
        self.name = name
        self.class_names = tuple(class_names)
        self.images = tuple(images)
        self.truths = tuple(truths)
        labels = np.arange(len(self.class_names), dtype=np.int64)
        self.category_ids = labels if category_ids is None else category_ids
        self.groups = None if groups is None else tuple(groups)
        self.train_counts = None if train_counts is None else tuple(train_counts)
        self.notes = tuple(notes)
        self._read_segmentations = segmentations
        self._check()

    def __len__(self) -> int:
        return len(self.images)

    def source(self, index: int) -> ImageSource:
        """Return the photograph at ``index`` undecoded: a path, bytes or an array."""
        return self.images[index].source

    def identifier(self, index: int) -> str:
        """Return what names the photograph in reports."""
        return self.images[index].name

    def size_px(self, index: int) -> tuple[int, int]:
        """Return width and height of the photograph in pixels."""
        return self.images[index].width_px, self.images[index].height_px

    def truth(self, index: int) -> BoxTruth:
        """Return the boxes of the photograph."""
        return self.truths[index]

    def negative(self, index: int) -> IntArray | None:
        """Return the labels known to be absent; None where every class was looked for."""
        return self.images[index].negative

    def not_exhaustive(self, index: int) -> IntArray | None:
        """Return the labels of which not all were drawn; None where every class was looked for."""
        return self.images[index].not_exhaustive

    def load(self, index: int) -> npt.NDArray[np.uint8]:
        """Decode the photograph: array of shape (H, W, 3), uint8, RGB.

        Raises
        ------
        ImageError
            If it cannot be decoded.
        DataError
            If it has another size than the boxes go by.
        """
        image = self.images[index]
        photo = load_image(image.source, name=image.name)
        if photo.size != (image.width_px, image.height_px):
            raise DataError(
                f"{image.name} is {photo.width} x {photo.height} pixels, but {self.name} says "
                f"{image.width_px} x {image.height_px}, so its boxes would lie elsewhere. Expected "
                "the photographs that were annotated, not resized; EXIF orientation is applied."
            )
        return np.asarray(photo)

    @property
    def is_federated(self) -> bool:
        """Whether each photograph was checked for a few classes only, as in LVIS."""
        return self.images[0].negative is not None

    @property
    def group_rule(self) -> GroupRule:
        """How counts make groups: LVIS's rule where the file is federated or tells its groups."""
        return LVIS_GROUPS if self.is_federated or self.groups is not None else GroupRule()

    @functools.cached_property
    def segmentations(self) -> Mapping[int, Segmentation]:
        """Polygons or RLE by annotation id, as the file has them; empty where it has none."""
        return self._read_segmentations() if self._read_segmentations is not None else {}

    def counts(self) -> IntArray:
        """Return in how many images each class has a box that is no crowd, shape (F,), int64."""
        classes = len(self.class_names)
        pairs = np.unique(self._image_of * classes + self._labels)
        return np.bincount(pairs % classes, minlength=classes).astype(np.int64)

    def instances(self) -> IntArray:
        """Return how many boxes each class has, without crowds, shape (F,), int64."""
        return np.bincount(self._labels, minlength=len(self.class_names)).astype(np.int64)

    def class_table(self) -> ClassTable:
        """Return the class table of a model trained on this data, counts in images.

        The counts are the file's training counts where it tells them, else :meth:`counts`.
        """
        counts = self.counts().tolist() if self.train_counts is None else self.train_counts
        return ClassTable(self.class_names, tuple(counts), self.group_rule)

    @functools.cached_property
    def _single(self) -> npt.NDArray[np.bool_]:
        return ~np.concatenate([truth.crowd for truth in self.truths])

    @property
    def _labels(self) -> IntArray:
        return np.concatenate([truth.labels for truth in self.truths])[self._single]

    @property
    def _image_of(self) -> IntArray:
        lengths = [len(truth) for truth in self.truths]
        return np.repeat(np.arange(len(self), dtype=np.int64), lengths)[self._single]

    def _check(self) -> None:
        if not self.images:
            raise DataError(f"The data set {self.name} has no image; expected at least one.")
        if len(self.truths) != len(self.images):
            raise DataError(
                f"The data set {self.name} has {len(self.images)} images and boxes of "
                f"{len(self.truths)}; expected one BoxTruth per image, empty where it has no box."
            )
        if not self.class_names:
            raise DataError(f"The data set {self.name} has no class; expected at least one.")
        _distinct(self.class_names, "class name", self.name)
        for what in ("category_ids", "groups", "train_counts"):
            values = getattr(self, what)
            if values is not None and len(values) != len(self.class_names):
                raise DataError(
                    f"The data set {self.name} has {len(self.class_names)} classes and "
                    f"{len(values)} {what}; expected one per class."
                )
        _distinct([image.id for image in self.images], "image id", self.name)
        ids = np.concatenate([truth.ids for truth in self.truths])
        _distinct(ids.tolist(), "annotation id", self.name)
        boxes = np.concatenate([truth.boxes for truth in self.truths])
        labels = np.concatenate([truth.labels for truth in self.truths])
        classes = len(self.class_names)
        for wrong, why in (
            (~np.isfinite(boxes).all(axis=1), "is not finite; expected numbers"),
            (box_area(boxes) <= 0, "has no area; leave it out"),
            ((labels < 0) | (labels >= classes), f"has no class; expected 0 to {classes - 1}"),
        ):
            if wrong.any():
                at = int(wrong.argmax())
                raise DataError(
                    f"The box {boxes[at].tolist()} of label {labels[at]} (annotation {ids[at]} of "
                    f"{self.name}) {why}."
                )
        federated = self.is_federated
        for image in self.images:
            if image.width_px < 1 or image.height_px < 1:
                raise DataError(
                    f"{image.name} of {self.name} is {image.width_px} x {image.height_px} pixels; "
                    "expected 1 or more."
                )
            if {image.negative is not None, image.not_exhaustive is not None} != {federated}:
                raise DataError(
                    f"{image.name} and {self.images[0].name} of {self.name} do not have the same "
                    "federated sets; expected negative and not-exhaustive labels for every image, "
                    "or for none."
                )


def _distinct(values: Sequence[Any], what: str, name: str) -> None:
    if len(set(values)) == len(values):
        return
    times = Counter(values)
    twice = next(value for value in values if times[value] > 1)
    raise DataError(f"The {what} {twice!r} stands {times[twice]} times in {name}; expected once.")
