"""The sections of a report as HTML; everything that comes from data is escaped here."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..metrics.calibration import Reliability
from .report_details import FlippedImage, ReportDetails
from .report_pieces import IntervalScale, mark, number, small, tone, warning, whole
from .result import counted, signed

__all__ = [
    "class_table",
    "downloads",
    "flips",
    "group_table",
    "is_crowded",
    "provenance",
    "reliability",
    "scatter",
    "verdict",
]

_KINDS = {
    "lost": "only the {reference} was right",
    "won": "only the {candidate} was right",
    "changed": "both were wrong",
}
# Above this many classes single points hide each other, and a mark stands for several.
_CROWD = 400
_LONG_SENTENCE = 160
_NO_SCRIPT = (
    "<noscript><p>This part needs JavaScript; its figures are in the JSON at the end of this "
    "file.</p></noscript>"
)


def downloads(details: ReportDetails) -> str:
    """Return the links that save the figures as files."""
    links = [
        ("result", "result.json", "All figures (JSON)"),
        ("classes", "classes.csv", "Classes (CSV)"),
    ]
    if details.reliability:
        links.append(("reliability", "reliability.json", "Reliability (JSON)"))
    return "".join(
        f'<a href="#result-data" data-download="{what}" download="{file}">{text}</a>'
        for what, file, text in links
    )


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
    style, sign = tone(result["verdict"]), mark(result["verdict"])
    worse = sum(bool(c["regressed"]) for c in result["classes"])
    if worse and style == "pass":
        style += " warned"
        sign += warning(f"{whole(worse)} {'class' if worse == 1 else 'classes'} worse")
    long = ' class="long"' if len(sentence) > _LONG_SENTENCE else ""
    items = "".join(f"<div><dt>{name}</dt><dd>{value}</dd></div>" for name, value in facts)
    return (
        f'<section class="verdict {style}" aria-labelledby="verdict">'
        f'<div class="marks">{sign}</div><h2 id="verdict"{long}>{escape(sentence)}</h2>'
        f'<dl class="facts">{items}</dl></section>'
    )


def group_table(result: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the table of overall and group figures, its intervals drawn against the margin."""
    rows = [("overall", result["overall"], 3)]
    rows += [(name, figures, i % 3) for i, (name, figures) in enumerate(result["groups"].items())]
    present = [figures for _, figures, _ in rows if not _is_empty(figures)]
    scale = IntervalScale(present, result["margin"])
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


def is_crowded(result: Mapping[str, Any]) -> bool:
    """Tell whether the marks of the scatter stand for several classes each."""
    return len(result["classes"]) > _CROWD


