"""The picture of each class's average precision, in the order of training count, as inline SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import pairwise
from typing import Any

from ...webpage.pieces import number, tint, whole
from .report_sections import has_fix, in_sentence

__all__ = ["precision_chart"]

# Above these numbers of classes: marks of three models hide each other; averages are worth a line;
# names do not fit beneath.
_CROWD, _LINED, _NAMED = 80, 30, 12
_CLASSES_PER_AVERAGE = 12
_LETTERS = 'style="font-size:14px"'
_LINES = {
    "unfixed": "stroke:var(--before);stroke-width:2;stroke-dasharray:6 4",
    "reference": "stroke:var(--soft);stroke-width:1.5",
    "candidate": "stroke:var(--ink);stroke-width:2.5",
}
_STROKES = {"unfixed": "dashed", "reference": "thin", "candidate": ""}


def precision_chart(
    groups: Sequence[str], classes: Sequence[Mapping[str, Any]], names: Mapping[str, str]
) -> str:
    """Return the section of the chart, or nothing where no class has an object to find.

    Parameters
    ----------
    groups : all groups, in order.
    classes : the classes of the result.
    names : what the models are called.
    """
    measured = [one for one in classes if one["reference"] is not None]
    if not measured:
        return ""
    models = ["reference", "candidate"]
    if has_fix(classes):
        models.insert(0, "unfixed")
    chart = _Chart(measured, models)
    marks = (
        f"One mark is one class, {escape(in_sentence(names['candidate']))} alone."
        if chart.crowded
        else "The marks of one class stand above each other."
    )
    lines = (
        f" The lines are averages over about {_CLASSES_PER_AVERAGE} classes of similar count: "
        "where they fall to the right, the model neglects rare classes."
        if chart.lined
        else ""
    )
    absent = len(classes) - len(measured)
    left_out = f" {whole(absent)} without an object to find are left out." if absent else ""
    return f"""<section aria-labelledby="precision">
