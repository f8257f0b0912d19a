"""COCO and LVIS json files of boxes: read strictly, and written for other people's evaluators."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..arrays import IntArray
from ..classes import LVIS_GROUPS
from ..errors import DataError
from .boxes import BoxDataset, BoxImage, Segmentation
from .coco_annotations import inside_photographs, read_annotations

__all__ = ["as_coco", "read_boxes"]

_LAYOUT = "a COCO or LVIS json: an object with lists 'images', 'annotations' and 'categories'"
_LETTERS = {"frequent": "f", "common": "c", "rare": "r"}
_GROUPS = {letter: group for group, letter in _LETTERS.items()}
_Locate = Callable[[Mapping[str, Any]], tuple[str, Path]]


def read_boxes(path: Path, root: Path | None = None, *, photographs: bool = True) -> BoxDataset:
    """Read the boxes of a COCO or LVIS json file; the labels follow the file's categories.

    Boxes that reach out of their photograph are cut; boxes without area, or wholly outside, are
    left out; the data set's notes name both. Everything else that is wrong is an error. Masks are
    not read before someone asks for them.

    LVIS files (Gupta et al. 2019, arXiv 1908.03195) are told by ``neg_category_ids``. Their
    ``frequency`` gives the groups. Their ``image_count`` counts the file's own split, so it is
    taken for training counts only where it agrees with the frequency of every class.

    Parameters
    ----------
    path : the json file.
    root : folder of the photographs; None means ``images`` beside the file, or the file's folder.
        Below it they are looked for under their ``file_name``, then under the last part of their
        ``coco_url``, then under its last two.
    photographs : False reads the boxes alone, for photographs that are not here.

    Raises
    ------
    DataError
        If the file is not such a json, has ids that stand twice or are unknown, or boxes that are
        not four finite numbers; or if the first photograph is not found.
    """
    masks: list[bool] = []

    def without_masks(found: dict[str, Any]) -> dict[str, Any]:
        # Polygons are most of a file, and lists of floats take several times that in memory.
        if "segmentation" in found:
            masks.append(bool(found.pop("segmentation")))
        return found

    record = _load(path, without_masks)
    categories = _objects(record, "categories", path)
    label_of = _places(categories, "category", path)
    described = _objects(record, "images", path)
    place_of = _places(described, "image", path)
    locate = _locator(path, root, described, photographs)
    images = [_image(image, label_of, locate, path) for image in described]
    found = _objects(record, "annotations", path)
    _places(found, "annotation", path)
    annotations = read_annotations(found, place_of, label_of, str(path))
    truths, notes = inside_photographs(annotations, images)
    groups, train_counts, odd = _training_facts(categories)
    return BoxDataset(
        path.name,
        [_name(category, path) for category in categories],
        images,
        truths[: len(images)],
        category_ids=np.array(list(label_of), dtype=np.int64),
        groups=groups,
        train_counts=train_counts,
        notes=[*notes, *odd],
        segmentations=(lambda: _segmentations(path)) if any(masks) else None,
    )


def as_coco(dataset: BoxDataset) -> dict[str, Any]:
    """Return a data set as the object of a COCO or LVIS json file, without masks.

    Classes that the data set's file did not have get new ids. What was cut or left out on reading
    stays so.
    """
    ids = _written_ids(dataset.category_ids)
    categories: list[dict[str, Any]] = [
        {"id": category, "name": name}
        for category, name in zip(ids, dataset.class_names, strict=True)
    ]
    for label, category in enumerate(categories):
        if dataset.groups is not None:
            category["frequency"] = _LETTERS.get(dataset.groups[label], dataset.groups[label])
        if dataset.train_counts is not None:
            category["image_count"] = dataset.train_counts[label]
    images = []
    annotations = []
    for image, truth in zip(dataset.images, dataset.truths, strict=True):
        described: dict[str, Any] = {
            "id": image.id,
            "file_name": image.name,
            "width": image.width_px,
            "height": image.height_px,
        }
        if image.negative is not None and image.not_exhaustive is not None:
            described["neg_category_ids"] = [ids[label] for label in image.negative]
            described["not_exhaustive_category_ids"] = [ids[at] for at in image.not_exhaustive]
        images.append(described)
        boxes = truth.boxes.astype(np.float64)
        boxes[:, 2:] -= boxes[:, :2]
        annotations += [
            {
                "id": annotation,
                "image_id": image.id,
                "category_id": ids[label],
                "bbox": bbox,
                "area": area,
                "iscrowd": int(crowd),
            }
            for annotation, label, bbox, area, crowd in zip(
                truth.ids.tolist(),
                truth.labels.tolist(),
                boxes.tolist(),
                truth.area.tolist(),
                truth.crowd.tolist(),
                strict=True,
            )
        ]
    return {"images": images, "annotations": annotations, "categories": categories}


def _load(path: Path, hook: Callable[[dict[str, Any]], Any] | None = None) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes(), object_hook=hook)
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path} cannot be read as json: {error}; expected {_LAYOUT}.") from error
    if not isinstance(record, dict):
        raise DataError(f"{path} holds a {type(record).__name__}; expected {_LAYOUT}.")
    return record


def _objects(record: Mapping[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    found = record.get(key)
    if found is None:
        keys = ", ".join(map(repr, list(record)[:8])) or "none"
        raise DataError(f"{path} has no {key!r}, its keys are {keys}; expected {_LAYOUT}.")
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise DataError(f"{path} has no list of objects under {key!r}; expected {_LAYOUT}.")
    return found


def _places(found: Sequence[Mapping[str, Any]], what: str, path: Path) -> dict[int, int]:
    """Return where each id stands."""
    places: dict[int, int] = {}
    for place, one in enumerate(found):
        value = one.get("id")
        if type(value) is not int or not 0 <= value < 2**63:
            raise DataError(
                f"The {what} {_short(one)} of {path} has the id {value!r}; expected a whole "
                "number, 0 or more."
            )
        if places.setdefault(value, place) != place:
            raise DataError(f"The {what} id {value} stands twice in {path}; expected it once.")
    return places


def _name(category: Mapping[str, Any], path: Path) -> str:
    name = category.get("name")
    if not isinstance(name, str) or not name.strip():
        raise DataError(
            f"The category {_short(category)} of {path} has the name {name!r}; expected a text."
        )
    return name


def _short(found: Mapping[str, Any]) -> str:
    text = json.dumps(found, ensure_ascii=False)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _image(
    found: Mapping[str, Any], label_of: Mapping[int, int], locate: _Locate, path: Path
) -> BoxImage:
    width, height = found.get("width"), found.get("height")
    for key, side in (("width", width), ("height", height)):
        if type(side) is not int or not 0 < side < 2**31:
            raise DataError(
                f"The image {_short(found)} of {path} has the {key} {side!r}; expected pixels, a "
                "whole number of 1 or more."
            )
    name, source = locate(found)
    return BoxImage(
        id=found["id"],
        name=name,
        source=source,
        width_px=int(width or 0),
        height_px=int(height or 0),
        negative=_labels(found, "neg_category_ids", label_of, path),
        not_exhaustive=_labels(found, "not_exhaustive_category_ids", label_of, path),
    )


def _labels(
    found: Mapping[str, Any], key: str, label_of: Mapping[int, int], path: Path
) -> IntArray | None:
    listed = found.get(key)
    if listed is None:
        return None
    if not isinstance(listed, list):
        raise DataError(
            f"The image {found['id']} of {path} has {listed!r} under {key!r}; expected a list of "
            "category ids."
        )
    unknown = [one for one in listed if type(one) is not int or one not in label_of]
    if unknown:
        raise DataError(
            f"The image {found['id']} of {path} has {unknown[0]!r} under {key!r}, which the file "
            f"does not describe; expected ids of its {len(label_of)} categories."
        )
    return np.array([label_of[one] for one in listed], dtype=np.int64)


def _relative_paths(found: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return where a photograph may be below the root, in three ways; empty where not told."""
    name, url = found.get("file_name"), found.get("coco_url")
    parts = PurePosixPath(url).parts if isinstance(url, str) else ()
    return name if isinstance(name, str) else "", "/".join(parts[-1:]), "/".join(parts[-2:])