def scatter(result: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Return the frame of the chart of class accuracy over training count."""
    has_unfixed = any(c.get("unfixed") is not None for c in result["classes"])
    models: list[str] = ["unfixed", "reference"] if has_unfixed else ["reference"]
    choices = "".join(
        f'<label><input type="radio" name="before" value="{model}"{" checked" if not i else ""}> '
        f"{escape(names[model])} → {escape(names['candidate'])}</label>"
        for i, model in enumerate(models)
    )
    legend = "".join(
        f'<li><span class="swatch tint-{i % 3}"></span>{escape(group)}, after</li>'
        for i, group in enumerate(result["groups"])
    )
    marks = "One mark is one class; a stem joins what it was before and after."
    if is_crowded(result):
        marks = "The area of a mark is the number of classes about there, after."
    else:
        legend += '<li><span class="ring"></span>before</li>'
    summary = "; ".join(
        f"{name}: {number(f[models[0]], 1)} to {number(f['candidate'], 1)} per cent"
        for name, f in result["groups"].items()
        if not _is_empty(f)
    )
    return f"""<section aria-labelledby="by-count">
<h2 id="by-count">Accuracy of each class over its training images</h2>
<p class="lead">{marks} The lines are averages over classes of similar size: where they fall to the
left, the model neglects rare classes. Dotted verticals part the groups.</p>{_NO_SCRIPT}
<fieldset class="choice"{" hidden" if len(models) == 1 else ""}><legend>Before and after:</legend>
{choices}</fieldset>
<ul class="legend">{legend}<li><span class="stroke"></span>average after</li>
<li><span class="stroke dashed"></span>average before</li></ul>
<div class="chart"><canvas id="scatter" role="img" aria-label="Scatter plot of class accuracy over
training images. Averages before and after, {escape(summary)}. The table of classes below holds
every figure."></canvas></div></section>"""


def reliability(groups: Sequence[str], details: ReportDetails) -> str:
    """Return the frames of the reliability diagrams, or nothing where none were measured."""
    if not details.reliability:
        return ""
    names = details.names
    shown = {model for models in details.reliability.values() for model in models}
    strokes: dict[str, str] = {"unfixed": " dashed", "reference": " thin", "candidate": ""}
    legend = "".join(
        f'<li><span class="stroke{stroke}"></span>{escape(names[model])}</li>'
        for model, stroke in strokes.items()
        if model in shown
    )
    panels = []
    for group, models in details.reliability.items():
        errors = " → ".join(_error(value) for value in models.values())
        label = ", ".join(f"{names[model]} {_error(value)}" for model, value in models.items())
        panels.append(
            f'<figure><h3><span class="swatch tint-{_tint(groups, group)}"></span>{escape(group)}'
            f"</h3><figcaption>calibration error {errors} %</figcaption>"
            f'<div class="chart"><canvas data-reliability="{escape(group)}" role="img" '
            f'aria-label="Reliability diagram of {escape(group)}. Calibration error in per cent: '
            f'{escape(label)}."></canvas></div></figure>'
        )
    return f"""<section aria-labelledby="reliability">
<h2 id="reliability">Can its confidence be trusted?</h2>
<p class="lead">Of the answers a model is 80 % sure of, 80 % should be right: a curve on the dotted
diagonal is honest, one below it is overconfident. Larger marks hold more images. The calibration
error is the average distance from the diagonal.</p>{_NO_SCRIPT}
<ul class="legend">{legend}</ul><div class="panels">{"".join(panels)}</div></section>"""


def class_table() -> str:
    """Return the frame of the class table; its rows come from the embedded result."""
    return f"""<section aria-labelledby="classes">
<h2 id="classes">Every class</h2>
<p class="lead">Click a heading to sort, type beneath it to filter: <code>&lt;20</code>,
<code>&gt;=50</code> or <code>10-30</code>. Δ is candidate minus reference, Gain is candidate minus
the model before its fix. p is the chance of at least this many losses among the flips if the two
were equally good; q is p corrected for testing many classes, and a class counts as worse when q is
below 0.05. A class with fewer than five images can never get there (three lost of three: p = 1/8);
such classes are judged by their group.</p>
{_NO_SCRIPT}
<div class="toolbar"><button type="button" id="only-worse">Only worse</button>
<button type="button" id="only-rare">Only the rarest group</button>
<button type="button" id="clear-filters">All classes</button>
<output id="class-count" aria-live="polite"></output></div>
<div id="class-table"></div></section>"""


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


def provenance(facts: Mapping[str, str]) -> str:
    """Return where the figures come from."""
    if not facts:
        return ""
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>"
        + (f"<code>{escape(text)}</code>" if name.lower() == "command" else escape(text))
        + "</dd>"
        for name, text in facts.items()
    )
    return (
        '<section aria-labelledby="provenance"><h2 id="provenance">How this was measured</h2>'
        f'<dl class="facts-list">{items}</dl></section>'
    )


def _error(diagram: Reliability) -> str:
    return number(None if diagram.error is None else 100 * diagram.error, 1)


def _group_row(
    name: str,
    figures: Mapping[str, Any] | None,
    tint: int,
    scale: IntervalScale,
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
        f"<tr{' class=all' if name == 'overall' else ''}>{head}<td>{mark(figures['verdict'])}</td>"
        f'{before}<td class="num">{number(figures["reference"], 1)}</td>'
        f'<td class="num"><b>{number(figures["candidate"], 1)}</b></td>'
        f'<td class="num">{signed(figures["difference"])}<small>{interval}</small></td>'
        f"<td>{scale.plot(figures, tint)}</td>"
        f'<td class="num">{whole(figures["flips_lost"])} / {whole(figures["flips_won"])}</td>'
        f'<td class="num">{counted(figures["classes"], figures["classes_without_images"])}</td>'
        f'<td class="num">{whole(figures["images"])}</td></tr>'
    )


def _terms(result: Mapping[str, Any], names: Mapping[str, str]) -> str:
    """Explain the words of the group table to people from another field."""
    spans = []
    for group in result["groups"]:
        counts = [c["train_count"] for c in result["classes"] if c["group"] == group]
        if counts:
            low, high = whole(min(counts)), whole(max(counts))
            spans.append(f"{group}, {low if low == high else f'{low}–{high}'}")
    reference, candidate = names["reference"], names["candidate"]
    margin = number(result["margin"], 1)
    terms = [
        (
            ", ".join(result["groups"]),
            "Classes sorted by how many images the model was trained on "
            f"(here: {'; '.join(spans)}). The last group is the tail, the easiest to lose unseen.",
        ),
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
    items = "".join(f"<div><dt>{escape(t)}</dt><dd>{escape(d)}</dd></div>" for t, d in terms)
    return f'<dl class="terms">{items}</dl>'


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
        f'<li>{picture}<div class="text"><p class="name">'
        f'<span class="swatch tint-{_tint(groups, image.group)}"></span>{escape(image.label)}</p>'
        f'<p>{answers}</p><p class="quiet"><span class="kind {image.kind}" '
        f'title="{escape(meaning)}">{image.kind}</span> · {escape(image.identifier)}</p>'
        "</div></li>"
    )


def _is_empty(figures: Mapping[str, Any] | None) -> bool:
    return figures is None or not figures["classes"]


def _tint(groups: Sequence[str], group: str) -> int:
    return groups.index(group) % 3 if group in groups else 3
