"""The tables of a precision's report as HTML; everything that comes from data is escaped here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ltdeploy.verify.gate import covers_half
from ltdeploy.webpage.pieces import IntervalScale, mark, number, signed, small, tint, whole
from ltdeploy.webpage.sections import terms

from .report_words import words_of

__all__ = [
    "VERDICTS",
    "damage",
    "groups",
    "interval",
    "megabytes",
    "restored",
    "tail_of",
    "trials",
    "uncovered",
]

VERDICTS = {"pass": "Pass", "fail": "Fail", "inconclusive": "Undecided"}
_LAYERS_SHOWN, _BELOW_THE_CUT = 30, 5
_NARROW = ' style="min-width: 0; white-space: nowrap"'
_LONGEST_NAME, _LONGEST_BAR_PERCENT = 44, 60

_MARGIN = (
    "Margin",
    "The loss that is accepted: a group passes when its whole interval stays right of the dashed "
    "line, out of the shaded zone.",
)
_TRIAL_TERMS = [
    (
        "In float32",
        "Layers that were put back from low precision, those first that hurt the images of rare "
        "classes most. The head, and in int8 the first layer, are always in float32 and not "
        "counted.",
    ),
    (
        "Speed",
        "How many images it answers while the float32 graph answers one, on the machine of the "
        "export.",
    ),
    ("Multiply-adds", "The share of the arithmetic that is done in low precision."),
]


def tail_of(names: Sequence[str], trial: Mapping[str, Any]) -> str:
    """Return the rarest group that was measured; ``"overall"`` where none was."""
    measured = [name for name in names if _is_measured(trial["groups"].get(name))]
    return measured[-1] if measured else "overall"


def restored(count: int) -> str:
    """Return how many layers are in float32, as words.

    >>> restored(0), restored(1), restored(12)
    ('none', '1 layer', '12 layers')
    """
    return "none" if not count else "1 layer" if count == 1 else f"{whole(count)} layers"


def megabytes(size_bytes: int) -> str:
    """Return a size in megabytes, in at least two digits.

    >>> megabytes(337_840), megabytes(25_600_000)
    ('0.34', '25.6')
    """
    return number(size_bytes / 1e6, 1 if size_bytes >= 1e6 else 2)


def interval(figures: Mapping[str, Any]) -> str:
    """Return the ends of a difference's interval."""
    if figures["ci_low"] is None or figures["ci_high"] is None:
        return "not known"
    return f"{signed(figures['ci_low'])} … {signed(figures['ci_high'])}"


