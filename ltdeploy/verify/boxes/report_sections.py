"""The sections of a detector's report that hold figures, as HTML; data is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ...webpage import pieces, sections
from ...webpage.pieces import number, signed, small, whole
from ..result import counted, name_some

__all__ = [
    "class_table",
    "group_table",
    "has_fix",
    "in_sentence",
    "notes",
    "unreadable",
    "verdict",
]

_VERDICTS = {"pass": "Pass", "fail": "Fail", "inconclusive": "Undecided"}
_LONG_SENTENCE = 160
_MOST_FILES = 50
# Percentile intervals of a mean of fewer are some percent too narrow, of skewed figures more.
_FEW_IMAGES = 50


def has_fix(classes: Sequence[Mapping[str, Any]]) -> bool:
    """Tell whether any class had another AP before the fix."""
    return any(one["unfixed"] not in (None, one["reference"]) for one in classes)


def in_sentence(name: str) -> str:
    """Return what a model is called as it stands inside a sentence; file names stay as they are."""
    return name.lower() if name in ("Reference", "Candidate") else name


def verdict(result: Mapping[str, Any]) -> str:
    """Return the banner: the verdict, its sentence, and the figures that bound it."""
    overall, sentence = result["overall"], result["sentence"]
    facts = [
        ("photographs", whole(result["images"])),
        ("classes", counted(overall["classes"], overall["classes"] - overall["measured"])),
        ("margin, points of AP", number(result["margin"], 1)),
        ("detections lost / new", f"{whole(overall['lost'])} / {whole(overall['new'])}"),
        ("largest score difference", small(result["max_score_diff"])),
        ("largest box difference, px", small(result["max_box_diff_px"])),
    ]
    if result["unreadable"]:
        facts.append(("photographs unreadable", whole(result["unreadable"])))
    long = ' class="long"' if len(sentence) > _LONG_SENTENCE else ""
    return (
        f'<section class="verdict {result["verdict"]}" aria-labelledby="verdict">'
        f'<div class="marks">{_mark(result["verdict"])}</div>'
        f'<h2 id="verdict"{long}>{escape(sentence)}</h2>{sections.facts(facts)}</section>'
    )


def notes(result: Mapping[str, Any], federated: bool) -> str:
    """Return what bounds the verdict: photographs per group, absent classes, federated truth."""
    found = []
    measured = {name: one for name, one in result["groups"].items() if one["measured"]}
    sizes = ", ".join(f"{name} {whole(one['images'])}" for name, one in measured.items())
    few = [name for name, one in measured.items() if one["images"] < _FEW_IMAGES]
    if result["equivalent"]:
        few = []  # nothing is estimated
    if sizes:
        text = f"Photographs that hold a class of the group: {sizes}."
        if few:
            text += (
                " The intervals come from drawing photographs anew (a bootstrap); of fewer than "
                f"{_FEW_IMAGES}, as for {' and '.join(few)}, they are too narrow: take the verdict "
                "there for a hint."
            )
        found.append(("warned" if few else "start", "Photographs", text))
    absent = [one["name"] for one in result["classes"] if not one["objects"]]
    if absent:
        has = "class has" if len(absent) == 1 else "classes have"
        text = f"{whole(len(absent))} {has} no object to find here and are in no figure: "
        found.append(("warned", "Not measured", text + name_some(absent) + "."))
    if federated:
        text = (
            "Each photograph was searched for a few classes only (LVIS): detections of other "
            "classes count neither for nor against."
        )
        found.append(("start", "Truth", text))
    rows = "".join(
        f"<li>{pieces.mark(style, name)}<span>{escape(text)}</span></li>"
        for style, name, text in found
    )
    return f'<ul class="notes" aria-label="Notes">{rows}</ul>' if rows else ""


def group_table(result: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the table of overall and group figures, its intervals drawn against the margin."""
    rows = [("overall", result["overall"], 3)]
    rows += [(name, figures, i % 3) for i, (name, figures) in enumerate(result["groups"].items())]
    scale = _scale([figures for _, figures, _ in rows], result["margin"])
    fixed = has_fix(result["classes"])
    reference, candidate = escape(names["reference"]), escape(names["candidate"])
    before = f'<th scope="col" class="num">{escape(names["unfixed"])}</th>' if fixed else ""
    body = "".join(_group_row(name, figures, tint, scale, fixed) for name, figures, tint in rows)
    return f"""<section aria-labelledby="groups">
<h2 id="groups">Groups</h2>
<p class="lead">Average precision (AP) in per cent, of IoU 0.50 to 0.95, averaged over the classes
of a group, so that every class counts the same however many objects it has. {reference} and
{in_sentence(candidate)} saw the same photographs; arrows go from one to the other.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Table of groups">
<table class="plain pinned box-groups">
<thead><tr><th scope="col">Group<span>classes, photographs</span></th><th scope="col">Verdict</th>
{before}<th scope="col" class="num">{reference}</th><th scope="col" class="num">{candidate}</th>
<th scope="col" class="num">Difference<span>95 % interval</span></th>
<th scope="col">{scale.axis()}</th><th scope="col" class="num">AP50<span>AP_fixed</span></th>
<th scope="col" class="num">Detections<span>lost / new</span></th></tr></thead>
<tbody>{body}</tbody></table></div>
{_terms(result, names)}
</section>"""


