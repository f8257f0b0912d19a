"""The sections of a report as HTML; everything that comes from data is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..webpage import Download, pieces, sections
from ..webpage.pieces import number, signed, small, whole
from .report_details import FlippedImage, ReportDetails
from .result import counted

__all__ = [
    "class_table",
    "downloads",
    "flips",
    "group_table",
    "reliability",
    "scatter",
    "verdict",
]

_KINDS = {
    "lost": "only the {reference} was right",
    "won": "only the {candidate} was right",
    "changed": "both were wrong",
}
_LONG_SENTENCE = 160
_VERDICTS = {"pass": "Pass", "fail": "Fail", "inconclusive": "Undecided"}
_STROKES = {"unfixed": "dashed", "reference": "thin", "candidate": ""}


def downloads(details: ReportDetails) -> list[Download]:
    """Return the links that save the figures as files."""
    links = [
        Download("result", "result.json", "All figures (JSON)"),
        Download("classes", "classes.csv", "Classes (CSV)"),
    ]
    if details.reliability:
        links.append(Download("reliability", "reliability.json", "Reliability (JSON)"))
    return links


def verdict(result: Mapping[str, Any], sentence: str) -> str:
    """Return the banner: the verdict, its sentence, and the figures that bound it."""
    overall = result["overall"]
    facts = [
        ("images", whole(result["images"])),
        ("classes", whole(len(result["classes"]))),
        ("margin, points", number(result["margin"], 1)),
        ("images flipped", whole(result["flips"])),
        ("largest logit difference", small(result["max_abs_logit_diff"])),
    ]
    if overall["flips_lost"] is not None and result["flips"]:
        lost_won = f"{whole(overall['flips_lost'])} / {whole(overall['flips_won'])}"
        facts.insert(4, ("lost / won", lost_won))
    if result["unreadable"]:
        facts.append(("images unreadable", whole(result["unreadable"])))
    if overall["classes_without_images"]:
        facts.append(("classes without images", whole(overall["classes_without_images"])))
    style, sign = _tone(result["verdict"]), _mark(result["verdict"])
    worse = sum(bool(c["regressed"]) for c in result["classes"])
    not_computed = result.get("not_computed")
    limits = []
    if worse:
        limits.append(f"{whole(worse)} {'class' if worse == 1 else 'classes'} worse")
    if not_computed is not None:
        limits.append(f"not as {escape(not_computed)}")
    if limits and style == "pass":
        style += " warned"
        sign += "".join(pieces.mark("warned", limit) for limit in limits)
    long = ' class="long"' if len(sentence) > _LONG_SENTENCE else ""
    return (
        f'<section class="verdict {style}" aria-labelledby="verdict">'
        f'<div class="marks">{sign}</div><h2 id="verdict"{long}>{escape(sentence)}</h2>'
        f"{sections.facts(facts)}</section>"
    )


def group_table(result: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the table of overall and group figures, its intervals drawn against the margin."""
    rows = [("overall", result["overall"], 3)]
    rows += [(name, figures, i % 3) for i, (name, figures) in enumerate(result["groups"].items())]
    present = [figures for _, figures, _ in rows if not _is_empty(figures)]
    scale = _scale(present, result["margin"])
    has_unfixed = any(figures["unfixed"] is not None for figures in present)
    unfixed_head = f'<th scope="col" class="num">{escape(names["unfixed"])}</th>'
    body = "".join(
        _group_row(name, figures, tint, scale, has_unfixed) for name, figures, tint in rows
    )
    return f"""<section aria-labelledby="groups">
<h2 id="groups">Groups</h2>
<p class="lead">Accuracy in per cent, averaged over the classes of a group, so that every class
counts the same however many images it has. {escape(names["reference"])} and
{escape(names["candidate"]).lower()} saw the same images.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Table of groups"><table class="plain">
<thead><tr><th scope="col">Group</th><th scope="col">Verdict</th>
{unfixed_head if has_unfixed else ""}<th scope="col" class="num">{escape(names["reference"])}</th>
<th scope="col" class="num">{escape(names["candidate"])}</th>
<th scope="col" class="num">Difference<span>95 % interval</span></th>
<th scope="col">{scale.axis()}</th>
<th scope="col" class="num">Flips<span>lost / won</span></th>
<th scope="col" class="num">Classes</th><th scope="col" class="num">Images</th></tr></thead>
<tbody>{body}</tbody></table></div>
{_terms(result, names)}
</section>"""


