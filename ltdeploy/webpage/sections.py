"""The sections that several reports have, as HTML; what comes from data is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from .pieces import number, tint, whole

__all__ = [
    "NO_SCRIPT",
    "class_table",
    "count_chart",
    "facts",
    "group_sizes",
    "is_crowded",
    "provenance",
    "reliability",
    "terms",
]

# Above this many classes single points hide each other, and a mark stands for several.
_CROWD = 400
NO_SCRIPT = (
    "<noscript><p>This part needs JavaScript; its figures are in the JSON at the end of this "
    "file.</p></noscript>"
)


def facts(items: Iterable[tuple[str, str]]) -> str:
    """Return the figures of a banner, name and text, the latter as HTML."""
    rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{text}</dd></div>" for name, text in items)
    return f'<dl class="facts">{rows}</dl>'


def terms(items: Iterable[tuple[str, str]]) -> str:
    """Return words with their explanations, for people from another field."""
    rows = "".join(f"<div><dt>{escape(t)}</dt><dd>{escape(d)}</dd></div>" for t, d in items)
    return f'<dl class="terms">{rows}</dl>'


def is_crowded(classes: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether the marks of the chart over training count stand for several classes each."""
    return len(classes) > _CROWD


def group_sizes(groups: Iterable[str], classes: Sequence[Mapping[str, Any]]) -> tuple[str, str]:
    """Return the groups as a term for `terms`, with their smallest and largest training count."""
    spans = []
    for group in groups:
        counts = [c["train_count"] for c in classes if c["group"] == group]
        if counts:
            low, high = whole(min(counts)), whole(max(counts))
            spans.append(f"{group}, {low if low == high else f'{low}–{high}'}")
    return (
        ", ".join(groups),
        "Classes sorted by how many images the model was trained on "
        f"(here: {'; '.join(spans)}). The last group is the tail, the easiest to lose unseen.",
    )


def count_chart(
    groups: Sequence[str],
    classes: Sequence[Mapping[str, Any]],
    averages: Mapping[str, tuple[float | None, float | None]],
    choice: str = "",
) -> str:
    """Return the section of the chart of each class over its training count.

    Parameters
    ----------
    groups : all groups, in order.
    classes : the classes of the result.
    averages : accuracy before and after by group, for those who cannot see the chart.
    choice : controls to stand above the chart, as HTML.
    """
    legend = "".join(
        f'<li><span class="swatch tint-{i % 3}"></span>{escape(group)}, after</li>'
        for i, group in enumerate(groups)
    )
    marks = "One mark is one class; a stem joins what it was before and after."
    if is_crowded(classes):
        marks = "The area of a mark is the number of classes about there, after."
    else:
        legend += '<li><span class="ring"></span>before</li>'
    summary = "; ".join(
        f"{name}: {number(before, 1)} to {number(after, 1)} per cent"
        for name, (before, after) in averages.items()
    )
    return f"""<section aria-labelledby="by-count">
<h2 id="by-count">Accuracy of each class over its training images</h2>
<p class="lead">{marks} The lines are averages over classes of similar size: where they fall to the
left, the model neglects rare classes. Dotted verticals part the groups.</p>{NO_SCRIPT}
{choice}
<ul class="legend">{legend}<li><span class="stroke"></span>average after</li>
<li><span class="stroke dashed"></span>average before</li></ul>
<div class="chart"><canvas id="scatter" role="img" aria-label="Scatter plot of class accuracy over
training images. Averages before and after, {escape(summary)}. The table of classes below holds
every figure."></canvas></div></section>"""


def class_table(meaning: str) -> str:
    """Return the frame of the class table; its rows come from the embedded result.

    Parameters
    ----------
    meaning : what the columns mean, as HTML.
    """
    return f"""<section aria-labelledby="classes">
<h2 id="classes">Every class</h2>
<p class="lead">Click a heading to sort, type beneath it to filter: <code>&lt;20</code>,
<code>&gt;=50</code> or <code>10-30</code>. {meaning}</p>
{NO_SCRIPT}
<div class="toolbar"><button type="button" id="only-worse">Only worse</button>
<button type="button" id="only-rare">Only the rarest group</button>
<button type="button" id="clear-filters">All classes</button>
<output id="class-count" aria-live="polite"></output></div>
<div id="class-table"></div></section>"""


def reliability(
    groups: Sequence[str],
    errors: Mapping[str, Mapping[str, float | None]],
    strokes: Mapping[str, str],
    names: Mapping[str, str],
) -> str:
    """Return the section of the reliability diagrams, which ``charts.reliability`` draws.

    Parameters
    ----------
    groups : all groups, for their colours.
    errors : calibration error in percent, by panel and by model.
    strokes : how the line of a model looks, ``"dashed"``, ``"thin"`` or ``""``.
    names : what the models are called.
    """
    shown = {model for models in errors.values() for model in models}
    legend = "".join(
        f'<li><span class="stroke {stroke}"></span>{escape(names[model])}</li>'
        for model, stroke in strokes.items()
        if model in shown
    )
    panels = []
    for group, models in errors.items():
        change = " → ".join(number(value, 1) for value in models.values())
        words = ", ".join(f"{names[model]} {number(value, 1)}" for model, value in models.items())
        panels.append(
            f'<figure><h3><span class="swatch tint-{tint(groups, group)}"></span>{escape(group)}'
            f"</h3><figcaption>calibration error {change} %</figcaption>"
            f'<div class="chart"><canvas data-reliability="{escape(group)}" role="img" '
            f'aria-label="Reliability diagram of {escape(group)}. Calibration error in per cent: '
            f'{escape(words)}."></canvas></div></figure>'
        )
    return f"""<section aria-labelledby="reliability">
<h2 id="reliability">Can its confidence be trusted?</h2>
<p class="lead">Of the answers a model is 80 % sure of, 80 % should be right: a curve on the dotted
diagonal is honest, one below it is overconfident. Larger marks hold more images. The calibration
error is the average distance from the diagonal.</p>{NO_SCRIPT}
<ul class="legend">{legend}</ul><div class="panels">{"".join(panels)}</div></section>"""


def provenance(items: Mapping[str, str]) -> str:
    """Return where the figures come from, or nothing where that was not told."""
    if not items:
        return ""
    rows = "".join(
        f"<dt>{escape(name)}</dt><dd>"
        + (f"<code>{escape(text)}</code>" if name.lower() == "command" else escape(text))
        + "</dd>"
        for name, text in items.items()
    )
    return (
        '<section aria-labelledby="provenance"><h2 id="provenance">How this was measured</h2>'
        f'<dl class="facts-list">{rows}</dl></section>'
    )
