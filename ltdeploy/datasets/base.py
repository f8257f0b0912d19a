"""What every data set of classified images offers, wherever its images come from."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from ..errors import DataError
from ..images import ImageSource

__all__ = ["Dataset"]


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

    def counts(self) -> npt.NDArray[np.int64]:
        """Return the images per class, shape (C,), int64; C is the number of class names.

        Without class names C is the largest label plus one.
        """
        classes = len(self.class_names) if self.class_names is not None else 0
        return np.bincount(self.labels, minlength=classes).astype(np.int64)
