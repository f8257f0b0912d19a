"""The report of a verification: one HTML file that needs no network, server or second file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..metrics.calibration import Reliability
from ..webpage import asset, plain, render_page
from ..webpage.sections import is_crowded, provenance
from . import report_sections as sections
from .report_details import ReportDetails

__all__ = ["render_report"]


def render_report(
    result: Mapping[str, Any],
    details: ReportDetails | None = None,
    *,
    title: str,
    sentence: str,
    kind: str = "verification",
) -> str:
    """Return the report as one HTML document.

    Parameters
    ----------
    result : the machine-readable result of ``verify`` or ``compare``; it is embedded as it is,
        with figures that are not finite as null.
    details : reliability diagrams, flipped images, provenance; what is absent is left out.
    title : the heading, ``"cifar100.ltd"``.
    sentence : the verdict in words, shown as it is.
    kind : what sort of report it is, shown above the title.
    """
    details = details or ReportDetails()
    result = plain(dict(result))
    groups = list(result["groups"])
    view = {
        "groups": groups,
        "names": dict(details.names),
        "crowded": is_crowded(result["classes"]),
        "reliability": {
            group: {model: _diagram(value) for model, value in models.items()}
            for group, models in details.reliability.items()
        },
    }
    return render_page(
        title=title,
        kind=kind,
        body=[
            sections.verdict(result, sentence),
            sections.group_table(result, details.names),
            sections.scatter(result, details.names),
            sections.reliability(groups, details),
            sections.class_table(),
            sections.flips(result, groups, details),
            provenance(details.provenance),
        ],
        data={"result": result, "view": view},
        scripts=[asset(__package__, "verify.js")],
        downloads=sections.downloads(details),
    )


def _diagram(diagram: Reliability) -> dict[str, Any]:
    """Return a reliability diagram as the scripts read it and as the reader may save it."""
    rows = zip(diagram.confidence, diagram.accuracy, diagram.counts, strict=True)
    bins = [{"confidence": c, "accuracy": a, "count": n} for c, a, n in rows]
    return {"bins": bins, "ece": diagram.error}
