"""``ltdeploy inspect`` of annotated photographs: sizes of objects, counts of classes."""

from __future__ import annotations

from pathlib import Path

from .output import Output, write_text
from .verify import check_report_folder

__all__ = ["inspect_boxes"]

_LISTED = 20


def inspect_boxes(output: Output, path: str, *, root: str | None, html: str | None) -> None:
    """Say how many objects of which size and class a COCO or LVIS json holds.

    Parameters
    ----------
    html : where the page goes; None writes none.
    """
    from ..datasets import open_boxes
    from ..datasets.box_statistics import box_statistics
    from ..datasets.box_statistics_report import render_report

    check_report_folder(html)
    told = box_statistics(open_boxes(path, root=root))
    output.say(
        f"{told.name}: {told.images:,} photographs, {told.empty_images:,} without boxes; "
        f"{told.boxes:,} boxes, {told.crowds:,} of crowds"
        f"{'; each searched for some classes only (federated)' if told.federated else ''}"
    )
    for note in told.notes:
        output.warn(note)
    output.table(
        ("boxes", "", "%", "photographs that hold any, %"),
        [
            (name, f"{size.boxes:,}", _percent(size.box_share), _percent(size.image_share))
            for name, size in told.sizes.items()
        ],
    )
    rarest_first = sorted(told.classes, key=lambda one: one.boxes)
    shown = rarest_first[:_LISTED]
    output.table(
        ("rarest classes first", "group", "photographs", "boxes", "small", "medium", "large"),
        [
            (
                one.name,
                one.group,
                f"{one.images:,}",
                f"{one.boxes:,}",
                f"{one.small:,}",
                f"{one.medium:,}",
                f"{one.large:,}",
            )
            for one in shown
        ],
    )
    if len(rarest_first) > len(shown):
        output.say(f"{len(rarest_first) - len(shown):,} more classes in --json and --html")
    output.json(told.to_dict())
    if html is not None:
        write_text(Path(html), render_report(told.to_dict(), title=Path(path).name))
        output.say(f"Report   {html}")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1f}"
