"""The affine map of the logits, ``z' = A z + c``: what every foldable fix comes down to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray
from ..errors import FixError
from .logit_map import LogitMap

__all__ = ["AffineMap"]


@final
@dataclass(frozen=True, eq=False)
class AffineMap(LogitMap):
    """``z' = A z + c`` on logits of C classes.

    Parameters
    ----------
    scale : array of shape (C,) for a diagonal A, or (C, C) for a full one; float64.
    shift : array of shape (C,); float64.

    Raises
    ------
    FixError
        For shapes that do not belong together or numbers that are not finite.
    """

    scale: npt.NDArray[np.float64]
    shift: npt.NDArray[np.float64]

    def __post_init__(self) -> None:
        classes = self.shift.shape[0] if self.shift.ndim == 1 else -1
        if classes < 1 or self.scale.shape not in ((classes,), (classes, classes)):
            raise FixError(
                f"An affine map needs A of shape (C,) or (C, C) and c of shape (C,); got "
                f"{self.scale.shape} and {self.shift.shape}."
            )
        if not (np.isfinite(self.scale).all() and np.isfinite(self.shift).all()):
            bad = np.flatnonzero(
                ~np.isfinite(self.shift) | ~np.isfinite(self.scale.reshape(classes, -1)).all(axis=1)
            )
            raise FixError(
                f"The fix's map is not finite for the class labels {bad[:10].tolist()}; its "
                "parameters are too extreme for these weights."
            )

    @classmethod
    def identity(cls, classes: int) -> AffineMap:
        """Return the map that changes nothing."""
        return cls(np.ones(classes), np.zeros(classes))

    @property
    def classes(self) -> int:
        """Number of classes C."""
        return int(self.shift.shape[0])

    @property
    def is_diagonal(self) -> bool:
        """Whether A is stored as its diagonal."""
        return self.scale.ndim == 1

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing at all."""
        unit = np.ones(self.classes) if self.is_diagonal else np.eye(self.classes)
        return bool(np.array_equal(self.scale, unit) and not self.shift.any())

    def apply(self, logits: FloatArray, features: FloatArray | None = None) -> FloatArray:
        """Return the mapped logits, shape (N, C), computed in float64, in their own dtype."""
        wide = np.asarray(logits, dtype=np.float64)
        mapped = wide * self.scale if self.is_diagonal else wide @ self.scale.T
        result: FloatArray = (mapped + self.shift).astype(logits.dtype, copy=False)
        return result

    def then(self, after: AffineMap) -> AffineMap:
        """Return the single map that does this one first and ``after`` second."""
        if after.classes != self.classes:
            raise FixError(
                f"Cannot compose maps of {self.classes} and {after.classes} classes; they "
                "belong to different models."
            )
        if self.is_diagonal and after.is_diagonal:
            return AffineMap(after.scale * self.scale, after.scale * self.shift + after.shift)
        outer, inner = after.matrix(), self.matrix()
        return AffineMap(outer @ inner, outer @ self.shift + after.shift)

    def inverse(self) -> AffineMap:
        """Return the map that undoes this one.

        Raises
        ------
        FixError
            If A is singular: such a map loses information and cannot be undone.
        """
        if self.is_diagonal:
            if not self.scale.all():
                zero = np.flatnonzero(self.scale == 0)[:10].tolist()
                raise FixError(f"The map cannot be inverted: A is zero for the labels {zero}.")
            return AffineMap(1.0 / self.scale, -self.shift / self.scale)
        try:
            inverse = np.asarray(np.linalg.inv(self.scale), dtype=np.float64)
        except np.linalg.LinAlgError as error:
            raise FixError("The map cannot be inverted: its matrix A is singular.") from error
        return AffineMap(inverse, -inverse @ self.shift)

    def matrix(self) -> npt.NDArray[np.float64]:
        """Return A as a full matrix of shape (C, C)."""
        return np.diag(self.scale) if self.is_diagonal else self.scale

    def fold(
        self, weight: FloatArray, bias: FloatArray | None
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | None]:
        """Return ``W' = A W`` and ``b' = A b + c`` in float64; b' is None where it would be zero.

        Parameters
        ----------
        weight : array of shape (C, D), one row per class.
        bias : array of shape (C,), or None for a head without bias.
        """
        wide = np.asarray(weight, dtype=np.float64)
        folded = wide * self.scale[:, None] if self.is_diagonal else self.scale @ wide
        if bias is None:
            return folded, (self.shift.copy() if self.shift.any() else None)
        moved = np.asarray(bias, dtype=np.float64)
        scaled = moved * self.scale if self.is_diagonal else self.scale @ moved
        return folded, scaled + self.shift
