"""What a classifier answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from .errors import ImageError

__all__ = ["ClassScore", "Prediction"]


@dataclass(frozen=True)
class ClassScore:
    """One class of an answer; ``prob`` is in 0..1, ``train_count`` in images."""

    label: int
    name: str
    prob: float
    group: str
    train_count: int


@dataclass(frozen=True)
class Prediction:
    """The answer for one image: the best classes first, or why there is none.

    Attributes
    ----------
    input : what was asked, as a path or a place in the list.
    top : the k most probable classes; empty where the image could not be used.
    error : why the image could not be used, else None.
    """

    input: str
    top: tuple[ClassScore, ...] = ()
    error: str | None = None

    @property
    def best(self) -> ClassScore:
        """The most probable class.

        Raises
        ------
        ImageError
            If the image could not be used.
        """
        if self.error is not None:
            raise ImageError(self.error)
        return self.top[0]

    def to_dict(self) -> dict[str, Any]:
        """Return ``input`` and ``top`` (label, name, prob, group), or ``input`` and ``error``."""
        if self.error is not None:
            return {"input": self.input, "error": self.error}
        top = [asdict(score) for score in self.top]
        for score in top:
            score.pop("train_count")
        return {"input": self.input, "top": top}
