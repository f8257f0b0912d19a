"""The class table: names, training counts, prior and frequency groups of a model's classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from .errors import DataError

__all__ = ["LVIS_GROUPS", "ClassTable", "GroupRule"]


@dataclass(frozen=True)
class GroupRule:
    """Names and count thresholds of the frequency groups.

    A class belongs to ``names[0]`` above ``above[0]`` training images, to ``names[1]`` above
    ``above[1]``, and so on; the last group takes the rest. The default is OLTR's (Liu et al. 2019,
    arXiv 1904.05160, §4.1): many > 100, medium 20–100, few < 20.
    """

    names: tuple[str, ...] = ("many", "medium", "few")
    above: tuple[int, ...] = (100, 19)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.above) + 1 or len(set(self.names)) != len(self.names):
            raise DataError(
                f"A group rule needs distinct names and one threshold fewer than names; got names "
                f"{self.names} and thresholds {self.above}."
            )
        if list(self.above) != sorted(set(self.above), reverse=True) or self.above[-1] < 0:
            raise DataError(f"Group thresholds must fall from group to group; got {self.above}.")

    def group_of(self, count: int) -> str:
        """Return the group of a class with ``count`` training images."""
        for name, threshold in zip(self.names, self.above, strict=False):
            if count > threshold:
                return name
        return self.names[-1]


# LVIS (Gupta et al. 2019, arXiv 1908.03195, §3.3) counts images: rare 1–10, common 11–100.
LVIS_GROUPS = GroupRule(names=("frequent", "common", "rare"), above=(100, 10))


@dataclass(frozen=True)
class ClassTable:
    """Names and training counts in label order, and what follows from them.

    Parameters
    ----------
    names : one distinct, non-empty name per class.
    counts : training images per class; zero is allowed (a class may be known and unseen).
    rule : how counts make groups.

    Raises
    ------
    DataError
        For lengths that differ, duplicate or empty names, negative counts, or counts that are all
        zero.

    Examples
    --------
    >>> table = ClassTable(("cat", "lynx"), (500, 4))
    >>> table.groups
    ('many', 'few')
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]
    rule: GroupRule = field(default_factory=GroupRule)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.counts):
            raise DataError(
                f"The class table has {len(self.names)} names and {len(self.counts)} training "
                "counts; expected one count per name, in label order."
            )
        if not self.names:
            raise DataError("The class table is empty; expected at least one class.")
        seen: dict[str, int] = {}
        for label, name in enumerate(self.names):
            if not name.strip():
                raise DataError(f"Class {label} has an empty name; give every class a name.")
            if name in seen:
                raise DataError(
                    f"The class name {name!r} stands twice in the class table, at labels "
                    f"{seen[name]} and {label}; names must be distinct."
                )
            seen[name] = label
        for label, count in enumerate(self.counts):
            if count < 0:
                raise DataError(
                    f"Class {self.names[label]!r} (label {label}) has the training count {count}; "
                    "expected 0 or more."
                )
        if not any(self.counts):
            raise DataError("All training counts are zero; expected the images per class.")

    @classmethod
    def from_counts(cls, counts: Sequence[int], names: Sequence[str] | None = None) -> ClassTable:
        """Build a table; classes without names are called by their label, ``"0"``, ``"1"``, …"""
        labels = names if names is not None else [str(label) for label in range(len(counts))]
        return cls(tuple(labels), tuple(int(count) for count in counts))

    def __len__(self) -> int:
        return len(self.names)

    @property
    def is_named(self) -> bool:
        """Whether the names are more than the labels written out."""
        return any(name != str(label) for label, name in enumerate(self.names))

    @property
    def groups(self) -> tuple[str, ...]:
        """The group of each class, in label order."""
        return tuple(self.rule.group_of(count) for count in self.counts)

    def members(self, group: str) -> npt.NDArray[np.int64]:
        """Return the labels that belong to ``group``; empty when no class does."""
        return np.array([c for c, g in enumerate(self.groups) if g == group], dtype=np.int64)

    @property
    def unseen(self) -> tuple[str, ...]:
        """Names of classes with no training image."""
        return tuple(n for n, count in zip(self.names, self.counts, strict=True) if count == 0)

    def prior(self) -> npt.NDArray[np.float64]:
        """Return π, shape (C,): the share of each class in training, with zero counts read as one.

        A zero would make ``log π`` infinite and lift an unseen class above every other one.
        """
        counts = np.maximum(np.array(self.counts, dtype=np.float64), 1.0)
        prior: npt.NDArray[np.float64] = counts / counts.sum()
        return prior

    @property
    def imbalance(self) -> float:
        """Largest over smallest non-zero training count."""
        positive = [count for count in self.counts if count]
        return max(positive) / min(positive)
