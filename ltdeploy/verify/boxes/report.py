"""The report of a detector's verification: one HTML file that needs no network or second file."""

from __future__ import annotations

from ...webpage import Download, asset, plain, render_page
from ...webpage.sections import provenance
from . import report_sections as sections
from .report_chart import precision_chart
from .report_images import choose_photographs
from .report_overlay import photograph_section
from .run import BoxVerification

__all__ = ["render_box_report"]


def render_box_report(done: BoxVerification, title: str, *, kind: str = "verification") -> str:
    """Return the report of a detector's verification as one HTML document.

    It stays under three megabytes; the photographs stand in it as small JPEGs, with the boxes of
    both sides over them. Those that cannot be read any more leave their boxes on an empty ground.

    Parameters
    ----------
    title : the heading, ``"bccd.ltd"``.
    kind : what sort of report it is, shown above the title; a ``"comparison"`` calls both sides by
        their names instead of reference and candidate.
    """
    result = plain(done.result.to_dict())
    names = _names(done, kind)
    groups = list(result["groups"])
    return render_page(
        title=title,
        kind=kind,
        body=[
            f"<style>{asset('ltdeploy.verify', 'verify_boxes.css')}</style>",
            sections.verdict(result),
            sections.notes(result, done.dataset.is_federated),
            sections.group_table(result, names),
            precision_chart(groups, result["classes"], names),
            sections.class_table(),
            photograph_section(done, choose_photographs(done), names),
            sections.unreadable(done.unreadable),
            provenance(done.provenance),
        ],
        data={"result": result, "view": {"groups": groups, "names": names}},
        scripts=[asset("ltdeploy.verify", "verify_boxes.js")],
        downloads=[
            Download("result", "result.json", "All figures (JSON)"),
            Download("classes", "classes.csv", "Classes (CSV)"),
        ],
    )


def _names(done: BoxVerification, kind: str) -> dict[str, str]:
    """Return what the report calls its models: by role, or by name where two are compared."""
    reference, candidate = done.names if kind == "comparison" else ("Reference", "Candidate")
    if reference == candidate:
        reference, candidate = f"A: {reference}", f"B: {candidate}"
    return {"unfixed": "Before the fix", "reference": reference, "candidate": candidate}
