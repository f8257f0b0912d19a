"""Labelled images from wherever they are: folders, lists, parquet, CIFAR pickles, drawn species."""

from __future__ import annotations

import os
from pathlib import Path

from ..classes import ClassTable
from ..errors import DataError, UsageError, did_you_mean
from .base import Dataset
from .box_labels import align_boxes
from .boxes import BoxDataset, BoxImage, BoxTruth
from .cifar import CifarDataset, is_cifar_folder
from .coco_json import as_coco, read_boxes
from .folder import FolderDataset
from .labels import align_labels, read_class_csv
from .listing import ListDataset
from .loader import Batch, Decoded, Loader, decode_ahead
from .parquet import ParquetDataset
from .unlabelled import UnlabelledFolder, is_unlabelled_folder

__all__ = [
    "Batch",
    "BoxDataset",
    "BoxImage",
    "BoxTruth",
    "CifarDataset",
    "Dataset",
    "Decoded",
    "FolderDataset",
    "ListDataset",
    "Loader",
    "ParquetDataset",
    "align_boxes",
    "align_labels",
    "as_coco",
    "decode_ahead",
    "open_boxes",
    "open_dataset",
    "open_unlabelled",
    "read_boxes",
    "read_classes",
]

_SPECIES = "species"
_SPECIES_SPLITS = ("train", "val", "test")
_KINDS = (
    "a folder of class folders, a .parquet file, a .txt list of 'path label' lines, a CIFAR pickle "
    "folder, or 'species'"
)


def open_dataset(spec: str, *, root: str | None = None, split: str | None = None) -> Dataset:
    """Open a data set by what the command line calls ``DATA``.

    Parameters
    ----------
    spec : a folder of class folders, a ``.parquet`` file, a ``.txt`` list, a CIFAR pickle folder,
        or ``species``, ``species:train``, ``species:val``, ``species:test``.
    root : folder that the paths of a list begin at; only for lists.
    split : which split to take where the source holds several and ``spec`` does not say; None means
        ``"test"`` for CIFAR and species.

    Raises
    ------
    DataError
        If there is no such data, or it cannot be used.
    UsageError
        If ``root`` is given for anything but a list.
    """
    if spec == _SPECIES or spec.startswith(f"{_SPECIES}:"):
        _refuse_root(root, spec)
        return _open_species(spec.partition(":")[2] or split or "test")
    try:
        return _open_path(Path(spec).expanduser(), root, split)
    except OSError as error:
        raise DataError(f"{spec} cannot be read: {error.strerror}; expected {_KINDS}.") from error


def open_unlabelled(spec: str, *, root: str | None = None) -> Dataset:
    """Open images whose labels are not looked at.

    A plain folder of images, a list of paths, a parquet file without labels, or any other DATA.

    Raises
    ------
    DataError, UsageError
        As :func:`open_dataset`.
    """
    path = Path(spec).expanduser()
    if is_unlabelled_folder(path):
        return UnlabelledFolder(path)
    suffix = path.suffix.lower()
    is_file = os.path.isfile(path)  # pathlib's raises for names that are too long
    if is_file and suffix == ".txt":
        return ListDataset(path, None if root is None else Path(root).expanduser(), labelled=False)
    if is_file and suffix == ".parquet":
        _refuse_root(root, spec)
        return ParquetDataset(path, labelled=False)
    return open_dataset(spec, root=root)


def open_boxes(spec: str, *, root: str | None = None) -> BoxDataset:
    """Open photographs with boxes: a COCO or LVIS json.

    Parameters
    ----------
    root : folder that the names of its images begin at; None looks beside the file.

    Raises
    ------
    DataError
        If it is no such file, or what it says cannot be used.
    """
    path = Path(spec).expanduser()
    _check_exists(path)
    if path.suffix.lower() != ".json" or not path.is_file():
        raise DataError(
            f"{path} holds no boxes, and a detector needs them; expected a COCO or LVIS .json file."
        )
    return read_boxes(path, None if root is None else Path(root).expanduser())


def _open_path(path: Path, root: str | None, split: str | None) -> Dataset:
    _check_exists(path)
    suffix = path.suffix.lower()
    if path.is_file() and suffix == ".txt":
        return ListDataset(path, Path(root).expanduser() if root is not None else None)
    _refuse_root(root, str(path))
    if path.is_dir():
        return CifarDataset(path, split) if is_cifar_folder(path) else FolderDataset(path, split)
    if suffix == ".parquet":
        return ParquetDataset(path)
    if suffix == ".json":
        raise DataError(
            f"{path}: COCO and LVIS json files hold boxes, which detectors need; for a classifier "
            f"expected {_KINDS}."
        )
    if suffix == ".csv":
        raise DataError(
            f"{path} is a csv file, which can be a class table (--classes) but holds no images; "
            f"expected {_KINDS}."
        )
    raise DataError(f"{path} is not a data set; expected {_KINDS}.")


def read_classes(spec: str, root: str | None = None) -> ClassTable:
    """Read a class table: a csv of ``name,train_count``, or any data set, whose labels are counted.

    Parameters
    ----------
    spec : a ``.csv`` file, a COCO or LVIS ``.json`` whose images with a class are counted, or what
        :func:`open_dataset` takes; of a source with several splits the training split is counted.
    root : as for :func:`open_dataset`.

    Raises
    ------
    DataError
        As :func:`open_dataset`, and for what :class:`~ltdeploy.classes.ClassTable` refuses.
    """
    path = Path(spec).expanduser()
    if path.suffix.lower() == ".csv":
        _refuse_root(root, spec)
        _check_exists(path)
        return read_class_csv(path)
    if path.suffix.lower() == ".json":
        _check_exists(path)
        return read_boxes(path, photographs=False).class_table()
    dataset = open_dataset(spec, root=root, split="train")
    return ClassTable.from_counts(dataset.counts().tolist(), dataset.class_names)


def _open_species(split: str) -> Dataset:
    if split not in _SPECIES_SPLITS:
        raise DataError(
            f"The drawn species have no split {split!r}; known are {', '.join(_SPECIES_SPLITS)}."
            f"{did_you_mean(split, _SPECIES_SPLITS)}"
        )
    # The drawing code is only loaded by those who want drawings.
    from .species import SpeciesDataset

    return SpeciesDataset(split=split)


def _refuse_root(root: str | None, spec: str) -> None:
    if root is not None:
        raise UsageError(
            f"--root {root} was given, but {spec} is not a list of paths; leave it out."
        )


def _check_exists(path: Path) -> None:
    if path.exists():
        return
    parent = path.parent
    while not parent.is_dir():
        if parent.exists():
            raise DataError(f"{path} does not exist: {parent} is a file, not a folder.")
        if parent == parent.parent:
            break
        parent = parent.parent
    missing = parent / path.relative_to(parent).parts[0]
    siblings = {str(parent / entry.name) for entry in parent.iterdir()}
    hint = did_you_mean(str(missing), siblings) or did_you_mean(str(path), (_SPECIES,))
    raise DataError(f"{path} does not exist; expected {_KINDS}.{hint}")
