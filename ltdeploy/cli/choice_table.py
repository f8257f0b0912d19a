"""What ``calibrate`` prints: methods side by side, in as many columns as there is room for."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from .output import Output

if TYPE_CHECKING:
    from ..calibrate import Calibration, MethodResult
    from ..metrics import Figure

__all__ = ["report_choice"]

_GAP = 3  # what rich puts around and between cells


def report_choice(output: Output, done: Calibration) -> None:
    """Print every method's figures, what was not tried, warnings, and the reason for the choice."""
    groups = [name for name in done.classes.rule.names if name in done.classes.groups]
    rows = [
        {
            "method": f"{_sign(m, done)}{_shown(m)}",
            "learnt": f"{m.freedom:,}",
            **{name: _one(m.figures.groups.get(name)) for name in groups},
            "balanced": _one(m.figures.balanced),
            "overall": _one(m.figures.overall),
            "NLL": _one(m.figures.nll, 3),
            "ECE": _one(m.figures.ece),
            # Named like the column above where that is what was maximised: it is there once.
            done.aim.objective: _interval(m.objective),
        }
        for m in done.methods
    ]
    objective = done.aim.objective
    every = [*(name for name in rows[0] if name != objective), objective]
    columns, room = _columns_that_fit(every, rows, output.console.width)
    for row in rows:
        lines = row["method"].splitlines()
        row["method"] = "\n".join(_folded(line, room) for line in lines)
    output.table(columns, [[row[name] for name in columns] for row in rows])
    output.say(
        f"Accuracies and ECE in percent on held-out folds of {done.images:,} images; the last "
        "column is what was maximised, with its 95 % interval."
        + ("" if columns == every else " The report has all figures.")
    )
    if any(m.status == "too costly for the head" for m in done.methods):
        output.say(
            f"✗ may cost the {groups[0]} group more than {done.aim.max_head_loss:g} points, by the "
            "lower end of its 95 % interval."
        )
    reasons: dict[str, list[str]] = {}
    for one in done.skipped:
        # Methods that lack the same stand on one line, without each one's name before "needs".
        first = re.split("[:+]", one.method)[0]
        told = one.reason.removeprefix(f"{one.method}: ").removeprefix(f"{first} ")
        reasons.setdefault(told, []).append(one.method)
    for reason, names in reasons.items():
        if reason.startswith(("needs ", "is ")):
            reason = f"{'each' if len(names) > 1 else 'it'} {reason}"
        output.say(f"Not tried: {', '.join(names)}: {reason.rstrip('.')}.")
    for text in done.warnings:
        output.warn(text)
    output.say(f"Chosen   {done.reason}")


def _sign(method: MethodResult, done: Calibration) -> str:
    if method is done.chosen:
        return "→ "
    return "✗ " if method.status == "too costly for the head" else "  "


def _columns_that_fit(
    columns: list[str], rows: list[dict[str, str]], width: int
) -> tuple[list[str], int]:
    """Return the columns that a terminal has room for, and how much room is left for the first."""

    def needed(name: str) -> int:
        cells = (name, *(line for row in rows for line in row[name].splitlines()))
        return max(map(len, cells)) + _GAP

    for name in ("learnt", "NLL", "overall", "ECE", "balanced"):
        if sum(map(needed, columns)) <= width:
            break
        if name in columns[:-1]:
            columns = [one for one in columns if one != name]
    return columns, width - _GAP - sum(map(needed, columns[1:]))


def _folded(name: str, room: int) -> str:
    """Return a method's name with its parameters on a line of their own where it is too long."""
    return name if len(name) <= room else name.replace(":", ":\n    ", 1)


def _shown(method: MethodResult) -> str:
    """Return a method's name with the value that was chosen for it, one line per fix."""
    if not method.fixes:
        return method.name
    return "\n  + ".join(fix.describe() for fix in method.fixes)


def _one(figure: Figure | None, digits: int = 1) -> str:
    if figure is None or figure.value is None:
        return "–"
    return f"{figure.value:.{digits}f}" if abs(figure.value) < 1e6 else f"{figure.value:.1e}"


def _interval(figure: Figure) -> str:
    return f"{figure.value:.1f} ({figure.low:.1f} … {figure.high:.1f})"
