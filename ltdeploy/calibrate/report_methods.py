"""The tables of methods as HTML; everything that comes from data is escaped here."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..webpage.pieces import IntervalScale, breakable, mark, number, signed, whole
from ..webpage.sections import group_sizes, terms

__all__ = ["OBJECTIVES", "accuracies", "confidences", "ranking", "steps"]

OBJECTIVES = {
    "balanced": ("Balanced accuracy", "accuracy averaged over classes, each counting the same"),
    "few": ("Accuracy of the rarest group", "accuracy averaged over the classes of that group"),
    "harmonic": ("Harmonic mean", "harmonic mean of the groups' accuracies: low if any of them is"),
    "overall": ("Overall accuracy", "share of images that are right"),
}
_PRIORS = {
    "uniform": "every class is expected equally often in use",
    "validation": "classes are expected in use as often as in the validation images",
    "given": "classes are expected in use as often as was given with the target prior",
}
_STANDINGS = {
    "before": ("start", "No fix"),
    "chosen": ("pass", "Chosen"),
    "candidate": ("equal", "As good"),
    "too costly for the head": ("fail", "Too costly"),
    "behind": ("behind", "Behind"),
}

_ACCURACY_TERMS = [
    (
        "Overall",
        "The share of all images that are right: frequent classes weigh as much as they have "
        "images here.",
    ),
    (
        "Balanced, and the groups",
        "Accuracy averaged over classes, so that every class counts the same however many images "
        "it has.",
    ),
    (
        "Harmonic",
        "Harmonic mean of the groups' accuracies: high only where no group is left behind.",
    ),
    ("Worst class", "The class with the lowest accuracy, named beneath."),
]
_CONFIDENCE_TERMS = [
    (
        "NLL",
        "Negative log-likelihood: how surprised the model is by the true classes; it punishes "
        "being sure and wrong.",
    ),
    (
        "ECE",
        "Expected calibration error: how far the confidence of an answer is from how often such "
        "answers are right, on average over bins of confidence.",
    ),
    (
        "Class-wise ECE",
        "The same for the probability of every class and not of the answer alone, averaged over "
        "classes: rare ones count as much as frequent ones.",
    ),
    (
        "ECE of a group",
        "The same for the images of a group: a model can be honest on average and overconfident "
        "on its tail.",
    ),
]


def ranking(result: Mapping[str, Any]) -> str:
    """Return the table that the choice was made from, its intervals drawn against no fix."""
    methods, head = result["methods"], result["groups"][0]
    name, _ = OBJECTIVES[result["objective"]]
    before = methods[0]["objective"]["value"]
    figures = [m["objective"][end] for m in methods for end in ("value", "low", "high")]
    at = next((f for f in (before, *figures) if f is not None), 0.0)
    scale = IntervalScale(figures, line=(at, "no fix"))
    limit = result["max_head_loss"]
    bound = "95 % interval" if limit is None else f"at least {number(-limit, 1)}"
    best = _best(limit)
    heads = [
        _head("Method", "text"),
        _head("Standing", "text"),
        _head(name, "high", "95 % interval"),
        f'<th scope="col" class="plot">{scale.axis()}</th>',
        _head(best, "high", "± standard error"),
        _head(f"Change of {head}", "high", bound),
        _head("Learns", "low", "numbers"),
    ]
    labels = (name, best, f"Change of {head}", "Learns")
    rows = "".join(_ranking_row(m, scale, limit, labels) for m in methods)
    return f"""<section aria-labelledby="methods"><h2 id="methods">Which method</h2>
