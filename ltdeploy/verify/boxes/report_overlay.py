"""Photographs with the boxes of both sides over them, as HTML; data is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from ...arrays import FloatArray
from ...boxes import Detections, box_area
from ...webpage.pieces import number, tint, whole
from .report_images import SHOWN_SCORE, Sides, thumbnail
from .report_sections import in_sentence
from .run import BoxVerification

__all__ = ["photograph_section"]

# In one photograph: boxes of each side, boxes of the truth, and detections named beneath.
_MOST_BOXES, _MOST_OBJECTS, _MOST_NAMED = 40, 100, 5


def photograph_section(
    done: BoxVerification, chosen: Sequence[Sides], names: Mapping[str, str]
) -> str:
    """Return the gallery of photographs, or nothing where there is none to show.

    Parameters
    ----------
    chosen : as `choose_photographs` picked and ordered them.
    names : what the models are called.
    """
    if not chosen:
        return ""
    pictures = [thumbnail(done, one.position) for one in chosen]
    items = "".join(
        _photograph(done, one, picture, names)
        for one, picture in zip(chosen, pictures, strict=True)
    )
    count, total = whole(len(chosen)), whole(done.result.images)
    absent = _missing(sum(picture is None for picture in pictures), len(chosen))
    return f"""<section aria-labelledby="boxes" class="boxes">
