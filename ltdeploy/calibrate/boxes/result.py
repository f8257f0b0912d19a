"""What ``calibrate`` found of a detector: every method's figures, the choice, and the reason."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ...arrays import IntArray
from ...classes import ClassTable
from ...fixes import AffineMap, Fix, LogitMap
from ...fixes.group_odds import GroupOdds
from ...metrics.detection import mean_precision
from ..candidates import Skipped
from ..objective import Aim
from .choice import BoxStanding
from .scoring import BoxStrata

__all__ = ["BoxCalibration", "BoxFigures", "BoxMethodResult", "shown_fix"]

Float64 = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class BoxFigures:
    """Average precisions on held-out folds, each ranked by itself, in percent.

    Parameters
    ----------
    ap, ap50 : means over the classes that have objects, at IoU 0.50:0.05:0.95 and at 0.50.
    groups, groups50 : the same of the classes of each group that has objects.
    by_class, by_class50 : arrays of shape (F,), NaN without an object.
    """

    ap: float
    ap50: float
    groups: dict[str, float]
    groups50: dict[str, float]
    by_class: Float64
    by_class50: Float64

    @classmethod
    def of(cls, precision: Float64, strata: BoxStrata) -> BoxFigures:
        """Return the figures of AP by class and IoU, shape (F, T), in 0..1."""
        fifty = precision[:, :1]

        def mean(values: Float64, labels: npt.NDArray[np.int64] | None = None) -> float:
            return 100.0 * float(mean_precision(values, labels))

        return cls(
            ap=mean(precision),
            ap50=mean(fifty),
            groups={name: mean(precision, labels) for name, labels in strata.groups.items()},
            groups50={name: mean(fifty, labels) for name, labels in strata.groups.items()},
            by_class=100.0 * precision.mean(axis=1),
            by_class50=100.0 * fifty[:, 0],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable form; null without an object."""
        return {
            "ap": self.ap,
            "ap50": self.ap50,
            "groups": {
                name: {"ap": value, "ap50": self.groups50[name]}
                for name, value in self.groups.items()
            },
            "classes": {"ap": _listed(self.by_class), "ap50": _listed(self.by_class50)},
        }


@dataclass(frozen=True, eq=False)
class BoxMethodResult:
    """One method on held-out photographs.

    Parameters
    ----------
    name : as the user would type it; ``"none"`` for no fix at all.
    fix : with the numbers chosen on all photographs; None for no fix, or one that changes nothing.
    freedom : how many numbers are learnt from data.
    per_fold : what each fold's training part chose.
    figures : each fold with what the others chose.
    objective : in percent.
    standing : beside the other methods.
    """

    name: str
    fix: Fix | None
    freedom: int
    per_fold: tuple[Fix, ...]
    figures: BoxFigures
    objective: float
    standing: BoxStanding

    @property
    def is_chosen(self) -> bool:
        """Whether it is the one proposed."""
        return self.standing.status == "chosen"

    def methods(self) -> list[dict[str, Any]]:
        """Return the fix by name and parameters: one entry, or none."""
        if self.fix is None:
            return []
        return [{"method": self.fix.method, "parameters": self.fix.parameters()}]

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        standing = self.standing
        return {
            "name": self.name,
            "freedom": self.freedom,
            "methods": self.methods(),
            "per_fold": [fix.parameters() for fix in self.per_fold],
            "figures": self.figures.to_dict(),
            "objective": self.objective,
            "gain": standing.gain.to_dict(),
            "behind": {"value": standing.behind, "standard_error": standing.standard_error},
            "head_change": standing.head_change.to_dict(),
            "status": standing.status,
        }


@dataclass(frozen=True, eq=False)
class BoxCalibration:
    """A choice of fix for a detector with everything it rests on.

    Parameters
    ----------
    classes : the foreground classes.
    images, folds : how many validation photographs, in how many folds.
    class_images, class_objects : photographs that hold each class, and its objects, shapes (F,).
    strata : the groups that were measured.
    aim : what was asked for.
    methods : every method that was tried, in the order of the objective, no fix at all first.
    fix : the map of the chosen one, fitted on all photographs.
    columns : where in the head's logits the classes are, shape (F,).
    reason : why it, in one sentence.
    warnings : what the user should know before relying on it.
    skipped : methods that were not tried, and why.
    provenance : where all this came from, by label.
    """

    classes: ClassTable
    images: int
    folds: int
    class_images: npt.NDArray[np.int64]
    class_objects: npt.NDArray[np.int64]
    strata: BoxStrata
    aim: Aim
    methods: tuple[BoxMethodResult, ...]
    fix: LogitMap
    columns: IntArray
    reason: str
    warnings: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    provenance: dict[str, str]

    @property
    def before(self) -> BoxMethodResult:
        """The detector without any fix."""
        return self.methods[0]

    @property
    def chosen(self) -> BoxMethodResult:
        """The method that is proposed; it may be no fix."""
        return next(method for method in self.methods if method.is_chosen)

    def _class_map(self) -> tuple[Float64, Float64]:
        """Return what the fix multiplies each class's logit by and adds to it, shapes (F,)."""
        assert isinstance(self.fix, AffineMap)  # all that a detector's class layer takes
        return self.fix.scale[self.columns], self.fix.shift[self.columns]

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable result."""
        table, before, after = self.classes, self.before.figures, self.chosen.figures
        scale, shift = self._class_map()
        return {
            "schema": 1,
            "task": "detection",
            "objective": self.aim.objective,
            "max_head_loss": self.aim.max_head_loss,
            "images": self.images,
            "folds": self.folds,
            "groups": list(table.rule.names),
            "chosen": {
                "name": self.chosen.name,
                "methods": self.chosen.methods(),
                "reason": self.reason,
            },
            "warnings": list(self.warnings),
            "skipped": [{"method": s.method, "reason": s.reason} for s in self.skipped],
            "methods": [method.to_dict() for method in self.methods],
            "classes": [
                {
                    "name": table.names[label],
                    "label": label,
                    "group": table.groups[label],
                    "train_count": table.counts[label],
                    "images": int(self.class_images[label]),
                    "objects": int(self.class_objects[label]),
                    "before": _known(before.by_class[label]),
                    "after": _known(after.by_class[label]),
                    "before_ap50": _known(before.by_class50[label]),
                    "after_ap50": _known(after.by_class50[label]),
                    "scale": float(scale[label]),
                    "shift": float(shift[label]),
                }
                for label in range(len(table))
            ],
            "provenance": self.provenance,
        }


def shown_fix(fix: Fix, table: ClassTable) -> str:
    """Return a fix for people; group factors with the groups that have classes."""
    if not isinstance(fix, GroupOdds):
        return fix.describe()
    factors = zip(table.rule.names, fix.factors, strict=True)
    listed = ", ".join(f"{name} ×{factor:g}" for name, factor in factors if name in table.groups)
    return f"{fix.method} ({listed})"


def _listed(values: Float64) -> list[float | None]:
    return [_known(value) for value in values]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
