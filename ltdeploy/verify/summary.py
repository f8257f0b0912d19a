"""A verification as a short plain text: groups, worst classes, flips."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..errors import numbered
from .result import ClassResult, GroupResult, VerifyResult, counted, name_some, sentence, signed

__all__ = ["WORST_CLASSES", "aligned", "group_rows", "summarise", "worst_classes"]

WORST_CLASSES = (
    "Classes that lost more images than they won, the surest first; q is the chance of it if "
    "both were equally good, corrected for the number of classes, and below 0.05 a class is worse:"
)

_HEADER = ("", "classes", "images", "unfixed", "reference", "candidate", "difference", "verdict")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _row(name: str, group: GroupResult) -> tuple[str, ...]:
    interval = (
        "–"
        if group.ci_low is None
        else f"{signed(group.difference)} [{signed(group.ci_low)}, {signed(group.ci_high)}]"
    )
    return (
        name,
        counted(group.classes, group.classes_without_images),
        f"{group.images:,}",
        _percent(group.unfixed),
        _percent(group.reference),
        _percent(group.candidate),
        interval,
        group.verdict or "–",
    )


def group_rows(result: VerifyResult) -> list[tuple[str, ...]]:
    """Return the group table as text cells, header first, the whole last."""
    rows = [_row(name, group) for name, group in result.groups.items()]
    return [_HEADER, *rows, _row("overall", result.overall)]


def worst_classes(result: VerifyResult, most: int = 10) -> tuple[ClassResult, ...]:
    """Return the classes that lost images on balance: the surest regressions first."""
    losers = [c for c in result.classes if c.flips_lost > c.flips_won]
    order = sorted(losers, key=lambda c: (not c.regressed, c.p_value or 0.0, c.label))
    return tuple(order[:most])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay cells out in columns: the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column == 0 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def summarise(
    result: VerifyResult,
    most: int = 10,
    identifier: Callable[[int], str] | None = None,
) -> str:
    """Return the sentence, the group table, the worst classes and the first flips as plain text.

    Parameters
    ----------
    most : classes and flips to list at most.
    identifier : turns an image's index into its name in the data set; the index where absent.
    """
    lines = [sentence(result), "", *aligned(group_rows(result))]
    worst = worst_classes(result, most)
    if worst:
        rows = [("class", "group", "images", "reference", "candidate", "lost", "won", "q")]
        rows += [
            (
                f"{c.name}{' (worse)' if c.regressed else ''}",
                c.group,
                f"{c.images:,}",
                _percent(c.reference),
                _percent(c.candidate),
                str(c.flips_lost),
                str(c.flips_won),
                "–" if c.q_value is None else f"{c.q_value:.2g}",
            )
            for c in worst
        ]
        lines += ["", WORST_CLASSES, *aligned(rows)]
    if result.flipped:
        names = [c.name for c in result.classes]
        # Lost images first: they are what a reader looks for.
        first = sorted(result.flipped, key=lambda f: ("lost", "changed", "won").index(f.kind))[
            :most
        ]
        lines += ["", f"{numbered(result.flips, 'flip')}, {len(first)} shown:"]
        lines += [
            f"  {f.kind:7s} {identifier(f.index) if identifier else f'image {f.index}'}: "
            f"{names[f.label]}, reference said {names[f.reference]} "
            f"({f.reference_confidence:.0%}), candidate {names[f.candidate]} "
            f"({f.candidate_confidence:.0%})"
            for f in first
        ]
    missing = result.without_images
    if missing:
        lines += ["", f"Without images, and so in no figure: {name_some(missing, most)}."]
    return "\n".join(lines)