<h2 id="precision">Average precision of each class</h2>
<p class="lead">The class with the most training images first, the rarest last. {marks}{lines}
Dotted verticals part the groups.{left_out}</p>
<ul class="legend">{_legend(groups, chart, names)}</ul>
<div class="scroll" tabindex="0" role="region" aria-label="Chart of average precision">
<svg class="interval" viewBox="0 0 {chart.width_px} {chart.height_px}"
style="width:100%;max-width:{chart.width_px}px;min-width:{chart.width_px * 7 // 10}px;height:auto"
role="img" aria-label="Average precision of {len(measured)} classes by
{escape(", ".join(names[model] for model in models))}; the table of classes below holds every
figure.">
{chart.axes()}{chart.marks(groups, names)}{chart.lines()}</svg></div></section>"""


class _Chart:
    """Pixels of the chart: rank by training count across, AP in per cent upward."""

    height_px = 360
    _most_px, _class_px, _letter_px = 1056, 130, 8
    _left_px, _right_px, _top_px, _bottom_px = 48, 8, 12, 56

    def __init__(self, measured: Sequence[Mapping[str, Any]], models: Sequence[str]) -> None:
        self.classes = sorted(measured, key=lambda one: (-one["train_count"], one["label"]))
        self.models = models
        sides = self._left_px + self._right_px
        self.width_px = min(self._most_px, sides + self._class_px * len(measured))
        self.crowded, self.lined = len(measured) > _CROWD, len(measured) >= _LINED

    def axes(self) -> str:
        """Return lines at every 20 per cent, borders of groups, and what stands beneath."""
        right = self.width_px - self._right_px
        ticks = range(0, 101, 20)
        grid = "".join(f"M{self._left_px} {self._y(tick)}H{right}" for tick in ticks)
        figures = "".join(
            f'<text x="{self._left_px - 8}" y="{self._y(tick) + 5}" text-anchor="end" {_LETTERS}>'
            f"{tick}</text>"
            for tick in ticks
        )
        beneath = "".join(
            f'<text x="{self._x(rank)}" y="{self.height_px - 36 + 17 * row}" '
            f'text-anchor="middle" {_LETTERS}>{escape(text)}</text>'
            for rank, texts in self._beneath()
            for row, text in enumerate(texts)
        )
        borders = "".join(
            f"M{self._x(rank + 0.5)} {self._top_px}V{self._y(0)}"
            for rank, (one, other) in enumerate(pairwise(self.classes))
            if one["group"] != other["group"]
        )
        return (
            f'<path class="tick" d="{grid}"/><path class="zero" stroke-dasharray="2 4" '
            f'd="{borders}"/>{figures}{beneath}'
        )

    def marks(self, groups: Sequence[str], names: Mapping[str, str]) -> str:
        """Return the marks of each class: a ring before the fix, a bar, and the group's shape."""
        drawn = []
        for rank, one in enumerate(self.classes):
            x, kind = self._x(rank), tint(groups, one["group"])
            known = {model: one[model] for model in self.models}
            told = f"{one['name']} ({one['group']}, {whole(one['train_count'])} training images): "
            told += ", ".join(f"{names[model]} {number(ap, 1)}" for model, ap in known.items())
            shapes = "" if self.crowded else self._before(x, known)
            shapes += _shape(kind, x, self._y(known["candidate"]), 2.5 if self.crowded else 6)
            drawn.append(f'<g class="tint-{kind}"><title>{escape(told)}</title>{shapes}</g>')
        return "".join(drawn)

    def lines(self) -> str:
        """Return each model's averages over neighbouring classes, where there are enough."""
        if not self.lined:
            return ""
        bins = len(self.classes) // _CLASSES_PER_AVERAGE
        edges = [round(at * len(self.classes) / bins) for at in range(bins + 1)]
        paths = ""
        for model in self.models:
            places = []
            for low, high in pairwise(edges):
                mean = sum(one[model] for one in self.classes[low:high]) / (high - low)
                places.append(f"{self._x((low + high - 1) / 2)} {self._y(mean)}")
            path = f'd="M{"L".join(places)}" stroke-linejoin="round"'
            paths += f'<path style="fill:none;{_LINES[model]}" {path}/>'
        return paths

    def _before(self, x: float, known: Mapping[str, float]) -> str:
        places = [self._y(ap) for ap in known.values()]
        shapes = f'<path class="zero" d="M{x} {min(places)}V{max(places)}"/>'
        if "unfixed" in known:
            shapes += (
                f'<circle cx="{x}" cy="{self._y(known["unfixed"])}" r="5" '
                'style="fill:none;stroke:var(--before);stroke-width:1.5"/>'
            )
        bar = f"M{x - 10} {self._y(known['reference'])}h20"
        return f'{shapes}<path style="stroke:var(--ink);stroke-width:2" d="{bar}"/>'

    def _x(self, rank: float) -> float:
        inner = self.width_px - self._left_px - self._right_px
        return round(self._left_px + (rank + 0.5) / len(self.classes) * inner, 1)

    def _y(self, ap: float) -> float:
        bottom = self.height_px - self._bottom_px
        return round(bottom - ap / 100 * (bottom - self._top_px), 1)

    def _beneath(self) -> list[tuple[int, tuple[str, str]]]:
        """Return ranks with two lines of text: the name or the rank, and the training count."""
        count = len(self.classes)
        named = count <= _NAMED
        letters = (self.width_px - self._left_px) // count // self._letter_px
        ranks = range(count)
        if not named:
            steps = (5, 10, 20, 50, 100, 200, 500, 1000)
            step = next((s for s in steps if count / s <= _NAMED), count)
            ranks = range(step - 1, count, step)
        return [
            (
                rank,
                (
                    _cut(one["name"], letters) if named else f"no. {whole(rank + 1)}",
                    f"{whole(one['train_count'])} images",
                ),
            )
            for rank, one in ((rank, self.classes[rank]) for rank in ranks)
        ]


def _legend(groups: Sequence[str], chart: _Chart, names: Mapping[str, str]) -> str:
    there = {one["group"] for one in chart.classes}
    items = [
        f'<span class="swatch tint-{tint(groups, group)}"></span>'
        f"{escape(names['candidate'])}, {escape(group)}"
        for group in groups
        if group in there
    ]
    if not chart.crowded:
        items.append(
            '<span class="stroke" style="width:20px;border-top-width:2px"></span>'
            f"{escape(names['reference'])}"
        )
        if "unfixed" in chart.models:
            items.append(f'<span class="ring"></span>{escape(names["unfixed"])}')
    if chart.lined:
        items += [
            f'<span class="stroke {_STROKES[model]}"></span>{escape(names[model])}, average'
            for model in chart.models
        ]
    return "".join(f"<li>{item}</li>" for item in items)


def _shape(kind: int, x: float, y: float, radius: float) -> str:
    """Return a group's mark: a circle, a triangle or a square, as in all legends."""
    outline = 'style="stroke-width:.5"' if radius < 4 else ""
    if kind == 0:
        return f'<circle class="dot" cx="{x}" cy="{y}" r="{radius}" {outline}/>'
    if kind == 1:
        path = f"M{x} {y - radius:.1f}l{radius} {2 * radius}h{-2 * radius}z"
    else:
        path = f"M{x - radius:.1f} {y - radius:.1f}h{2 * radius}v{2 * radius}h{-2 * radius}z"
    return f'<path class="dot" d="{path}" {outline}/>'


def _cut(text: str, letters: int) -> str:
    return text if len(text) <= letters else f"{text[: max(1, letters - 1)]}…"
