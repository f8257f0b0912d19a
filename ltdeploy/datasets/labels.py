"""Class tables from files, and a data set's labels in a class table's order."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..classes import ClassTable
from ..errors import DataError, did_you_mean
from .base import Dataset

__all__ = ["align_labels", "read_class_csv"]

_NAME_COLUMNS = ("name", "class_name", "class", "category")
_COUNT_COLUMNS = ("train_count", "image_count", "count", "images", "num_images")
_LABEL_COLUMNS = ("label", "id", "index", "category_id")
_SHOWN = 5


def align_labels(dataset: Dataset, classes: ClassTable) -> npt.NDArray[np.int64]:
    """Return the data set's labels in the class table's order, shape (N,).

    Where both have names, a name decides; otherwise the label's position does. A class table is
    without names when these are only its labels written out.

    Raises
    ------
    DataError
        For class names that the table lacks, labels beyond its length, or named data and a nameless
        table that do not fit each other.
    """
    table = _label_of_class(dataset, classes)
    if table is None:
        largest = int(dataset.labels.max())
        if largest >= len(classes):
            image = dataset.identifier(int(dataset.labels.argmax()))
            raise DataError(
                f"The image {image} has the label {largest}, but the model has {len(classes)} "
                f"classes; expected labels from 0 to {len(classes) - 1}."
            )
        return dataset.labels
    aligned: npt.NDArray[np.int64] = table[dataset.labels]
    return aligned


def read_class_csv(path: Path) -> ClassTable:
    """Read a class table from a csv file.

    With a header the columns are found by name: ``name``, ``train_count`` (or ``image_count``, as
    LVIS has it) and optionally ``label`` or ``id``, which then gives the order and must run from 0
    or 1 without gaps. Without a header the rows are ``name,count``, ``label,name,count`` or a bare
    ``count``.

    Raises
    ------
    DataError
        For missing columns, counts that are not whole numbers, labels with gaps, or what
        :class:`ClassTable` refuses.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [(at, row) for at, row in enumerate(csv.reader(file), 1) if any(row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a csv file: {error}.") from error
    if not rows:
        raise DataError(f"{path} is empty; expected a csv with the columns name,train_count.")
    header = [cell.strip().lower() for cell in rows[0][1]]
    if any(_whole(cell) is not None for cell in header):
        columns = _columns_without_header(len(header), path)
    else:
        columns = _columns_of(header, path)
        rows = rows[1:]
    if not rows:
        raise DataError(f"{path} has a header and no class; expected one row per class.")
    width = max(column for column in columns.values()) + 1
    names: list[str] = []
    counts: list[int] = []
    labels: list[int] = []
    for line, row in rows:
        if len(row) < width:
            raise DataError(
                f"Line {line} of {path} has {len(row)} columns; expected {width} or more."
            )
        names.append(row[columns["name"]].strip() if "name" in columns else str(len(names)))
        counts.append(_number(row[columns["count"]], "training count", line, path))
        if "label" in columns:
            labels.append(_number(row[columns["label"]], "label", line, path))
    if labels:
        order = _order(labels, path)
        names, counts = [names[row] for row in order], [counts[row] for row in order]
    return ClassTable(tuple(names), tuple(counts))


def _label_of_class(dataset: Dataset, classes: ClassTable) -> npt.NDArray[np.int64] | None:
    """Return the table's label for each class of the data set; None where positions decide."""
    names = dataset.class_names
    if names is None:
        return None
    used = dataset.counts() > 0
    if classes.is_named:
        label_of = {name: label for label, name in enumerate(classes.names)}
        unknown = [n for n, u in zip(names, used, strict=True) if u and n not in label_of]
        if unknown:
            shown = ", ".join(repr(name) for name in unknown[:_SHOWN])
            more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
            raise DataError(
                f"The data set {dataset.name} has classes that the model does not know: {shown}"
                f"{more}. Expected the names of its {len(classes)} classes."
                f"{did_you_mean(unknown[0], classes.names)}"
            )
        return np.array([label_of.get(name, -1) for name in names], dtype=np.int64)
    numbers = [_whole(name) for name in names]
    if all(number is not None for number in numbers):
        return _numbered(dataset, [n for n in numbers if n is not None], len(classes))
    if len(names) != len(classes):
        raise DataError(
            f"The data set {dataset.name} has {len(names)} named classes and the model "
            f"{len(classes)} without names, so they cannot be matched. Give the names in label "
            "order with --classes FILE."
        )
    return None


def _numbered(dataset: Dataset, numbers: list[int], classes: int) -> npt.NDArray[np.int64] | None:
    """Return the labels of classes that are called by numbers, for a table without names."""
    if numbers == list(range(classes)):
        return None
    if sorted(numbers) == list(range(classes)):
        # torchvision's ImageFolder labels "10" before "2"; whoever made the model may have used it.
        raise DataError(
            f"The classes of {dataset.name} are numbered without leading zeros, so label 2 may "
            "mean the folder '2' or the third in alphabetical order, '10'. Say which with "
            "--classes FILE: a csv of 'name,train_count' in label order, with the folders' names."
        )
    outside = [n for n, u in zip(numbers, dataset.counts(), strict=True) if u and not n < classes]
    if outside:
        raise DataError(
            f"The data set {dataset.name} has the class {outside[0]}, but the model has {classes} "
            f"classes; expected 0 to {classes - 1}."
        )
    return np.array(numbers, dtype=np.int64)


def _columns_without_header(width: int, path: Path) -> dict[str, int]:
    known = {1: ("count",), 2: ("name", "count"), 3: ("label", "name", "count")}
    if width not in known:
        raise DataError(
            f"{path} has {width} columns and no header; expected a first line 'name,train_count'."
        )
    return {name: column for column, name in enumerate(known[width])}


def _columns_of(header: list[str], path: Path) -> dict[str, int]:
    columns: dict[str, int] = {}
    wanted = (("name", _NAME_COLUMNS), ("count", _COUNT_COLUMNS), ("label", _LABEL_COLUMNS))
    for what, known in wanted:
        found = next((name for name in known if name in header), None)
        if found is not None:
            columns[what] = header.index(found)
    if "count" not in columns or "name" not in columns:
        missing = "name" if "name" not in columns else "train_count"
        raise DataError(
            f"{path} has the columns {', '.join(header)} and no column {missing!r}; expected "
            f"'name,train_count' in the first line.{did_you_mean(missing, header)}"
        )
    return columns


def _whole(text: str) -> int | None:
    text = text.strip()
    return int(text) if text.isascii() and text.removeprefix("-").isdigit() else None


def _number(text: str, what: str, line: int, path: Path) -> int:
    number = _whole(text)
    if number is None:
        raise DataError(
            f"Line {line} of {path} has the {what} {text.strip()!r}; expected a whole number."
        )
    return number


def _order(labels: list[int], path: Path) -> list[int]:
    """Return the rows in the order of their labels, which run from 0 or 1 without gaps."""
    order = sorted(range(len(labels)), key=labels.__getitem__)
    first = labels[order[0]]
    for expected, row in enumerate(order, start=first):
        if labels[row] != expected or first not in (0, 1):
            raise DataError(
                f"The labels of {path} do not run from 0 or 1 without gaps or repeats: label "
                f"{labels[row]} stands where {max(0, expected)} was expected."
            )
    return order
