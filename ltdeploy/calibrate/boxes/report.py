"""The report of a choice of fix for a detector: one HTML file, made from the result alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...webpage import asset, plain, render_page
from ...webpage.sections import provenance
from ..report_sections import skipped
from . import report_methods as methods
from . import report_sections as sections

__all__ = ["render_box_report"]


def render_box_report(result: Mapping[str, Any], *, title: str) -> str:
    """Return the report as one HTML document.

    Parameters
    ----------
    result : the machine-readable result of ``calibrate``; it is embedded as it is, with figures
        that are not finite as null.
    title : the heading, ``"ckpt.pt"``.
    """
    result = plain(dict(result))
    return render_page(
        title=title,
        kind="choice of a fix",
        body=[
            f"<style>{asset('ltdeploy.calibrate', 'calibrate_boxes.css')}</style>",
            sections.banner(result),
            methods.ranking(result),
            methods.precisions(result),
            sections.shifts(result),
            sections.class_table(result),
            skipped(result),
            provenance(result["provenance"]),
        ],
        data={"result": result, "view": {"groups": result["groups"], "images": "validation"}},
        scripts=[asset("ltdeploy.calibrate", "calibrate_boxes.js")],
        downloads=sections.downloads(result),
    )
