"""Tail watch: what a model predicts, group by group, against what its training counts say.

A long-tailed model that breaks in service rarely breaks loudly: it goes on answering with head
classes. The share of the few group falls to nothing while every latency and error figure stays
green. This is the figure that shows it.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

import numpy as np

from ltdeploy.arrays import IntArray
from ltdeploy.classes import ClassTable
from ltdeploy.errors import DataError

__all__ = ["GroupShare", "TailSnapshot", "TailWatch"]


@dataclass(frozen=True)
class GroupShare:
    """One group's part of the predictions in the window.

    Attributes
    ----------
    total : predictions of this group since the watch began, beyond the window too.
    share : of the predictions in the window, 0 to 1; None while there are none.
    expected : what the training prior says, 0 to 1.
    ratio : ``share / expected``; 1 is as in training, 0 is a group that has gone quiet.
    silent_classes : classes of the group that no prediction in the window names.
    expected_silent : as many would be silent by chance, ``Σ_c (1 − π_c)^n``. With few predictions
        most rare classes are silent in any model; only more than this says something.
    """

    total: int
    share: float | None
    expected: float
    ratio: float | None
    silent_classes: int
    expected_silent: float


@dataclass(frozen=True)
class TailSnapshot:
    """What a model has predicted lately.

    Attributes
    ----------
    predictions : in the window.
    by_group : every group that has a class, in the rule's order.
    shift : total variation between shares and training prior by group, 0 (as in training) to 1
        (nothing in common); None while there are no predictions.
    """

    predictions: int
    by_group: dict[str, GroupShare]
    shift: float | None


class TailWatch:
    """Watch the last predictions of one model.

    The window is a number of predictions and not a time: how exact a share is depends on how many
    predictions make it, and an hour at night may hold ten. Who wants hours has the totals:
    ``increase(ltdeploy_predictions_total[1h])``.

    The shift is the distance ``½ Σ_g |share_g − π_g|`` of the predicted from the trained shares.
    :class:`ltdeploy.fixes.LabelShift` estimates the prior itself, but from calibrated logits of
    every image; keeping those of a window costs gigabytes for thousands of classes and iterations
    over all of them. The distance takes one label a prediction. It moves when the world does and
    when the model does; which of the two it was, LabelShift on kept images tells.

    Thread-safe. One update costs O(batch) time, whatever the window and the number of classes.

    Parameters
    ----------
    table : the model's classes.
    window : predictions that are looked back on.

    Raises
    ------
    DataError
        If the window is less than one prediction.
    """

    def __init__(self, table: ClassTable, window: int = 10_000) -> None:
        if window < 1:
            raise DataError(f"The tail watch's window is {window}; expected 1 or more predictions.")
        self.table = table
        names = [name for name in table.rule.names if name in set(table.groups)]
        index = {name: number for number, name in enumerate(names)}
        self._names = tuple(names)
        self._group_of = np.array([index[group] for group in table.groups], dtype=np.int64)
        self._prior = table.prior()
        self._expected = np.bincount(self._group_of, self._prior, len(names))
        # One class more than there are means "nothing yet", so that filling needs no second path.
        self._ring = np.full(window, len(table), dtype=np.int64)
        self._counts = np.zeros(len(table) + 1, dtype=np.int64)
        self._counts[-1] = window
        self._totals = np.zeros(len(names), dtype=np.int64)
        self._next = 0
        self._lock = threading.Lock()

    def add(self, labels: IntArray) -> None:
        """Count predictions: a classifier's best label per image, a detector's shown detections.

        Parameters
        ----------
        labels : array of shape (N,), 0 to C − 1; N may be 0.

        Raises
        ------
        DataError
            If a label is not of the class table.
        """
        labels = np.asarray(labels, dtype=np.int64)
        if not len(labels):
            return
        if labels.min() < 0 or labels.max() >= len(self.table):
            raise DataError(
                f"The labels {labels.min()} to {labels.max()} were predicted; the class table has "
                f"0 to {len(self.table) - 1}."
            )
        recent = labels[-len(self._ring) :]
        with self._lock:
            np.add.at(self._totals, self._group_of[labels], 1)
            where = (self._next + np.arange(len(recent))) % len(self._ring)
            np.subtract.at(self._counts, self._ring[where], 1)
            np.add.at(self._counts, recent, 1)
            self._ring[where] = recent
            self._next = (self._next + len(recent)) % len(self._ring)

    def snapshot(self) -> TailSnapshot:
        """Return shares, silent classes and shift of the window; O(classes)."""
        with self._lock:
            counts, totals = self._counts[:-1].copy(), self._totals.copy()
        groups, seen = len(self._names), int(counts.sum())
        predicted = np.bincount(self._group_of, counts, groups)
        silent = np.bincount(self._group_of, counts == 0, groups)
        with np.errstate(divide="ignore", invalid="ignore"):  # a class that is all there is
            missed = np.exp(seen * np.log1p(-self._prior)) if seen else np.ones(len(counts))
        expected_silent = np.bincount(self._group_of, missed, groups)
        shares = predicted / max(seen, 1)
        return TailSnapshot(
            predictions=seen,
            by_group={
                name: GroupShare(
                    total=int(totals[number]),
                    share=float(shares[number]) if seen else None,
                    expected=float(self._expected[number]),
                    ratio=float(shares[number] / self._expected[number]) if seen else None,
                    silent_classes=int(silent[number]),
                    expected_silent=float(expected_silent[number]),
                )
                for number, name in enumerate(self._names)
            },
            shift=float(np.abs(shares - self._expected).sum() / 2) if seen else None,
        )