<p class="lead">Every method was fitted on all folds of the images but one and then answered that
one, in turn: each figure comes from images that had no part in what they measure. The thin
vertical is the model without a fix; a bar is the interval in which the true figure plausibly
lies.</p>
{_table("Methods", heads, rows, "cards")}
{terms(_ranking_terms(result))}</section>"""


def accuracies(result: Mapping[str, Any]) -> str:
    """Return the table of every method's accuracies."""
    groups, classes = result["groups"], {c["label"]: c["name"] for c in result["classes"]}
    heads = [
        _head("Method", "text"),
        *(_head(text, "high") for text in ("Overall", "Balanced", "Harmonic", *groups)),
        _head("Worst class", "high"),
    ]
    rows = ""
    for method in result["methods"]:
        figures = method["figures"]
        cells = [_figure(figures[key], 1) for key in ("overall", "balanced", "harmonic")]
        cells += [_figure(figures["groups"].get(group), 1) for group in groups]
        worst = figures["worst"]
        label = None if worst is None else worst.get("label")
        cells.append(_figure(worst, 1, str(classes.get(label, "" if label is None else label))))
        rows += _row(method, _name(method), cells)
    return f"""<section aria-labelledby="accuracies">
<h2 id="accuracies">Accuracy of every method</h2>
<p class="lead">In per cent, on images the method has not learnt from; beneath each figure its 95 %
interval. Click a heading to sort.</p>
{_table("Accuracy of every method", heads, rows)}
{terms(_ACCURACY_TERMS)}</section>"""


def confidences(result: Mapping[str, Any]) -> str:
    """Return the table of every method's errors of confidence."""
    groups = result["groups"]
    heads = [
        _head("Method", "text"),
        _head("NLL", "low", "nats"),
        _head("ECE", "low", "%"),
        _head("Class-wise ECE", "low", "%"),
        *(_head(f"ECE of {group}", "low", "%") for group in groups),
    ]
    rows = ""
    for method in result["methods"]:
        figures = method["figures"]
        cells = [
            _figure(figures["nll"], 3),
            _figure(figures["ece"], 1),
            _figure(figures["classwise_ece"], 2),
            *(_figure(figures["group_ece"].get(group), 1) for group in groups),
        ]
        rows += _row(method, _name(method), cells)
    return f"""<section aria-labelledby="errors"><h2 id="errors">Confidence of every method</h2>
<p class="lead">Lower is better. A temperature, one number that makes all answers more or less sure
without changing any, was refitted after each method that does not set the confidence
itself.</p>
{_table("Confidence of every method", heads, rows)}
{terms(_CONFIDENCE_TERMS)}</section>"""


def steps(methods: Sequence[Mapping[str, Any]], unnamed: str = "") -> str:
    """Return fixes with their parameters as text, in the order they are applied.

    Parameters
    ----------
    unnamed : a first fix of this name is told by its parameters alone.
    """
    texts = []
    for place, step in enumerate(methods):
        values = ", ".join(f"{key} {_value(value)}" for key, value in step["parameters"].items())
        hidden = place == 0 and step["method"] == unnamed
        texts.append(values if hidden else f"{step['method']} {values}".strip())
    return ", then ".join(text for text in texts if text)


def _value(value: Any) -> str:
    """Return a parameter's value as text; of many numbers, how many."""
    if isinstance(value, list):
        rows = value[0] if value and isinstance(value[0], list) else None
        size = whole(len(value)) if rows is None else f"{whole(len(value))} × {whole(len(rows))}"
        return f"({size} {'value' if size == '1' else 'values'})"
    if isinstance(value, float):
        return f"{value:.4g}".replace("-", "−")
    return "–" if value is None else str(value)


def _best(limit: float | None) -> str:
    """Return what methods are measured against, which too costly ones can surpass."""
    return "Against the best" if limit is None else "Against the best allowed"


def _ranking_row(
    method: Mapping[str, Any], scale: IntervalScale, limit: float | None, labels: Sequence[str]
) -> str:
    """Return one method; `labels` name its figures where a narrow screen shows no heads."""
    figures, behind, change = method["objective"], method["behind"], method["head_change"]
    style, standing = _STANDINGS.get(method["status"], ("equal", escape(method["status"])))
    details = [
        steps(method["methods"], re.split("[:+]", method["name"])[0]),
        _folds(method["per_fold"]),
        method["note"],
    ]
    small = "".join(f"<small>{escape(text)}</small>" for text in details if text)
    label = f"{number(figures['value'], 1)} per cent, interval {_interval(figures, 1)}"
    plot = scale.plot(figures["value"], figures["low"], figures["high"], label=label)
    if behind["value"] == 0 and method["status"] in ("chosen", "candidate"):
        gap = "best"
    else:
        gap = signed(behind["value"])
        if behind["standard_error"]:
            gap += _small(f"± {number(behind['standard_error'], 2)}")
    least = change["value"] if change["low"] is None else change["low"]
    costly = limit is not None and least is not None and least < -limit - 1e-9
    is_start = method["status"] == "before"
    changed = (
        "–" if is_start else f"{signed(change['value'], 1)}{_small(_interval(change, 1, signed))}"
    )
    cells = [
        f'<td class="standing" data-value="{standing}">{mark(style, standing)}</td>',
        _figure(figures, 1, label=labels[0]),
        f'<td class="plot">{plot}</td>',
        _cell(behind["value"], gap, label=labels[1]),
        _cell(
            None if is_start else change["value"],
            changed,
            "past" if costly else "",
            label=labels[2],
        ),
        _cell(method["freedom"], whole(method["freedom"]), label=labels[3]),
    ]
    return _row(method, f"{_name(method)}{small}", cells)


