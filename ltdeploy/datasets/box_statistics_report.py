"""The statistics of a data set's boxes as a page: sizes, and counts per class on a log scale."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..webpage import Download, plain, render_page
from ..webpage.pieces import mark, number, sentence, tint, whole
from ..webpage.sections import facts

__all__ = ["render_report"]

# Marks overlap beyond the first number, and names beyond the second.
_CROWD, _NAMED = 80, 12
_LETTERS = 'style="font-size:14px"'
_SIZES = {"small": "below 32² px", "medium": "32² to 96² px", "large": "from 96² px"}


def render_report(result: Mapping[str, Any], *, title: str) -> str:
    """Return the page as one HTML document.

    Parameters
    ----------
    result : what :meth:`BoxStatistics.to_dict` gives; it is embedded as it is.
    title : the heading, ``"train.json"``.
    """
    result = plain(dict(result))
    return render_page(
        title=title,
        kind="boxes of a data set",
        body=[_banner(result), _sizes(result), _counts(result), _classes(result)],
        data={"result": result, "view": {"groups": result["groups"]}},
        downloads=[
            Download("result", "boxes.json", "All figures (JSON)"),
            Download("classes", "classes.csv", "Classes (CSV)"),
        ],
    )


def _banner(result: Mapping[str, Any]) -> str:
    shown = [
        ("images", whole(result["images"])),
        ("images without a box", whole(result["empty_images"])),
        ("boxes", whole(result["boxes"])),
        ("boxes per image", number(result["boxes"] / result["images"], 1)),
        ("classes", whole(len(result["classes"]))),
        ("classes without a box", whole(sum(not one["boxes"] for one in result["classes"]))),
    ]
    if result["crowds"]:
        shown.append(("crowds beside", whole(result["crowds"])))
    notes = "".join(
        f"<li>{mark('warned', 'Note')}<span>{sentence(text)}</span></li>"
        for text in result["notes"]
    )
    signs = mark("start", "LVIS: each image was searched for a few classes only")
    return (
        '<section class="verdict inconclusive" aria-labelledby="verdict">'
        + (f'<div class="marks">{signs}</div>' if result["federated"] else "")
        + f'<h2 id="verdict">{escape(_sentence(result))}</h2>{facts(shown)}</section>'
        + (f'<ul class="notes" aria-label="Notes">{notes}</ul>' if notes else "")
    )


def _sentence(result: Mapping[str, Any]) -> str:
    found = [one for one in result["classes"] if one["boxes"]]
    if not found:
        return "No image has a box."
    most, least = (pick(found, key=lambda one: one["boxes"]) for pick in (max, min))
    if most["boxes"] == least["boxes"]:
        return f"Every class that has boxes has {whole(most['boxes'])} of them."
    return (
        f"{most['name']} has {number(result['imbalance'], 1, trim=True)} times as many boxes as "
        f"{least['name']}: {whole(most['boxes'])} and {whole(least['boxes'])}."
    )


def _sizes(result: Mapping[str, Any]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{name}</th><td class="whole">{_SIZES[name]}</td>'
        f'<td class="num">{whole(size["boxes"])}</td>{_share(size["box_share"])}'
        f'<td class="num">{whole(size["images"])}</td>{_share(size["image_share"])}</tr>'
        for name, size in result["sizes"].items()
    )
    return f"""<section aria-labelledby="sizes"><h2 id="sizes">Small, medium and large</h2>