def class_table() -> str:
    """Return the frame of the class table; its rows come from the embedded result."""
    return sections.class_table(
        """Figures are AP in per cent, a dash where a class has no object to find. Δ is candidate
minus reference, Gain is candidate minus the model before its fix, Δ AP50 is Δ at IoU 0.5. Lost or
new counts detections that only one of reference and candidate has. "Only worse" shows every
class whose AP fell; whether by more than chance is judged by group, as a single class has too few
photographs."""
    )


def unreadable(files: Sequence[tuple[str, str]]) -> str:
    """Return the photographs that could not be used and why, or nothing where all could."""
    if not files:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(reason)}</td></tr>'
        for name, reason in files[:_MOST_FILES]
    )
    rest = len(files) - _MOST_FILES
    more = f'<p class="quiet">and {whole(rest)} more</p>' if rest > 0 else ""
    return f"""<section aria-labelledby="unreadable"><h2 id="unreadable">Unreadable photographs</h2>
<p class="lead">{whole(len(files))} could not be used; they are in no figure.</p>
<table class="plain reasons"><thead><tr><th scope="col">Photograph</th><th scope="col">Reason</th>
</tr></thead><tbody>{rows}</tbody></table>{more}</section>"""


def _mark(verdict: str | None) -> str:
    if verdict is None:
        return '<span class="quiet">–</span>'
    return pieces.mark(verdict, _VERDICTS[verdict])


def _scale(figures: Sequence[Mapping[str, Any]], margin: float) -> pieces.IntervalScale:
    """Return the scale of the differences: zero, the margin, and what lies beyond it."""
    ends = [one[key] for one in figures for key in ("ci_low", "ci_high", "difference")]
    return pieces.IntervalScale(
        [-2 * margin, margin, *ends],
        line=(0.0, "0"),
        limit=(-margin, f"{number(-margin, 1)} margin"),
    )


def _group_row(
    name: str, figures: Mapping[str, Any], tint: int, scale: pieces.IntervalScale, fixed: bool
) -> str:
    absent = figures["classes"] - figures["measured"]
    head = (
        f'<th scope="row"><span class="swatch tint-{tint}"></span>{escape(name)}'
        f"<small>{counted(figures['classes'], absent)}, {whole(figures['images'])}</small></th>"
    )
    low, high = figures["ci_low"], figures["ci_high"]
    label, interval = f"difference {signed(figures['difference'])} points of AP", "no interval"
    if low is not None and high is not None:
        label += f", interval {signed(low)} to {signed(high)}"
        interval = f"{signed(low)} … {signed(high)}"
    plot = scale.plot(figures["difference"], low, high, label=label, tint=tint)
    before = f'<td class="num">{number(figures["unfixed"], 1)}</td>' if fixed else ""
    return (
        f"<tr{' class=all' if name == 'overall' else ''}>{head}<td>{_mark(figures['verdict'])}</td>"
        f'{before}<td class="num">{number(figures["reference"], 1)}</td>'
        f'<td class="num"><b>{number(figures["candidate"], 1)}</b></td>'
        f'<td class="num">{signed(figures["difference"])}<small>{interval}</small></td>'
        f'<td>{plot}</td><td class="num">{_change(figures, "ap50")}'
        f"<small>{_change(figures, 'fixed')}</small></td>"
        f'<td class="num">{whole(figures["lost"])} / {whole(figures["new"])}</td></tr>'
    )


def _change(figures: Mapping[str, Any], key: str) -> str:
    before, after = (number(figures[f"{side}_{key}"], 1) for side in ("reference", "candidate"))
    return f"{before} → {after}"


def _terms(result: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Explain the words of the group table to people from another field."""
    reference, candidate = in_sentence(names["reference"]), in_sentence(names["candidate"])
    margin = number(result["margin"], 1)
    terms = [
        sections.group_sizes(list(result["groups"]), result["classes"]),
        (
            f"{names['reference']}, {candidate}",
            f"The {candidate} is what would run in production; the {reference} is what it "
            "must not fall behind.",
        ),
        (
            "AP, AP50, AP_fixed",
            "The share of right boxes among those found, averaged over how many are to be found. A "
            "box is right where it overlaps the truth enough: AP averages over ten degrees of "
            "enough, AP50 asks for half (IoU 0.5). AP_fixed has no limit of boxes per photograph, "
            "so that classes do not compete for places.",
        ),
        (
            "Difference and interval",
            f"{names['candidate']} minus {reference}, in points of AP; the interval is "
            "that of the difference over photographs drawn anew, both sides together.",
        ),
        (
            "Margin",
            f"The loss that is accepted, {margin} points: a group passes when its interval stays "
            "right of the dashed line, out of the shaded zone, and enough of it was measured.",
        ),
        (
            "Lost, new",
            f"Detections with a score of 0.05 or more that only the {reference}, or only "
            f"the {candidate}, has: no box of the same class overlaps them by half in the other.",
        ),
    ]
    return sections.terms(terms)
