"""From a verification to its report and to the bundle's baseline."""

from __future__ import annotations

import io
import json

from ..errors import ImageError
from ..images import load_image
from .report import render_report
from .report_details import FlippedImage, ReportDetails, choose_flips
from .result import sentence
from .run import Verification

__all__ = ["baseline_json", "report_html"]

_THUMBNAIL_PX = 96
_MOST_FLIPS = 48


def report_html(done: Verification, *, title: str, kind: str) -> str:
    """Return the report of a verification as one self-contained HTML document.

    Parameters
    ----------
    title : what was verified.
    kind : ``"verification"`` or ``"comparison"``.
    """
    result = done.result
    shown = ReportDetails(
        reliability=result.reliability,
        flips=_flips(done),
        provenance=done.provenance,
        names=_names(done, kind),
    )
    return render_report(result.to_dict(), shown, title=title, sentence=sentence(result), kind=kind)


def baseline_json(done: Verification) -> str:
    """Return per-class reference accuracy and what it was measured on, for the bundle."""
    content = {
        "schema": 1,
        "data": done.dataset.name,
        "images": done.result.images,
        "classes": [
            {"name": c.name, "images": c.images, "accuracy": c.reference}
            for c in done.result.classes
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _names(done: Verification, kind: str) -> dict[str, str]:
    """Return what the report calls its models: by role, or by name where two are compared."""
    reference, candidate = done.names if kind == "comparison" else ("Reference", "Candidate")
    if reference == candidate:
        reference, candidate = f"A: {reference}", f"B: {candidate}"
    return {"unfixed": "Before the fix", "reference": reference, "candidate": candidate}


def _flips(done: Verification) -> tuple[FlippedImage, ...]:
    classes = done.result.classes
    chosen = choose_flips(done.result.flipped, [c.train_count for c in classes], _MOST_FLIPS)
    return tuple(
        FlippedImage(
            identifier=done.dataset.identifier(flip.index),
            label=classes[flip.label].name,
            group=classes[flip.label].group,
            kind=flip.kind,
            reference=classes[flip.reference].name,
            candidate=classes[flip.candidate].name,
            reference_probability=flip.reference_confidence,
            candidate_probability=flip.candidate_confidence,
            thumbnail=_thumbnail(done, flip.index),
        )
        for flip in chosen
    )


def _thumbnail(done: Verification, index: int) -> bytes | None:
    try:
        image = load_image(done.dataset.source(index))
    except ImageError:
        return None  # it was readable a moment ago: the file has gone since
    image.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
