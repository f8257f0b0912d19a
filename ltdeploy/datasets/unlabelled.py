"""Images without labels: a plain folder of photographs from where a model will be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from .base import Dataset
from .folder import IMAGE_SUFFIXES

__all__ = ["UnlabelledFolder", "is_unlabelled_folder"]


def is_unlabelled_folder(path: Path) -> bool:
    """Whether a folder holds images itself and no folders; False where it cannot be read."""
    try:
        entries = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
        return bool(_images(path)) and not any(entry.is_dir() for entry in entries)
    except OSError:
        return False


class UnlabelledFolder(Dataset):
    """The images of one folder, sorted by name; every label is 0 and means nothing."""

    def __init__(self, folder: Path) -> None:
        folder = folder.resolve()
        self._paths = _images(folder)
        super().__init__(folder.name, None, np.zeros(len(self._paths), dtype=np.int64))

    def source(self, index: int) -> Path:
        return self._paths[index]

    def identifier(self, index: int) -> str:
        return f"{self.name}/{self._paths[index].name}"


def _images(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )
