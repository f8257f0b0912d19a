"""The sections of the report beside the tables of methods; what comes from data is escaped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..webpage import Download, sections
from ..webpage.pieces import breakable, mark, number, sentence, signed, tint, whole
from .report_methods import OBJECTIVES, steps

__all__ = [
    "banner",
    "class_table",
    "confidence",
    "downloads",
    "reliability",
    "scatter",
    "skipped",
    "sweep",
]

_LONG_SENTENCE = 160
_CONFIDENCE_ONLY = "temperature"
_STROKES = {"before": "dashed", "after": ""}


def downloads(result: Mapping[str, Any]) -> list[Download]:
    """Return the links that save the figures as files."""
    links = [
        Download("result", "calibrate.json", "All figures (JSON)"),
        Download("methods", "methods.csv", "Methods (CSV)"),
        Download("classes", "classes.csv", "Classes (CSV)"),
        Download("confidence", "confidence.csv", "Confidence (CSV)"),
        Download("reliability", "reliability.csv", "Reliability (CSV)"),
    ]
    if result["sweeps"]:
        links.insert(2, Download("sweeps", "sweeps.csv", "Sweeps (CSV)"))
    if result["skipped"]:
        links.append(Download("skipped", "skipped.csv", "Not tried (CSV)"))
    return links


def banner(result: Mapping[str, Any]) -> str:
    """Return the choice: its reason, what it does to each group, and what to know before."""
    methods, chosen = result["methods"], result["chosen"]
    before, after = methods[0], _chosen(result)
    facts = [(OBJECTIVES[result["objective"]][0], _move(before["objective"], after["objective"]))]
    for group in result["groups"]:
        pair = [m["figures"]["groups"].get(group) for m in (before, after)]
        if all(figure is not None for figure in pair):
            facts.append((group, _move(*pair)))
    limit = result["max_head_loss"]
    allowed = "no limit" if limit is None else f"{number(limit, 1)} points" if limit else "nothing"
    facts += [
        (f"{result['groups'][0]} may lose", allowed),
        (f"images in {whole(result['folds'])} folds", whole(result["images"])),
        ("classes", whole(len(result["classes"]))),
    ]
    decides = any(step["method"] != _CONFIDENCE_ONLY for step in chosen["methods"])
    style, applied = "pass" if decides else "inconclusive", steps(chosen["methods"])
    if decides:
        signs = mark("pass", f"Chosen: {escape(chosen['name'])}")
        applied = f"Applied in this order: {applied}."
    elif applied:
        signs = mark("equal", "Only the confidence changes")
        applied = f"The fix file holds {applied}, for honest confidence; no answer changes."
    else:
        signs = mark("equal", "No fix chosen")
    warnings = result["warnings"]
    if warnings:
        count = whole(len(warnings))
        signs += mark("warned", f"{count} {'warning' if len(warnings) == 1 else 'warnings'}")
    long = ' class="long"' if len(chosen["reason"]) > _LONG_SENTENCE else ""
    shown = f'<p class="steps">{escape(applied)}</p>' if applied else ""
    notes = "".join(
        f"<li>{mark('warned', 'Warning')}<span>{sentence(w)}</span></li>" for w in warnings
    )
    return (
        f'<section class="verdict {style}" aria-labelledby="verdict">'
        f'<div class="marks">{signs}</div><h2 id="verdict"{long}>{escape(chosen["reason"])}</h2>'
        f"{shown}{sections.facts(facts)}</section>"
        + (f'<ul class="notes" aria-label="Warnings">{notes}</ul>' if notes else "")
    )


def sweep(result: Mapping[str, Any]) -> str:
    """Return the frame of the chart of accuracies over a method's parameter."""
    if not result["sweeps"]:
        return ""
    options = "".join(
        f'<option value="{place}"{" selected" if one["method"] == _shown(result) else ""}>'
        f"{escape(one['method'])}</option>"
        for place, one in enumerate(result["sweeps"])
    )
    groups = "".join(
        f'<li><span class="swatch tint-{place % 3}"></span>{escape(group)}</li>'
        for place, group in enumerate(result["groups"])
    )
    return f"""<section aria-labelledby="sweep-head">
<h2 id="sweep-head">What each value of a parameter would do</h2>
<p class="lead">To the left the fix is mild, to the right strong: what rare classes win, frequent
ones pay. A method's best value was picked on the very images of its curve, so what stands here
flatters a little; the figures of the tables are from held-out folds and do not.</p>
{sections.NO_SCRIPT}
<p class="choice"><label>Method <select id="sweep-method">{options}</select></label>
<output id="sweep-note" for="sweep-method"></output></p>
<ul class="legend">{groups}<li><span class="stroke"></span>balanced</li>
<li><span class="stroke mid"></span>overall</li><li><span class="stroke dotted"></span>harmonic</li>
<li><span class="upright"></span>this method's best value</li></ul>
<div class="chart"><canvas id="sweep" role="img"></canvas></div>
<p class="reader"><label for="sweep-value">Read the curves at</label>
<input type="range" id="sweep-value" min="0" value="0"><output id="sweep-at" for="sweep-value">
</output></p>
<div class="scroll" tabindex="0" role="region" aria-label="Curves read at a value">
<table class="plain" id="sweep-table"></table></div></section>"""


