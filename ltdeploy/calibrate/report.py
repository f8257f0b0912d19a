"""The report of a choice of fix: one HTML file, made from the machine-readable result alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..webpage import asset, plain, render_page
from ..webpage.sections import is_crowded, provenance
from . import report_methods as methods
from . import report_sections as sections

__all__ = ["render_report"]


def render_report(result: Mapping[str, Any], *, title: str) -> str:
    """Return the report as one HTML document.

    Parameters
    ----------
    result : the machine-readable result of ``calibrate``; it is embedded as it is, with figures
        that are not finite as null.
    title : the heading, ``"ckpt.pt"``.
    """
    result = plain(dict(result))
    view = {
        "groups": result["groups"],
        "images": "validation",
        "names": {"before": "No fix", "after": result["chosen"]["name"]},
        "crowded": is_crowded(result["classes"]),
    }
    return render_page(
        title=title,
        kind="choice of a fix",
        body=[
            sections.banner(result),
            methods.ranking(result),
            sections.sweep(result),
            methods.accuracies(result),
            sections.scatter(result),
            sections.reliability(result),
            sections.confidence(result),
            methods.confidences(result),
            sections.class_table(),
            sections.skipped(result),
            provenance(result["provenance"]),
        ],
        data={"result": result, "view": view},
        scripts=[asset(__package__, "calibrate.js")],
        downloads=sections.downloads(result),
    )