def _ranking_terms(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    name, meaning = OBJECTIVES[result["objective"]]
    head, limit = result["groups"][0], result["max_head_loss"]
    lost = (
        "any loss was allowed here"
        if limit is None
        else f"methods that may cost it more than {number(limit, 1)} points, by the lower end of "
        "the interval, are too costly"
        if limit
        else "methods that may cost it anything are too costly"
    )
    above = "" if limit is None else " One that is too costly can stand above it."
    return [
        group_sizes(result["groups"], result["classes"]),
        (
            name,
            f"What the choice maximises: {meaning}; {_PRIORS.get(result['target_prior'], '')}.",
        ),
        (
            "Standing",
            "Chosen is the method that learns the fewest numbers of those within one standard "
            "error of the best; the others there are as good, and only more complicated. All "
            "others are behind, or too costly.",
        ),
        (
            _best(limit),
            "Difference to the best method that is not too costly, in points on the same images; "
            f"the standard error says by how much it would vary with other images.{above}",
        ),
        (
            f"Change of {head}",
            f"Points of accuracy that the most frequent group gains or pays; {lost}.",
        ),
        (
            "Learns",
            "How many numbers a method takes from data: the more, the more images it needs to get "
            "them right.",
        ),
    ]


def _folds(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    low, high = _value(float(min(known))), _value(float(max(known)))
    return f"every fold chose {low}" if low == high else f"folds chose {low} to {high}"


def _name(method: Mapping[str, Any]) -> str:
    hidden = ' <span class="hidden-text">(chosen)</span>' if method["status"] == "chosen" else ""
    return f"{breakable(method['name'])}{hidden}"


def _row(method: Mapping[str, Any], head: str, cells: Sequence[str]) -> str:
    style = ' class="chosen"' if method["status"] == "chosen" else ""
    value = escape(method["name"])
    return f'<tr{style}><th scope="row" data-value="{value}">{head}</th>{"".join(cells)}</tr>'


def _head(text: str, sort: str, beneath: str = "") -> str:
    style = "" if sort == "text" else ' class="num"'
    small = f"<span>{escape(beneath)}</span>" if beneath else ""
    return f'<th scope="col"{style} data-sort="{sort}">{escape(text)}{small}</th>'


def _table(label: str, heads: Sequence[str], rows: str, style: str = "pinned") -> str:
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table: {label}">'
        f'<table class="plain sortable methods {style}"><thead><tr>{"".join(heads)}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(value: float | None, shown: str, style: str = "", *, label: str = "") -> str:
    data = "" if value is None else f"{value:.6g}"
    told = f'data-label="{escape(label)}" ' if label else ""
    return f'<td class="{f"num {style}".strip()}" {told}data-value="{data}">{shown}</td>'


def _figure(
    figure: Mapping[str, Any] | None, digits: int, beneath: str = "", *, label: str = ""
) -> str:
    if figure is None or figure["value"] is None:
        return _cell(None, "–", label=label)
    shown = number(figure["value"], digits)
    named = f'<small class="name">{escape(beneath)}</small>' if beneath else ""
    text = f"{shown}{_small(_interval(figure, digits))}{named}"
    return _cell(figure["value"], text, label=label)


def _interval(figure: Mapping[str, Any], digits: int, show: Any = number) -> str:
    if figure["low"] is None or figure["high"] is None:
        return "no interval"
    return f"{show(figure['low'], digits)} … {show(figure['high'], digits)}"


def _small(text: str) -> str:
    return f"<small>{text}</small>"