def scatter(result: Mapping[str, Any]) -> str:
    """Return the frame of the chart of class accuracy over training count."""
    averages = {}
    for group in result["groups"]:
        pair = [m["figures"]["groups"].get(group) for m in (result["methods"][0], _chosen(result))]
        if all(figure is not None for figure in pair):
            averages[group] = (pair[0]["value"], pair[1]["value"])
    return sections.count_chart(result["groups"], result["classes"], averages)


def reliability(result: Mapping[str, Any]) -> str:
    """Return the frames of the reliability diagrams, of all images and of each group."""
    errors = {
        name: {when: sets[name]["ece"] for when, sets in result["confidence"].items()}
        for name in _measured(result)
    }
    names = {"before": "No fix", "after": f"Chosen: {result['chosen']['name']}"}
    return sections.reliability(result["groups"], errors, _STROKES, names) if errors else ""


def confidence(result: Mapping[str, Any]) -> str:
    """Return the table of accuracy and confidence, before and after, of each group."""
    rows = "".join(_confidence_row(name, result) for name in _measured(result))
    if not rows:
        return ""
    pair = '<th scope="col" class="num">before</th><th scope="col" class="num">after</th>'
    columns = ("Accuracy, %", "Mean confidence, %", "Too sure by, points", "Calibration error, %")
    heads = "".join(f'<th scope="colgroup" colspan="2" class="num">{c}</th>' for c in columns)
    return f"""<section aria-labelledby="confidence">
<h2 id="confidence">Confidence before and after</h2>
<p class="lead">Averages over the images of a group. A model is too sure by what its mean
confidence exceeds its accuracy: 0 is honest, and more is what models promise on classes they have
seen little of and do not hold.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Table: Confidence before and after">
<table class="plain pinned"><thead><tr><th scope="col" rowspan="2">Images of</th>
<th scope="col" rowspan="2" class="num">Images</th>{heads}</tr><tr>{pair * 4}</tr></thead>
<tbody>{rows}</tbody></table></div></section>"""


def class_table() -> str:
    """Return the frame of the class table; its rows come from the embedded result."""
    return sections.class_table(
        "Before is the model without a fix, after the chosen one, both in per cent; Δ is the "
        "change in points. With few validation images a class moves by chance: one image of three "
        "is 33 points. Judge such classes by their group."
    )


def skipped(result: Mapping[str, Any]) -> str:
    """Return the methods that were not tried, with reasons; nothing where all were."""
    if not result["skipped"]:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{breakable(one["method"])}</th>'
        f"<td>{sentence(one['reason'])}</td></tr>"
        for one in result["skipped"]
    )
    return f"""<section aria-labelledby="skipped"><h2 id="skipped">Not tried</h2>
<p class="lead">Methods that do not apply to this model, or for which something was missing.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Methods not tried">
<table class="plain reasons"><thead><tr><th scope="col">Method</th><th scope="col">Reason</th></tr>
</thead><tbody>{rows}</tbody></table></div></section>"""


def _chosen(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row of the chosen method."""
    chosen: Mapping[str, Any]
    chosen = next(m for m in result["methods"] if m["status"] == "chosen")
    return chosen


def _shown(result: Mapping[str, Any]) -> str:
    """Return the method whose sweep is shown first: the chosen one, else the first there is."""
    methods: Sequence[str] = [one["method"] for one in result["sweeps"]]
    name: str = result["chosen"]["name"]
    return name if name in methods else methods[0]


def _measured(result: Mapping[str, Any]) -> list[str]:
    """Return the sets of images that have any, all images first."""
    after = result["confidence"]["after"]
    return [n for n in ("all", *result["groups"]) if after.get(n) and after[n]["ece"] is not None]


def _move(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    return f"{number(before['value'], 1)} → {number(after['value'], 1)} %"


def _confidence_row(name: str, result: Mapping[str, Any]) -> str:
    pair = [result["confidence"][when][name] for when in ("before", "after")]
    images = sum(one["count"] for one in pair[1]["bins"])
    cells = [number(one[key], 1) for key in ("accuracy", "confidence") for one in pair]
    cells += [signed(one["confidence"] - one["accuracy"], 1) for one in pair]
    cells += [number(one["ece"], 1) for one in pair]
    figures = "".join(f'<td class="num">{cell}</td>' for cell in cells)
    style = ' class="all"' if name == "all" else ""
    swatch = f'<span class="swatch tint-{tint(result["groups"], name)}"></span>'
    return (
        f'<tr{style}><th scope="row">{swatch}{escape(name)}</th>'
        f'<td class="num">{whole(images)}</td>{figures}</tr>'
    )
