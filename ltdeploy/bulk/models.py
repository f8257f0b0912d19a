"""How much a bundle answers, and how many images of it make a batch."""

from __future__ import annotations

from ..bundle import Bundle
from ..inference import batch_size_for

__all__ = ["batch_size", "default_top_k"]

_CLASSES, _BOXES = 5, 100


def default_top_k(bundle: Bundle) -> int:
    """Return how many classes, or boxes, an answer has at most unless told otherwise."""
    return _BOXES if bundle.is_detector else _CLASSES


def batch_size(bundle: Bundle) -> int:
    """Return how many images a batch of this bundle has."""
    return batch_size_for(bundle.canvas if bundle.is_detector else bundle.preprocessing)
