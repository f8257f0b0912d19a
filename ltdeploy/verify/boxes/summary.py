"""What was found, as a table of texts."""

from __future__ import annotations

from ..summary import aligned
from .result import BoxGroupResult, BoxVerifyResult, sentence

__all__ = ["box_rows", "summarise_boxes"]


def summarise_boxes(result: BoxVerifyResult) -> str:
    """Return the sentence and the table of groups as plain text."""
    return "\n".join([sentence(result), "", *aligned(box_rows(result))])


def box_rows(result: BoxVerifyResult) -> list[tuple[str, ...]]:
    """Return the table of groups as texts, its header first."""
    header = (
        "", "classes", "images", "AP unfixed", "reference", "candidate", "difference", "AP50",
        "lost", "new", "verdict",
    )  # fmt: skip
    groups = [(name, g) for name, g in result.groups.items() if g.classes]
    return [header, *(_row(name, group) for name, group in [*groups, ("overall", result.overall)])]


def _row(name: str, group: BoxGroupResult) -> tuple[str, ...]:
    difference = "no objects"
    if group.difference is not None:
        difference = f"{group.difference:+.2f} [{group.ci_low:+.2f}, {group.ci_high:+.2f}]"
    measured = f"{group.measured} of {group.classes}"
    return (
        name,
        str(group.classes) if group.measured == group.classes else measured,
        f"{group.images:,}",
        _number(group.unfixed),
        _number(group.reference),
        _number(group.candidate),
        difference.replace("-", "−"),
        _number(group.candidate_ap50),
        str(group.lost),
        str(group.new),
        group.verdict or "",
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