<h2 id="boxes">What both sides find</h2>
<p class="lead">{count} of {total} photographs: first those with the most detections that only one
side has, then, group by group from the rarest, others that differ or hold the most of it. Where
both sides agree the two colours alternate; boxes of one side alone are bold. Point at a box to read
its class and score; scores below {SHOWN_SCORE} are not drawn.{absent}</p>
<ul class="legend layers">{_legend(names)}</ul>
<ul class="photographs">{items}</ul></section>"""


def _missing(absent: int, total: int) -> str:
    if not absent:
        return ""
    if absent == total:
        return " None of these photographs is here any more: their boxes stand on an empty ground."
    of = f"{absent} of these photographs {'is' if absent == 1 else 'are'}"
    return f" {of} not here any more: boxes stand on an empty ground there."


def _legend(names: Mapping[str, str]) -> str:
    """Return what the lines mean, each with a switch that hides its boxes."""
    texts = {
        "reference": f"{names['reference']} (dashed)",
        "candidate": f"{names['candidate']} (solid)",
        "truth": "Truth (thin)",
    }
    return "".join(
        f'<li><label><input type="checkbox" value="{layer}" checked>'
        '<svg viewBox="0 0 40 18" aria-hidden="true"><rect width="40" height="18" rx="3"/>'
        f'<path class="halo of-{layer}" d="M4 9h32"/><path class="box {layer}" d="M4 9h32"/></svg>'
        f"{escape(text)}</label></li>"
        for layer, text in texts.items()
    )


def _photograph(
    done: BoxVerification, sides: Sides, picture: bytes | None, names: Mapping[str, str]
) -> str:
    index = int(done.indices[sides.position])
    width, height = done.dataset.size_px(index)
    identifier = escape(done.dataset.identifier(index))
    shown = '<span class="no-image">photograph not here</span>'
    if picture is not None:
        data = base64.b64encode(picture).decode()
        shown = f'<img src="data:image/jpeg;base64,{data}" alt="{identifier}">'
    drawn, left_out = _boxes(done, sides, names)
    counts = [
        f"{len(found)} of {names[side]}"
        for side, found in (("reference", sides.reference), ("candidate", sides.candidate))
    ]
    remarks = []
    if not len(sides.alone):
        remarks.append("Both sides find the same.")
    if left_out:
        remarks.append(f"{whole(left_out)} more boxes are not drawn.")
    return (
        f'<li><div class="photograph" style="aspect-ratio:{width}/{height}">{shown}'
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="Boxes in {identifier}: '
        f'{escape("; ".join(counts))}.">{drawn}</svg></div>'
        f'<p class="name">{identifier}</p>'
        f"{_alone(done, 'lost', sides.reference[sides.lost], names['reference'])}"
        f"{_alone(done, 'new', sides.candidate[sides.new], names['candidate'])}"
        f'<p class="quiet">{" ".join(remarks)}</p></li>'
    )


def _alone(done: BoxVerification, kind: str, found: Detections, side: str) -> str:
    """Name the detections that only one side has, the surest first."""
    if not len(found):
        return ""
    classes, groups = done.result.classes, list(done.result.groups)
    order = np.argsort(-found.scores, kind="stable")[:_MOST_NAMED]
    shown = ", ".join(
        f'<span class="found"><span class="swatch tint-{tint(groups, one.group)}"></span>'
        f'{escape(one.name)} <span class="quiet">{number(float(score), 2)}</span></span>'
        for one, score in ((classes[found.labels[at]], found.scores[at]) for at in order)
    )
    rest = len(found) - len(order)
    more = f" and {whole(rest)} more" if rest else ""
    meaning = escape(f"only the {in_sentence(side)} has them")
    return f'<p><span class="kind {kind}" title="{meaning}">{kind}</span> {shown}{more}</p>'


def _boxes(done: BoxVerification, sides: Sides, names: Mapping[str, str]) -> tuple[str, int]:
    """Return the boxes of truth and both sides as SVG, and how many are left out.

    Lines are drawn layer by layer, the dashed reference over the solid candidate. What the pointer
    meets are shapes without lines above them, the smallest on top.
    """
    classes = done.result.classes
    truth = done.dataset.truth(int(done.indices[sides.position]))
    order = np.argsort(-box_area(truth.boxes), kind="stable")[:_MOST_OBJECTS]
    left_out = len(truth) - len(order)
    objects = truth.boxes[order]
    targets = [
        ("truth", box, f"{classes[label].name}, truth{' (a crowd)' if crowd else ''}")
        for box, label, crowd in zip(objects, truth.labels[order], truth.crowd[order], strict=True)
    ]
    halos, lines = "", ""
    for layer, other, found, counterparts in (
        ("candidate", "reference", sides.candidate, sides.reference_scores),
        ("reference", "candidate", sides.reference, sides.candidate_scores),
    ):
        alone = np.isnan(counterparts)
        order = np.lexsort((-found.scores, ~alone))[:_MOST_BOXES]
        left_out += len(found) - len(order)
        halos += _line(f"halo of-{layer}", found.boxes[order])
        lines += _line(f"box {layer}", found.boxes[order[~alone[order]]])
        lines += _line(f"box {layer} alone", found.boxes[order[alone[order]]])
        for at in order:
            theirs = (
                "alone" if alone[at] else f"({in_sentence(names[other])} {counterparts[at]:.2f})"
            )
            text = f"{classes[found.labels[at]].name} {found.scores[at]:.2f}, "
            targets.append((layer, found.boxes[at], f"{text}{in_sentence(names[layer])} {theirs}"))
    targets.sort(key=lambda target: -float(box_area(target[1])))
    return (
        _line("halo of-truth", objects)
        + _line("box truth", objects)
        + halos
        + lines
        + "".join(
            f'<path class="target {layer}" d="{_path(box)}"><title>{escape(text)}</title></path>'
            for layer, box, text in targets
        ),
        left_out,
    )


def _line(style: str, boxes: FloatArray) -> str:
    """Return boxes as one SVG path."""
    return f'<path class="{style}" d="{"".join(map(_path, boxes))}"/>' if len(boxes) else ""


def _path(box: FloatArray) -> str:
    """Return a box as an SVG path; thumbnails are small, and four digits are exact enough."""
    left, top, right, bottom = (float(side) for side in box)
    return f"M{left:.4g} {top:.4g}H{right:.4g}V{bottom:.4g}H{left:.4g}z"