<p class="lead">COCO's sizes, by the area that the file gives: of the mask, where there is one. A
size may have many boxes and yet stand in few images; an image may hold several sizes.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Table of sizes">
<table class="plain methods"><thead><tr><th scope="col">Size</th><th scope="col">Area</th>
<th scope="col" class="num">Boxes</th><th scope="col">of all boxes</th>
<th scope="col" class="num">Images with one</th><th scope="col">of all images</th></tr></thead>
<tbody>{rows}</tbody></table></div></section>"""


def _share(percent: float | None) -> str:
    width_px = 1.2 * (percent or 0)
    return (
        '<td><svg class="interval tint-3" viewBox="0 0 180 30" style="width:180px" role="img" '
        f'aria-label="{number(percent, 1)} per cent"><path class="tick" d="M0 21.5H120"/>'
        f'<rect x="0" y="9" width="{width_px:.1f}" height="12" style="fill:var(--tint)"/>'
        f'<text x="128" y="19" style="font-size:13px;fill:var(--ink)">{number(percent, 1)} %</text>'
        "</svg></td>"
    )


class _Chart:
    """Pixels of the chart of counts: rank across, count upward on a log scale.

    Parameters
    ----------
    classes : those that have boxes; at least one.
    """

    width_px, height_px = 1056, 340
    _left_px, _right_px, _top_px, _bottom_px = 64, 14, 12, 34

    def __init__(self, classes: Sequence[Mapping[str, Any]]) -> None:
        self.classes = sorted(classes, key=lambda one: (-one["boxes"], -one["images"]))
        self._low = math.floor(math.log10(min(one["images"] for one in classes)))
        self._high = max(self._low + 1, math.ceil(math.log10(self.classes[0]["boxes"])))

    def axes(self) -> str:
        """Return a line and a figure at every power of ten, and names or ranks beneath."""
        ticks = [10**power for power in range(self._low, self._high + 1)]
        right = self.width_px - self._right_px
        lines = "".join(f"M{self._left_px} {self._y(tick)}H{right}" for tick in ticks)
        figures = "".join(
            f'<text x="{self._left_px - 8}" y="{self._y(tick) + 5}" text-anchor="end" '
            f"{_LETTERS}>{whole(tick)}</text>"
            for tick in ticks
        )
        beneath = "".join(
            f'<text x="{self._x(rank)}" y="{self.height_px - 10}" text-anchor="middle" '
            f"{_LETTERS}>{escape(text)}</text>"
            for rank, text in self._ranks()
        )
        return f'<path class="tick" d="{lines}"/>{figures}{beneath}'

    def marks(self, groups: Sequence[str]) -> str:
        """Return two marks for each class, for boxes and for images, with a stem between."""
        crowded = len(self.classes) > _CROWD
        radius = 2.5 if crowded else 6
        drawn = []
        for rank, one in enumerate(self.classes):
            x, above, below = self._x(rank), self._y(one["boxes"]), self._y(one["images"])
            told = f"{one['name']}: {whole(one['boxes'])} boxes, {whole(one['images'])} images"
            stem = "" if crowded else f'<path class="zero" d="M{x} {above}V{below}"/>'
            kind = tint(groups, one["group"])
            drawn.append(
                f'<g class="tint-{kind}"><title>{escape(told)}</title>{stem}'
                f'<circle cx="{x}" cy="{below}" r="{radius - 1}" style="fill:none;'
                f'stroke:var(--before);stroke-width:{1 if crowded else 1.5}"/>'
                f"{_shape(kind, x, above, radius)}</g>"
            )
        return "".join(drawn)

    def _x(self, rank: int) -> float:
        inner = self.width_px - self._left_px - self._right_px
        return round(self._left_px + (rank + 0.5) / len(self.classes) * inner, 1)

    def _y(self, count: int) -> float:
        share = (math.log10(count) - self._low) / (self._high - self._low)
        bottom = self.height_px - self._bottom_px
        return round(bottom - share * (bottom - self._top_px), 1)

    def _ranks(self) -> list[tuple[int, str]]:
        count = len(self.classes)
        if count <= _NAMED:
            letters = 100 // count
            return [(rank, _cut(one["name"], letters)) for rank, one in enumerate(self.classes)]
        step = next(s for s in (5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if count / s <= _NAMED)
        return [(rank - 1, whole(rank)) for rank in range(step, count, step)]


def _shape(kind: int, x: float, y: float, radius: float) -> str:
    """Return a group's mark: a circle, a triangle or a square, as in all legends."""
    outline = 'style="stroke-width:.5"' if radius < 4 else ""
    if kind == 0:
        return f'<circle class="dot" cx="{x}" cy="{y}" r="{radius}" {outline}/>'
    r = radius
    path = f"M{x} {y - r:.1f}l{r} {2 * r}h{-2 * r}z" if kind == 1 else ""
    path = path or f"M{x - r:.1f} {y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z"
    return f'<path class="dot" d="{path}" {outline}/>'


def _counts(result: Mapping[str, Any]) -> str:
    groups = result["groups"]
    classes = [one for one in result["classes"] if one["boxes"]]
    if not classes:
        return ""
    absent = len(result["classes"]) - len(classes)
    left_out = f" {whole(absent)} without a box are left out." if absent else ""
    sizes = {group: sum(one["group"] == group for one in classes) for group in groups}
    legend = "".join(
        f'<li><span class="swatch tint-{tint(groups, group)}"></span>boxes, {escape(group)} '
        f"({whole(size)} {'class' if size == 1 else 'classes'})</li>"
        for group, size in sizes.items()
        if size
    )
    chart = _Chart(classes)
    return f"""<section aria-labelledby="counts">
<h2 id="counts">Boxes and images of each class</h2>
<p class="lead">Most frequent first, on a logarithmic scale.{left_out} Groups go by images: a class
with many boxes in few images is still rare.</p>
<ul class="legend">{legend}<li><span class="ring"></span>images</li></ul>
<div class="scroll" tabindex="0" role="region" aria-label="Chart of counts">
<svg class="interval" viewBox="0 0 {chart.width_px} {chart.height_px}"
style="width:100%;min-width:760px;height:auto" role="img" aria-label="Boxes and images of
{len(classes)} classes on a logarithmic scale; the table below holds every figure.">
{chart.axes()}{chart.marks(groups)}</svg></div></section>"""


def _classes(result: Mapping[str, Any]) -> str:
    groups = result["groups"]
    heads = "".join(
        f'<th scope="col" class="num" data-sort="high">{text}</th>'
        for text in ("Boxes", "Images", "Small", "Medium", "Large")
    )
    rows = "".join(
        f'<tr><th scope="row">{escape(one["name"])}</th>'
        f'<td><span class="swatch tint-{tint(groups, one["group"])}"></span>'
        f"{escape(one['group'])}</td>"
        + "".join(
            f'<td class="num" data-value="{one[key]}">{whole(one[key])}</td>'
            for key in ("boxes", "images", "small", "medium", "large")
        )
        + "</tr>"
        for one in result["classes"]
    )
    return f"""<section aria-labelledby="classes"><h2 id="classes">Every class</h2>
<p class="lead">In label order; click a heading to sort.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Table of classes">
<table class="plain methods pinned sortable"><thead><tr>
<th scope="col" data-sort="text">Class</th><th scope="col" data-sort="text">Group</th>{heads}</tr>
</thead><tbody>{rows}</tbody></table></div></section>"""


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: max(1, letters - 1)]}…"
