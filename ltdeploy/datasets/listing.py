"""A text file of ``path label`` lines, as the long-tailed splits of ImageNet and Places come."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..errors import DataError
from .base import Dataset

__all__ = ["ListDataset"]


class ListDataset(Dataset):
    """Images that a list names; the label is the last word of a line, the path all before it.

    This is the layout of ``ImageNet_LT_train.txt`` (Liu et al. 2019, arXiv 1904.05160). Empty lines
    are passed over. There are no class names.

    Parameters
    ----------
    path : the list.
    root : folder that relative paths begin at; None means the list's own folder.
    labelled : False also takes a list of bare paths; then every label is 0 and means nothing.

    Raises
    ------
    DataError
        For a line without a whole-number label, or if the first image does not exist: then the root
        is wrong.
    """

    def __init__(self, path: Path, root: Path | None = None, *, labelled: bool = True) -> None:
        self._root = root if root is not None else path.parent
        self._paths: list[str] = []
        labels: list[int] = []
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start}); "
                "expected lines of 'path label'."
            ) from error
        lines = [(n, line) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
        # A file's name ends in what it is, so a list where any line does has no labels.
        if not labelled and not all(_split(line) for _, line in lines):
            self._paths = [self._without_label(line.strip()) for _, line in lines]
            labels = [0] * len(lines)
        else:
            for number, line in lines:
                image, label = _parse(line, path, number)
                self._paths.append(image)
                labels.append(label)
        super().__init__(path.name, None, np.array(labels, dtype=np.int64))
        first = self._root / self._paths[0]
        if not first.exists():
            raise DataError(
                f"The first image of {path}, {self._paths[0]}, does not exist under {self._root}. "
                "Give the folder that the paths begin at with --root."
            )

    def _without_label(self, line: str) -> str:
        """Return the path in a line of a mixed list: all of it, or what stands before a label."""
        found = _split(line)
        return line if found is None or (self._root / line).exists() else found[0]

    def source(self, index: int) -> Path:
        return self._root / self._paths[index]

    def identifier(self, index: int) -> str:
        return self._paths[index]


def _split(line: str) -> tuple[str, int] | None:
    image, _, label = line.strip().replace("\t", " ").rpartition(" ")
    if not image or not (label.isascii() and label.removeprefix("-").isdigit()):
        return None
    return image.rstrip(), int(label)


def _parse(line: str, path: Path, number: int) -> tuple[str, int]:
    found = _split(line)
    if found is None:
        raise DataError(
            f"Line {number} of {path} is {line.strip()[:80]!r}; expected 'path label' with a "
            "whole number as the label, for example 'train/n01440764/1.JPEG 0'."
        )
    return found
