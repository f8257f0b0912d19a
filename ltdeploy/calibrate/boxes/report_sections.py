"""The other sections of the report of a detector's choice; what comes from data is escaped here."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from ...webpage import Download, sections
from ...webpage.pieces import mark, number, sentence, signed, whole
from .report_methods import OBJECTIVES, applied, measured_groups

__all__ = ["banner", "class_table", "downloads", "shifts"]

_LONG_SENTENCE = 160
_MOST_CLASSES_TOLD = 12


def downloads(result: Mapping[str, Any]) -> list[Download]:
    """Return the links that save the figures as files."""
    links = [
        Download("result", "calibrate.json", "All figures (JSON)"),
        Download("methods", "methods.csv", "Methods (CSV)"),
        Download("classes", "classes.csv", "Classes (CSV)"),
    ]
    if result["skipped"]:
        links.append(Download("skipped", "skipped.csv", "Not tried (CSV)"))
    return links


def banner(result: Mapping[str, Any]) -> str:
    """Return the choice: its reason, what it does to each group, and what to know before."""
    chosen, groups, limit = result["chosen"], measured_groups(result), result["max_head_loss"]
    before, after = result["methods"][0], _chosen(result)
    facts = [
        (OBJECTIVES[result["objective"]][0], _move(before["objective"], after["objective"])),
        ("AP50", _move(before["figures"]["ap50"], after["figures"]["ap50"])),
    ]
    if len(groups) > 1:
        of = [one["figures"]["groups"] for one in (before, after)]
        facts += [(f"AP of {name}", _move(of[0][name]["ap"], of[1][name]["ap"])) for name in groups]
    if len(groups) > 1 or limit is not None:
        allowed = "no limit" if limit is None else f"{number(limit, 1)} points"
        facts.append((f"{groups[0]} may lose", allowed))
    facts += [
        (f"photographs in {whole(result['folds'])} folds", whole(result["images"])),
        ("classes", whole(len(result["classes"]))),
    ]
    if result.get("unreadable"):
        facts.append(("photographs unreadable", whole(result["unreadable"])))
    told = applied(result, chosen["methods"])
    signs = mark("equal", "No fix chosen")
    if told:
        signs = mark("pass", f"Chosen: {escape(chosen['name'])}")
    warnings = result["warnings"]
    if warnings:
        count = whole(len(warnings))
        signs += mark("warned", f"{count} {'warning' if len(warnings) == 1 else 'warnings'}")
    long = ' class="long"' if len(chosen["reason"]) > _LONG_SENTENCE else ""
    shown = f'<p class="steps">The fix file holds {escape(told)}.</p>' if told else ""
    notes = "".join(
        f"<li>{mark('warned', 'Warning')}<span>{sentence(text)}</span></li>" for text in warnings
    )
    return (
        f'<section class="verdict {"pass" if told else "inconclusive"}" aria-labelledby="verdict">'
        f'<div class="marks">{signs}</div><h2 id="verdict"{long}>{escape(chosen["reason"])}</h2>'
        f"{shown}{sections.facts(facts)}</section>"
        + (f'<ul class="notes" aria-label="Warnings">{notes}</ul>' if notes else "")
    )


def shifts(result: Mapping[str, Any]) -> str:
    """Return the frame of the picture of each class's shift; nothing where no fix was chosen."""
    classes = result["classes"]
    if not result["chosen"]["methods"]:
        return ""
    scaled = (
        " It also multiplies each logit by a number of the class's own, which the table of classes "
        "holds."
        if any(one["scale"] != 1 for one in classes)
        else ""
    )
    there = {one["group"] for one in classes}
    legend = "".join(
        f'<li><span class="swatch tint-{place % 3}"></span>{escape(group)}</li>'
        for place, group in enumerate(result["groups"])
        if group in there
    )
    if len(classes) <= _MOST_CLASSES_TOLD:
        told = "; ".join(f"{one['name']} {signed(one['shift'])}" for one in classes)
    else:
        ends = [one["shift"] for one in classes]
        told = f"{len(classes)} classes from {signed(min(ends))} to {signed(max(ends))}"
    return f"""<section aria-labelledby="shifts">
<h2 id="shifts">What the fix adds to each class</h2>
<p class="lead">In the logits, before there are scores; +1 multiplies the odds of a class against
the background by 2.7.{scaled} One mark is one class. It costs nothing when the detector runs:
export folds it into the last layer.</p>{sections.NO_SCRIPT}
<ul class="legend">{legend}</ul>
<div class="panels"><figure><div class="chart"><canvas id="shift-chart" role="img"
aria-label="Shift of each class's logit over its training images: {escape(told)}. The table of
classes below holds every figure."></canvas></div></figure></div></section>"""


def class_table(result: Mapping[str, Any]) -> str:
    """Return the frame of the class table; its rows come from the embedded result."""
    if not result["chosen"]["methods"]:
        return sections.class_table(
            "AP and AP50 of the detector as it is, in per cent on held-out photographs; a dash "
            "where a class has no object to find."
        )
    return sections.class_table(
        "Before is the detector without a fix, after with the chosen one: AP in per cent on "
        "held-out photographs, a dash where a class has no object to find. Δ is the change in "
        "points, Δ AP50 that at IoU 0.5; Shift is what the fix adds to the class's logit. With few "
        "objects a class moves by chance: judge it by its group."
    )


def _chosen(result: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the row of the chosen method."""
    chosen: Mapping[str, Any]
    chosen = next(one for one in result["methods"] if one["status"] == "chosen")
    return chosen


def _move(before: float, after: float) -> str:
    return f"{number(before, 1)} → {number(after, 1)} %"
