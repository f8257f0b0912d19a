"""What a fitted fix is: a map from a model's logits, and at times its features, to better ones."""

from __future__ import annotations

from abc import ABC, abstractmethod

from ..arrays import FloatArray
from ..errors import FixError

__all__ = ["LogitMap"]


class LogitMap(ABC):
    """A map of the logits of C classes. Final subclasses: an affine one, and what is not affine."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes C."""

    @property
    def is_identity(self) -> bool:
        """Whether the map changes nothing at all."""
        return False

    @property
    def needs_features(self) -> bool:
        """Whether :meth:`apply` must be given features."""
        return False

    @abstractmethod
    def apply(self, logits: FloatArray, features: FloatArray | None = None) -> FloatArray:
        """Return the mapped logits.

        Parameters
        ----------
        logits : array of shape (N, C), in whose dtype the result is.
        features : what the head is given, array of shape (N, D); only some maps look at them.

        Raises
        ------
        FixError
            If the map needs features and there are none.
        """

    def inverse(self) -> LogitMap:
        """Return the map that undoes this one.

        Raises
        ------
        FixError
            If there is none: the map loses information, or looks at more than the logits.
        """
        raise FixError(
            f"This fix ({type(self).__name__}) cannot be undone from its logits alone; measure the "
            "model before the fix with its checkpoint as the reference."
        )
