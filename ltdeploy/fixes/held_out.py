"""Fixes that learn from validation images, judged on images that they did not learn from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..arrays import FloatArray, IntArray
from .base import Fix, FixContext
from .chain import fit_chain
from .logit_map import LogitMap

__all__ = [
    "MappedLogits",
    "fit_per_fold",
    "mapped_blocks",
    "part_of",
    "stratified_folds",
    "top1_per_fold",
]

_BLOCK_BYTES = 32 << 20


def stratified_folds(labels: IntArray, folds: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Return a fold number per image, shape (N,), with each class spread as evenly as it can be.

    Images are dealt out one by one, each class beginning where the one before it ended: folds
    differ by one image at most, and small classes do not all fall into the first ones. Classes are
    taken in the order in which they come up, so that nothing depends on how they are numbered.
    """
    generator = np.random.default_rng(seed)
    _, first, dense = np.unique(labels, return_index=True, return_inverse=True)
    dealt = np.concatenate(
        [generator.permutation(np.flatnonzero(dense == place)) for place in np.argsort(first)]
    )
    fold = np.empty(len(labels), dtype=np.int64)
    fold[dealt] = np.arange(len(labels)) % folds
    return fold


def part_of(context: FixContext, rows: npt.NDArray[np.bool_]) -> FixContext:
    """Return the context with some of its validation images only."""

    def some(array: Any) -> Any:
        return None if array is None else array[rows]

    return replace(
        context,
        logits=some(context.logits),
        labels=some(context.labels),
        features=some(context.features),
        weights=some(context.weights),
    )


def fit_per_fold(fixes: Sequence[Fix], context: FixContext, fold: IntArray) -> tuple[LogitMap, ...]:
    """Return the map of a chain of fixes for each fold, fitted on the images of all others.

    A chain that does not look at validation images is fitted once for all folds.

    Raises
    ------
    FixError
        As :meth:`Fix.fit`.
    """
    numbers = np.unique(fold)
    if not any(fix.learns_from_validation for fix in fixes):
        return (fit_chain(fixes, context),) * len(numbers)
    return tuple(fit_chain(fixes, part_of(context, fold != number)) for number in numbers)


def top1_per_fold(
    maps: Sequence[LogitMap], context: FixContext, fold: IntArray
) -> npt.NDArray[np.int32]:
    """Return the answer to every image by the map of its fold, array of shape (N,)."""
    top1 = np.empty(len(fold), dtype=np.int32)
    for number, fitted in zip(np.unique(fold), maps, strict=True):
        for block, mapped in mapped_blocks(fitted, context, np.flatnonzero(fold == number)):
            top1[block] = mapped.argmax(axis=1)
    return top1


@dataclass(frozen=True, eq=False)
class MappedLogits:
    """Logits (N, C) of held-out images, each by the map of its fold; mapped as they are read.

    Reading a few rows takes memory for these alone: ``mapped[start:stop]``.

    Parameters
    ----------
    maps : one per fold, in the order of the folds' numbers.
    context : holds the logits, and the features where a map looks at them.
    fold : number of each image's fold, array of shape (N,).
    """

    maps: tuple[LogitMap, ...]
    context: FixContext
    fold: IntArray

    @property
    def shape(self) -> tuple[int, ...]:
        """N and C."""
        assert self.context.logits is not None
        return self.context.logits.shape

    def __getitem__(self, rows: slice) -> FloatArray:
        """Return the mapped logits of some rows, in the dtype of the logits."""
        assert self.context.logits is not None
        places = np.arange(len(self.fold))[rows]
        result = np.empty((len(places), self.shape[1]), dtype=self.context.logits.dtype)
        first = places[0] if len(places) else 0
        for number, fitted in zip(np.unique(self.fold), self.maps, strict=True):
            own = places[self.fold[places] == number]
            for block, mapped in mapped_blocks(fitted, self.context, own):
                result[block - first] = mapped
        return result


def mapped_blocks(
    fitted: LogitMap, context: FixContext, rows: npt.NDArray[np.int64]
) -> Iterator[tuple[npt.NDArray[np.int64], FloatArray]]:
    """Yield places and mapped logits of some images, in blocks that leave memory to others."""
    assert context.logits is not None
    step = max(1, _BLOCK_BYTES // (8 * context.logits.shape[1]))
    for start in range(0, len(rows), step):
        block = rows[start : start + step]
        features = None if context.features is None else context.features[block]
        yield block, fitted.apply(context.logits[block], features)
