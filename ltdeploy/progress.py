"""Progress without a dependency: long work takes a tracker; the command line draws the bars."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

__all__ = ["Tracker", "silent"]

T = TypeVar("T")


class Tracker(Protocol):
    """Wraps an iterable and shows how far it is."""

    def __call__(self, items: Iterable[T], *, total: int | None, label: str) -> Iterable[T]:
        """Yield the items of ``items``; ``total`` counts them, ``label`` says what is going on."""


def silent(items: Iterable[T], *, total: int | None, label: str) -> Iterable[T]:
    """Yield the items and show nothing."""
    return items
