"""What every data set of classified images offers, wherever its images come from."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import DataError, ImageError
from ..images import ImageSource

__all__ = ["Dataset", "hash_content"]


class Dataset(ABC):
    """Labelled images that are decoded by whoever asks, and not before.

    Parameters
    ----------
    name : for reports, for example ``"val"`` or ``"species:test"``.
    class_names : names in label order; None where the source has bare labels.
    labels : array of shape (N,), int64, each 0 or more.

    Raises
    ------
    DataError
        For an empty data set, a negative label, or a label beyond the class names.
    """

    def __init__(
        self,
        name: str,
        class_names: tuple[str, ...] | None,
        labels: npt.NDArray[np.int64],
    ) -> None:
        self.name = name
        self.class_names = class_names
        self.labels = labels
        if len(labels) == 0:
            raise DataError(f"The data set {name} has no image; expected at least one.")
        for label, at in (
            (int(labels.min()), labels.argmin()),
            (int(labels.max()), labels.argmax()),
        ):
            if label < 0 or (class_names is not None and label >= len(class_names)):
                expected = f"0 to {len(class_names) - 1}" if class_names else "0 or more"
                raise DataError(
                    f"Image {int(at)} of the data set {name} has the label {label}; expected "
                    f"{expected}."
                )

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def source(self, index: int) -> ImageSource:
        """Return the image at ``index`` undecoded: a path, bytes or an array. Thread-safe."""

    @abstractmethod
    def identifier(self, index: int) -> str:
        """Return what names the image in reports: ``"val/lynx/3.jpg"``, ``"test.parquet#12"``."""

    def content_hash(self, index: int) -> int:
        """Return the first 8 bytes of the sha256 of the image's encoded content as an integer.

        Two data sets that share an image byte for byte share its hash, whatever they call it.
        """
        return hash_content(self.source(index))

    def counts(self) -> npt.NDArray[np.int64]:
        """Return the images per class, shape (C,), int64; C is the number of class names.

        Without class names C is the largest label plus one.
        """
        classes = len(self.class_names) if self.class_names is not None else 0
        return np.bincount(self.labels, minlength=classes).astype(np.int64)


def hash_content(source: ImageSource) -> int:
    """Return the first 8 bytes, big-endian, of the sha256 of a source's bytes.

    A path or bytes are hashed as encoded; an array or a PIL image by shape and raw values.

    Raises
    ------
    ImageError
        If the file cannot be read.
    """
    if isinstance(source, (str, os.PathLike)):
        try:
            content = Path(source).read_bytes()
        except OSError as error:
            raise ImageError(f"{os.fspath(source)} cannot be read: {error.strerror}.") from error
    elif isinstance(source, bytes):
        content = source
    else:
        array = np.ascontiguousarray(source)
        content = repr((array.shape, array.dtype.str)).encode() + array.tobytes()
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
