"""The report of a benchmark: one HTML file, made from the machine-readable result alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..webpage import Download, asset, plain, render_page
from ..webpage.sections import provenance
from . import report_sections as sections

__all__ = ["render_report"]


def render_report(result: Mapping[str, Any], *, title: str) -> str:
    """Return the report as one HTML document.

    Parameters
    ----------
    result : the machine-readable result of ``bench``; it is embedded as it is, with figures that
        are not finite as null.
    title : the heading, ``"moths.ltd"``.
    """
    result = plain(dict(result))
    return render_page(
        title=title,
        kind="benchmark",
        body=[
            sections.banner(result),
            sections.picture(result),
            sections.accuracies(result),
            sections.speeds(result),
            sections.failures(result),
            provenance(result["provenance"]),
        ],
        data={"result": result, "view": {"groups": result["groups"]}},
        scripts=[asset(__package__, "bench.js")],
        downloads=[
            Download("result", "bench.json", "All figures (JSON)"),
            Download("speeds", "bench.csv", "Speeds (CSV)"),
        ],
    )
