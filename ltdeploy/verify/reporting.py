"""From a verification to its report and to the bundle's baseline."""

from __future__ import annotations

import io
import json

import numpy as np

from ..errors import ImageError
from ..images import load_image
from ..metrics.calibration import Reliability
from . import report_details as details
from .report import render_report
from .result import sentence
from .run import Verification

__all__ = ["baseline_json", "report_html"]

_THUMBNAIL_PX = 96
_MOST_FLIPS = 48
_MODELS: dict[str, details.Model] = {
    "unfixed": "unfixed",
    "reference": "reference",
    "candidate": "candidate",
}


def report_html(done: Verification, *, title: str, kind: str) -> str:
    """Return the report of a verification as one self-contained HTML document.

    Parameters
    ----------
    title : what was verified.
    kind : ``"verification"`` or ``"comparison"``.
    """
    result = done.result
    shown = details.ReportDetails(
        reliability={
            group: {_MODELS[name]: _bins(diagram) for name, diagram in models.items()}
            for group, models in result.reliability.items()
        },
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


def _names(done: Verification, kind: str) -> dict[details.Model, str]:
    """Return what the report calls its models: by role, or by name where two are compared."""
    reference, candidate = done.names if kind == "comparison" else ("Reference", "Candidate")
    if reference == candidate:
        reference, candidate = f"A: {reference}", f"B: {candidate}"
    return {"unfixed": "Before the fix", "reference": reference, "candidate": candidate}


def _bins(diagram: Reliability) -> details.Reliability:
    rows = zip(diagram.confidence, diagram.accuracy, diagram.counts, strict=True)
    return details.Reliability(
        tuple(
            details.ReliabilityBin(
                min(1.0, float(confidence)) if count else 0.0,
                float(accuracy) if count else 0.0,
                int(count),
            )
            for confidence, accuracy, count in rows
        ),
        diagram.error,
    )


def _flips(done: Verification) -> tuple[details.FlippedImage, ...]:
    result = done.result
    flipped = result.flipped
    chosen = details.choose_flips(
        np.array([flip.label for flip in flipped], dtype=np.int64),
        np.array([flip.reference for flip in flipped], dtype=np.int64),
        np.array([flip.candidate for flip in flipped], dtype=np.int64),
        np.array([c.train_count for c in result.classes], dtype=np.int64),
        _MOST_FLIPS,
    )
    names = [c.name for c in result.classes]
    return tuple(
        details.FlippedImage(
            identifier=done.dataset.identifier(flip.index),
            label=names[flip.label],
            group=result.classes[flip.label].group,
            reference=names[flip.reference],
            candidate=names[flip.candidate],
            reference_probability=min(1.0, flip.reference_confidence),
            candidate_probability=min(1.0, flip.candidate_confidence),
            thumbnail=_thumbnail(done, flip.index),
        )
        for flip in (flipped[place] for place in chosen)
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