def uncovered(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return of which groups too few classes have images for the gate to decide, as words.

    >>> uncovered({"few": {"classes": 9, "classes_without_images": 5}})
    ['only 4 of the 9 few classes have images, too few to speak for the group']
    """
    told = []
    for name, group in figures.items():
        classes = group.get("classes", 0)
        measured = classes - group.get("classes_without_images", 0)
        if name != "overall" and not covers_half(measured, classes):
            some = f"only {whole(measured)}" if measured else "none"
            told.append(
                f"{some} of the {whole(classes)} {name} classes have images, too few to speak for "
                "the group"
            )
    return told


def groups(result: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """Return what the chosen graph costs each group, its intervals drawn against the margin."""
    margin, words = result["lowering"]["gate"]["margin"], words_of(result)
    names = list(result["groups"])
    ends = [
        figures[end]
        for figures in chosen["groups"].values()
        for end in ("difference", "ci_low", "ci_high")
    ]
    scale = IntervalScale(
        [-2 * margin, margin, *ends],
        line=(0.0, "0"),
        limit=(-margin, f"{number(-margin, 2, trim=True)} margin"),
    )
    rows = "".join(
        _group_row(name, chosen["groups"].get(name), tint(names, name), scale)
        for name in ("overall", *names)
    )
    return f"""<section aria-labelledby="groups"><h2 id="groups">What each group pays</h2>
<p class="lead">{words.groups}</p>
<div class="scroll" tabindex="0" role="region" aria-label="Table of groups"><table class="plain">
<thead><tr><th scope="col">Group</th><th scope="col">Verdict</th>
<th scope="col" class="num">float32</th>
<th scope="col" class="num">{escape(result["precision"])}</th>
<th scope="col" class="num">Difference<span>95 % interval</span></th>
<th scope="col">{scale.axis()}</th></tr></thead><tbody>{rows}</tbody></table></div>
{terms([("Difference and interval", words.difference), _MARGIN])}</section>"""


def trials(result: Mapping[str, Any]) -> str:
    """Return the table of every division of the layers that was tried."""
    names = [*reversed(result["groups"]), "overall"]  # a phone shows the first columns alone
    made, words = result["lowering"]["trials"], words_of(result)
    heads = "".join(
        f'<th scope="col" class="num" data-sort="high">{escape(name)}<span>difference</span></th>'
        for name in names
    )
    rows = "".join(_trial_row(trial, names) for trial in made)
    lead = (
        "The first graph, with no layer restored, was accepted at once: nothing else was tried and "
        "no layer was ranked."
        if len(made) == 1
        else "The worst layers are restored, twice as many each time, until a graph is accepted; "
        "then the fewest of that ranking are found by halving. Accepted is what the gate passes, "
        "or cannot decide on while no group loses more than half the margin or one standard error."
    )
    return f"""<section aria-labelledby="trials"><h2 id="trials">Every division that was tried</h2>
<p class="lead">{lead} Differences are in points of {words.measure} against float32; the
sign before each is the group's own verdict.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Table of trials">
<table class="plain methods pinned sortable"><thead><tr>
<th scope="col" data-sort="low"{_NARROW}>In float32</th>
<th scope="col" data-sort="text">Gate</th>
<th scope="col" class="num" data-sort="high">Speed<span>× float32</span></th>{heads}
<th scope="col" class="num" data-sort="low">Flips</th>
<th scope="col" class="num" data-sort="low">Size<span>MB</span></th>
<th scope="col" class="num" data-sort="high">In {escape(result["precision"])}<span>multiply-adds
</span></th></tr></thead>
<tbody>{rows}</tbody></table></div>
{terms([*_TRIAL_TERMS, ("Flips", words.flips_told)])}</section>"""


def damage(result: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """Return the bars of what each layer costs the tail; nothing where no layer was ranked."""
    ranked = result["lowering"]["damage"]
    if not ranked:
        return ""
    back = set(chosen["restored"])
    shown = ranked[: max(_LAYERS_SHOWN, len(back) + _BELOW_THE_CUT)]
    most = max((one["damage"] for one in ranked if one["damage"] is not None), default=0.0)
    rows = "".join(_damage_row(one, one["layer"] in back, most) for one in shown)
    rest = ""
    if len(shown) < len(ranked):
        below = ranked[len(shown)]["damage"]
        rest = (
            f'<p class="lead">The other {whole(len(ranked) - len(shown))} cost {small(below)} or '
            "less each; all are in the JSON and the CSV.</p>"
        )
    return f"""<section aria-labelledby="damage"><h2 id="damage">Which layers hurt the tail</h2>
<p class="lead">A layer's damage is what it alone in {escape(result["precision"])}, all others in
float32, {words_of(result).damage} Layers by damage; those restored are marked.</p>
<ul class="legend"><li><span class="swatch" style="--tint: var(--accent)"></span>restored to
float32</li><li><span class="swatch" style="--tint: var(--before)"></span>in
{escape(result["precision"])}</li></ul>
<dl class="facts-list">{rows}</dl>{rest}</section>"""


def _is_measured(figures: Mapping[str, Any] | None) -> bool:
    return figures is not None and figures["difference"] is not None


def _group_row(
    name: str, figures: Mapping[str, Any] | None, shape: int, scale: IntervalScale
) -> str:
    head = f'<th scope="row"><span class="swatch tint-{shape}"></span>{escape(name)}</th>'
    if figures is None or figures["difference"] is None:
        return f'<tr>{head}<td colspan="5" class="quiet">no images</td></tr>'
    value, low, high = figures["difference"], figures["ci_low"], figures["ci_high"]
    label = f"{name}: difference {signed(value)} points, interval {interval(figures)}"
    plot = scale.plot(value, low, high, label=label, tint=shape)
    verdict = figures["verdict"]
    shown = "–" if verdict is None else mark(verdict, VERDICTS[verdict])
    return (
        f"<tr{' class=all' if name == 'overall' else ''}>{head}<td>{shown}</td>"
        f'<td class="num">{number(figures["reference"], 1)}</td>'
        f'<td class="num"><b>{number(figures["candidate"], 1)}</b></td>'
        f'<td class="num">{signed(value)}<small>{interval(figures)}</small></td>'
        f"<td>{plot}</td></tr>"
    )


def _trial_row(trial: Mapping[str, Any], names: Sequence[str]) -> str:
    count, verdict = len(trial["restored"]), VERDICTS[trial["verdict"]]
    cells = [
        _figure(trial["speed"], f"<b>{number(trial['speed'], 2)}</b>"),
        *(_difference(trial["groups"].get(name)) for name in names),
        _figure(trial["flips"], whole(trial["flips"])),
        _figure(trial["size_bytes"], megabytes(trial["size_bytes"])),
        _figure(trial["low_share"], f"{number(100 * trial['low_share'], 1)} %"),
    ]
    told = "<small>chosen</small>" if trial["chosen"] else ""
    return (
        f"<tr{' class=chosen' if trial['chosen'] else ''}>"
        f'<th scope="row" data-value="{count}"{_NARROW}>{restored(count)}{told}</th>'
        f'<td data-value="{verdict}">{mark(trial["verdict"], verdict)}</td>{"".join(cells)}</tr>'
    )


def _difference(figures: Mapping[str, Any] | None) -> str:
    if figures is None or figures["difference"] is None:
        return _figure("", "–")
    verdict, value = figures["verdict"], figures["difference"]
    sign = ""
    if verdict is not None:
        sign = mark(verdict, f'<span class="hidden-text">{VERDICTS[verdict]}</span>') + " "
    return _figure(value, f"{sign}{signed(value)}<small>{interval(figures)}</small>")


def _figure(value: float | str, shown: str) -> str:
    return f'<td class="num" data-value="{value}">{shown}</td>'


def _damage_row(one: Mapping[str, Any], back: bool, most: float) -> str:
    """Return a layer and its bar; one whose logits were not finite is as long as the worst."""
    name, value = one["layer"], one["damage"]
    shown = f"…{name[1 - _LONGEST_NAME :]}" if len(name) > _LONGEST_NAME else name
    share = 1.0 if value is None else value / most if most else 0.0
    width = max(0.3, _LONGEST_BAR_PERCENT * share)
    figure = "not finite" if value is None else small(value)
    text = f"{figure}, restored" if back else figure
    paint = "accent" if back else "before"
    return (
        f'<dt title="{escape(name)}"><code>{escape(shown)}</code></dt>'
        f'<dd><svg width="100%" height="18" role="img" aria-label="{text}">'
        f'<rect y="2" width="{width:.1f}%" height="14" style="fill: var(--{paint})"/>'
        f'<text x="{width + 1:.1f}%" y="14" style="fill: var(--ink); font-size: 13px">{text}</text>'
        "</svg></dd>"
    )