def scatter(result: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the frame of the chart of class accuracy over training count."""
    has_unfixed = any(c.get("unfixed") is not None for c in result["classes"])
    models: list[str] = ["unfixed", "reference"] if has_unfixed else ["reference"]
    radios = "".join(
        f'<label><input type="radio" name="before" value="{model}"{" checked" if not i else ""}> '
        f"{escape(names[model])} → {escape(names['candidate'])}</label>"
        for i, model in enumerate(models)
    )
    choice = (
        f'<fieldset class="choice"{" hidden" if len(models) == 1 else ""}>'
        f"<legend>Before and after:</legend>{radios}</fieldset>"
    )
    averages = {
        name: (f[models[0]], f["candidate"])
        for name, f in result["groups"].items()
        if not _is_empty(f)
    }
    return sections.count_chart(list(result["groups"]), result["classes"], averages, choice)


def reliability(groups: Sequence[str], details: ReportDetails) -> str:
    """Return the frames of the reliability diagrams, or nothing where none were measured."""
    if not details.reliability:
        return ""
    errors = {
        group: {model: _percent(value.error) for model, value in models.items()}
        for group, models in details.reliability.items()
    }
    return sections.reliability(groups, errors, _STROKES, details.names)


def class_table() -> str:
    """Return the frame of the class table; its rows come from the embedded result."""
    return sections.class_table(
        """Δ is candidate minus reference, Gain is candidate minus
the model before its fix. p is the chance of at least this many losses among the flips if the two
were equally good; q is p corrected for testing many classes, and a class counts as worse when q is
below 0.05. A class with fewer than five images can never get there (three lost of three: p = 1/8);
such classes are judged by their group."""
    )


def flips(result: Mapping[str, Any], groups: Sequence[str], details: ReportDetails) -> str:
    """Return the gallery of flipped images."""
    if not details.flips and not result["flips"]:
        text = "None: reference and candidate gave the same answer to every image."
        return f'<section><h2>Flipped images</h2><p class="lead">{text}</p></section>'
    total, shown = result["flips"], len(details.flips)
    if not shown:
        text = f"Images that flipped: {whole(total)}. This report shows none of them."
        return f'<section><h2>Flipped images</h2><p class="lead">{text}</p></section>'
    count = f"All {whole(total)}" if shown >= total else f"{whole(shown)} of {whole(total)}"
    models = escape(f"{details.names['reference']} → {details.names['candidate']}".lower())
    items = "".join(_flip(image, groups, details.names) for image in details.flips)
    return f"""<section aria-labelledby="flips"><h2 id="flips">Flipped images</h2>
<p class="lead">{count}: the true class in bold, beneath it {models}, each with how sure it was.
Lost ones come first, then won, then those wrong both times; among them the rarest class before the
others, every class once before any twice.</p>
<ul class="flips">{items}</ul></section>"""


def _percent(error: float | None) -> float | None:
    return None if error is None else 100 * error


def _tone(verdict: str | None) -> str:
    return verdict if verdict in _VERDICTS else "inconclusive"


def _mark(verdict: str | None) -> str:
    if verdict is None:
        return '<span class="quiet">–</span>'
    return pieces.mark(_tone(verdict), _VERDICTS[_tone(verdict)])


def _scale(figures: Sequence[Mapping[str, Any]], margin: float) -> pieces.IntervalScale:
    """Return the scale of the differences: zero, the margin, and what lies beyond it."""
    ends = [f[key] for f in figures for key in ("ci_low", "ci_high", "difference")]
    return pieces.IntervalScale(
        [-2 * margin, margin, *ends],
        line=(0.0, "0"),
        limit=(-margin, f"{number(-margin, 1)} margin"),
    )


def _plot(scale: pieces.IntervalScale, figures: Mapping[str, Any], tint: int) -> str:
    value, low, high = figures["difference"], figures["ci_low"], figures["ci_high"]
    label = f"difference {signed(value)} points"
    if low is not None and high is not None:
        label += f", interval {signed(low)} to {signed(high)}"
    assert scale.limit is not None
    label += f"; margin {signed(scale.limit[0])}"
    return scale.plot(value, low, high, label=label, tint=tint)


def _group_row(
    name: str,
    figures: Mapping[str, Any] | None,
    tint: int,
    scale: pieces.IntervalScale,
    has_unfixed: bool,
) -> str:
    head = f'<th scope="row"><span class="swatch tint-{tint}"></span>{escape(name)}</th>'
    if figures is None or _is_empty(figures):
        return f'<tr>{head}<td colspan="9" class="quiet">no class</td></tr>'
    interval = "no interval"
    if figures["ci_low"] is not None and figures["ci_high"] is not None:
        interval = f"{signed(figures['ci_low'])} … {signed(figures['ci_high'])}"
        if figures["verdict"] == "inconclusive" and figures["ci_high"] < 0 <= figures["fail_high"]:
            interval += f"<br>widened: … {signed(figures['fail_high'])}"
    before = f'<td class="num">{number(figures["unfixed"], 1)}</td>' if has_unfixed else ""
    return (
        f"<tr{' class=all' if name == 'overall' else ''}>{head}<td>{_mark(figures['verdict'])}</td>"
        f'{before}<td class="num">{number(figures["reference"], 1)}</td>'
        f'<td class="num"><b>{number(figures["candidate"], 1)}</b></td>'
        f'<td class="num">{signed(figures["difference"])}<small>{interval}</small></td>'
        f"<td>{_plot(scale, figures, tint)}</td>"
        f'<td class="num">{whole(figures["flips_lost"])} / {whole(figures["flips_won"])}</td>'
        f'<td class="num">{counted(figures["classes"], figures["classes_without_images"])}</td>'
        f'<td class="num">{whole(figures["images"])}</td></tr>'
    )


def _terms(result: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Explain the words of the group table to people from another field."""
    reference, candidate = names["reference"], names["candidate"]
    margin = number(result["margin"], 1)
    terms = [
        sections.group_sizes(list(result["groups"]), result["classes"]),
        (
            f"{reference}, {candidate.lower()}",
            f"The {candidate.lower()} is what would run in production; the {reference.lower()} is "
            "what it must not fall behind.",
        ),
        (
            "Difference and interval",
            f"{candidate} minus {reference.lower()}, in points of accuracy; the interval is where "
            "the true difference plausibly lies: of intervals made this way, 95 in 100 hold it.",
        ),
        (
            "Margin",
            f"The loss that is accepted, {margin} points: a group passes when its whole interval "
            "stays right of the dashed line, out of the shaded zone.",
        ),
        (
            "Flip",
            "An image to which the two give different answers: lost where only the "
            f"{reference.lower()} is right, won where only the {candidate.lower()} is.",
        ),
        (
            "Undecided",
            "Neither shown to be within the margin nor shown to be beyond it: the images are too "
            "few to tell, or fewer than half of the group's classes have any. To fail, an interval "
            "widened for the number of groups must lie below zero as well.",
        ),
    ]
    return sections.terms(terms)


def _flip(image: FlippedImage, groups: Sequence[str], names: Mapping[str, str]) -> str:
    picture = '<span class="no-image">no picture</span>'
    if image.thumbnail is not None:
        data = base64.b64encode(image.thumbnail).decode()
        alt = escape(f"{image.label}, {image.identifier}")
        picture = f'<img src="data:image/jpeg;base64,{data}" alt="{alt}">'
    meaning = _KINDS[image.kind].format(**{k: v.lower() for k, v in names.items()})
    answers = " → ".join(
        f'{escape(answer)} <span class="quiet">{number(100 * probability, 0)}&nbsp;%</span>'
        for answer, probability in (
            (image.reference, image.reference_probability),
            (image.candidate, image.candidate_probability),
        )
    )
    return (
        f'<li>{picture}<div class="text"><p class="name"><span class="swatch '
        f'tint-{pieces.tint(groups, image.group)}"></span>{escape(image.label)}</p>'
        f'<p>{answers}</p><p class="quiet"><span class="kind {image.kind}" '
        f'title="{escape(meaning)}">{image.kind}</span> · {escape(image.identifier)}</p>'
        "</div></li>"
    )


def _is_empty(figures: Mapping[str, Any] | None) -> bool:
    return figures is None or not figures["classes"]