def _locator(
    path: Path, root: Path | None, described: Sequence[Mapping[str, Any]], photographs: bool
) -> _Locate:
    """Return what gives an image's name and path, in the way in which the first one was found.

    Asking the disk for every image would take minutes on a network.
    """
    roots = [root] if root is not None else [path.parent / "images", path.parent]
    first = _relative_paths(described[0]) if described else ("", "", "")
    tried = [(folder, way) for folder in roots for way, name in enumerate(first) if name]
    found = next((one for one in tried if os.path.isfile(one[0] / first[one[1]])), None)
    if found is None and photographs and tried:
        names = " and ".join(dict.fromkeys(filter(None, first)))
        raise DataError(
            f"The first image of {path} does not exist: looked for {names} in "
            f"{' and '.join(map(str, roots))}. Give the folder that the names begin at with --root."
        )
    folder, taken = found or (roots[0], 0)

    def locate(image: Mapping[str, Any]) -> tuple[str, Path]:
        names = _relative_paths(image)
        name = names[taken] or names[0] or names[1]
        if not name:
            raise DataError(
                f"The image {_short(image)} of {path} has neither 'file_name' nor 'coco_url'; "
                "expected one of them."
            )
        return name, folder / name

    return locate


def _training_facts(
    categories: Sequence[Mapping[str, Any]],
) -> tuple[list[str] | None, list[int] | None, list[str]]:
    """Return LVIS's groups, the training counts, and what was odd about them."""
    letters = [category.get("frequency") for category in categories]
    odd = [letter for letter in letters if letter not in _LETTERS.values()]
    if odd:
        nowhere = all(letter is None for letter in letters)
        told = f"The frequency {odd[0]!r} of a class is none of LVIS's r, c and f: groups not read."
        return None, None, [] if nowhere else [told]
    groups = [_GROUPS[str(letter)] for letter in letters]
    counts = [category.get("image_count") for category in categories]
    whole = [count for count in counts if type(count) is int]
    agree = len(whole) == len(groups) and list(map(LVIS_GROUPS.group_of, whole)) == groups
    return groups, whole if agree else None, []


def _segmentations(path: Path) -> dict[int, Segmentation]:
    found = _objects(_load(path), "annotations", path)
    return {one["id"]: one["segmentation"] for one in found if one.get("segmentation")}


def _written_ids(category_ids: IntArray) -> list[int]:
    """Return an id for each class; new ones, beyond the largest, for those that have none."""
    free = int(category_ids.max(initial=0)) + 1
    ids = []
    for category in category_ids.tolist():
        ids.append(category if category >= 0 else free)
        free += category < 0
    return ids
