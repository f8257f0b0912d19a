"""What ``calibrate`` found: every method's figures, the choice, and the reason for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..classes import ClassTable
from ..fixes import Fix, LogitMap
from ..metrics import Figure, Figures, Reliability
from .candidates import Skipped
from .objective import Aim

__all__ = ["Calibration", "ClassChange", "Confidence", "MethodResult", "Sweep"]


@dataclass(frozen=True, eq=False)
class MethodResult:
    """One method on held-out images.

    Parameters
    ----------
    name : as the user would type it.
    fixes : the fixes with the value chosen on all images.
    t : the temperature that follows them, fitted on all images: of the chosen method only, and
        None where it sets the confidence itself.
    freedom : how many numbers are learnt from data.
    per_fold : the value of the tunable parameter that each fold's training part chose.
    figures : on held-out images, each fold with the value and the fit of the others.
    objective : the objective, in percent, with a 95 % interval.
    behind : points of the objective behind the best admissible method, at most 0, and the standard
        error of this paired difference.
    head_change : points that the most frequent group gains against no fix, with an interval.
    status : ``"before"`` for no fix at all, ``"chosen"``, ``"candidate"`` within one standard error
        of the best, ``"behind"``, or ``"too costly for the head"``.
    note : what went wrong on the way, or an empty text.
    """

    name: str
    fixes: tuple[Fix, ...]
    t: float | None
    freedom: int
    per_fold: tuple[float | None, ...]
    figures: Figures
    objective: Figure
    behind: tuple[float, float]
    head_change: Figure
    status: str
    note: str = ""

    def methods(self) -> list[dict[str, Any]]:
        """Return fixes and temperature by name and parameters, in order."""
        listed = [{"method": fix.method, "parameters": fix.parameters()} for fix in self.fixes]
        if self.t is not None:
            listed.append({"method": "temperature", "parameters": {"t": self.t}})
        return listed

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return {
            "name": self.name,
            "freedom": self.freedom,
            "methods": self.methods(),
            "per_fold": list(self.per_fold),
            "figures": self.figures.to_dict(),
            "objective": self.objective.to_dict(),
            "behind": {"value": self.behind[0], "standard_error": self.behind[1]},
            "head_change": self.head_change.to_dict(),
            "status": self.status,
            "note": self.note,
        }


@dataclass(frozen=True, eq=False)
class Sweep:
    """Accuracies on all validation images at each value of a method's parameter, in percent."""

    method: str
    parameter: str
    values: tuple[float, ...]
    series: dict[str, npt.NDArray[np.float64]]
    chosen: float

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable form."""
        return {
            "method": self.method,
            "parameter": self.parameter,
            "values": list(self.values),
            "series": {name: column.tolist() for name, column in self.series.items()},
            "chosen": self.chosen,
        }


@dataclass(frozen=True, eq=False)
class Confidence:
    """Reliability of one set of images, with mean accuracy and confidence, in percent."""

    diagram: Reliability
    accuracy: float | None
    confidence: float | None

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable form; empty bins have nulls."""
        d = self.diagram
        rows = zip(d.confidence.tolist(), d.accuracy.tolist(), d.counts.tolist(), strict=True)
        return {
            "bins": [
                {
                    "confidence": c if n else None,
                    "accuracy": a if n else None,
                    "count": n,
                }
                for c, a, n in rows
            ],
            "ece": None if d.error is None else 100.0 * d.error,
            "accuracy": self.accuracy,
            "confidence": self.confidence,
        }


@dataclass(frozen=True)
class ClassChange:
    """Accuracy of one class on held-out images before and after, in percent; None without any."""

    label: int
    images: int
    before: float | None
    after: float | None


@dataclass(frozen=True, eq=False)
class Calibration:
    """A choice of fix with everything it rests on.

    Parameters
    ----------
    classes : the class table.
    images, folds : how many validation images, in how many folds.
    aim : what was asked for.
    methods : every method that was tried, in the order of the objective, no fix at all first.
    chosen : the one of ``methods`` that is proposed.
    fix : its map, fitted on all validation images, temperature inside.
    reason : why it, in one sentence.
    warnings : what the user should know before relying on it.
    skipped : methods that were not tried, and why.
    sweeps : of every method whose parameter was chosen from a grid.
    confidence : reliability before and after, of all images and per group.
    changes : per class.
    provenance : where all this came from, by label.
    """

    classes: ClassTable
    images: int
    folds: int
    aim: Aim
    methods: tuple[MethodResult, ...]
    chosen: MethodResult
    fix: LogitMap
    reason: str
    warnings: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    sweeps: tuple[Sweep, ...]
    confidence: dict[str, dict[str, Confidence]]
    changes: tuple[ClassChange, ...]
    provenance: dict[str, str]

    @property
    def before(self) -> MethodResult:
        """The model without any fix."""
        return self.methods[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable result; docs/json.md specifies it."""
        table = self.classes
        return {
            "schema": 1,
            "objective": self.aim.objective,
            "target_prior": self.aim.prior_name,
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
            "sweeps": [sweep.to_dict() for sweep in self.sweeps],
            "confidence": {
                when: {name: one.to_dict() for name, one in sets.items()}
                for when, sets in self.confidence.items()
            },
            "classes": [
                {
                    "name": table.names[change.label],
                    "label": change.label,
                    "group": table.groups[change.label],
                    "train_count": table.counts[change.label],
                    "images": change.images,
                    "before": change.before,
                    "after": change.after,
                }
                for change in self.changes
            ],
            "provenance": self.provenance,
        }
