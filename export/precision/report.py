"""The report of a lowered precision: one HTML file, from the machine-readable result alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ltdeploy.webpage import Download, asset, plain, render_page
from ltdeploy.webpage.pieces import mark, number, sentence, signed, whole
from ltdeploy.webpage.sections import NO_SCRIPT, facts, provenance

from . import report_tables as tables
from .report_tables import VERDICTS, interval, megabytes, tail_of
from .report_words import words_of

__all__ = ["render_precision_report"]

_LONG_SENTENCE = 160
_LARGE_SHOWN = 5


def render_precision_report(result: Mapping[str, Any], *, title: str) -> str:
    """Return the trade of an export as one HTML document.

    Parameters
    ----------
    result : the machine-readable result of ``export``, of a precision that a gate was run for; it
        is embedded as it is, with figures that are not finite as null.
    title : the heading, ``"moths.ltd"``.
    """
    result = plain(dict(result))
    lowering, groups = result["lowering"], list(result["groups"])
    chosen = next(trial for trial in lowering["trials"] if trial["chosen"])
    tail = tail_of(groups, chosen)
    downloads = [
        Download("result", "export.json", "All figures (JSON)"),
        Download("trials", "trials.csv", "Trials (CSV)"),
    ]
    if lowering["damage"]:
        downloads.append(Download("damage", "layers.csv", "Layers (CSV)"))
    return render_page(
        title=title,
        kind=f"precision {result['precision']}",
        body=[
            _banner(result, chosen, tail),
            tables.groups(result, chosen),
            _picture(result, chosen, tail),
            tables.trials(result),
            tables.damage(result, chosen),
            provenance(_provenance(result)),
        ],
        data={"result": result, "view": {"groups": groups, "tail": tail}},
        scripts=[asset(__package__, "precision.js")],
        downloads=downloads,
    )


def _banner(result: Mapping[str, Any], chosen: Mapping[str, Any], tail: str) -> str:
    """Return what was chosen and what it costs in one sentence, and what to know before."""
    lowering, precision = result["lowering"], result["precision"]
    told = _told(result, chosen, tail)
    verdict = chosen["verdict"]
    signs = mark(verdict, f"Gate: {VERDICTS[verdict].lower()}")
    notes = _notes(result, chosen)
    if notes:
        signs += mark("warned", f"{len(notes)} {'note' if len(notes) == 1 else 'notes'}")
    changes = [
        (f"{name}, points", signed(figures["difference"]))
        for name in (*result["groups"], "overall")
        if (figures := chosen["groups"].get(name)) and figures["difference"] is not None
    ]
    words, images = words_of(result), whole(lowering["gate"]["images"])
    items = [
        *changes,
        (f"of the multiply-adds in {precision}", f"{number(100 * chosen['low_share'], 1)} %"),
        ("as fast as float32", f"{number(chosen['speed'], 2)} ×"),
        (_size_of(lowering.get("float32_bytes")), f"{megabytes(chosen['size_bytes'])} MB"),
        (words.flips, f"{whole(chosen['flips'])} {words.flips_of.format(images)}"),
    ]
    long = ' class="long"' if len(told) > _LONG_SENTENCE else ""
    listed = "".join(f"<li>{mark('warned', 'Note')}<span>{sentence(n)}</span></li>" for n in notes)
    return (
        f'<section class="verdict {verdict}" aria-labelledby="verdict">'
        f'<div class="marks">{signs}</div><h2 id="verdict"{long}>{escape(told)}</h2>'
        f"{facts(items)}</section>"
        + (f'<ul class="notes" aria-label="Notes">{listed}</ul>' if listed else "")
    )


def _size_of(float32_bytes: int | None) -> str:
    return "size" if float32_bytes is None else f"size, float32 {megabytes(float32_bytes)} MB"


def _told(result: Mapping[str, Any], chosen: Mapping[str, Any], tail: str) -> str:
    """Return the choice as a sentence.

    The rarest group comes first in it, for that is what averages hide.
    """
    figures, count = chosen["groups"][tail], len(chosen["restored"])
    layers = len(result["lowering"]["damage"])
    how = "with no layer restored to float32"
    if count:
        how = f"with {count} of {layers} layers restored to float32"
    lost = -round(figures["difference"] or 0.0, 2)
    named = "all classes together" if tail == "overall" else f"the {tail} group"
    cost = f"costs {named} {lost:.2f} points"
    if lost == 0:
        cost = f"costs {named} nothing measurable"
        if chosen["verdict"] != "pass":  # too few images to measure it
            cost = f"leaves {named} where it was on these images"
    if lost < 0:
        cost = f"gives {named} {-lost:.2f} points more"
    return (
        f"{result['precision']}, {how}, {cost} (95 % interval {interval(figures)}) and runs "
        f"{number(chosen['speed'], 2)} × as fast as the float32 graph."
    )


def _notes(result: Mapping[str, Any], chosen: Mapping[str, Any]) -> list[str]:
    """Return what a reader should know before trusting the choice."""
    lowering, notes = result["lowering"], []
    if chosen["verdict"] != "pass":
        why = "; ".join(tables.uncovered(chosen["groups"])) or "there are too few images"
        notes.append(
            f"The gate cannot decide: {why}; verify the bundle on more with ltdeploy verify BUNDLE "
            "--data DATA."
        )
    if not lowering["fewest"]:
        notes.append(
            "Time ran out before fewer restored layers were ruled out; the same command goes on "
            "from there, or give it more with --search-seconds."
        )
    large: Sequence[Mapping[str, Any]] = lowering["large"]
    if large:
        shown = ", ".join(f"{one['tensor']} ({one['largest']:.3g})" for one in large[:_LARGE_SHOWN])
        more = len(large) - _LARGE_SHOWN
        rest = f" and {more} more" if more > 0 else ""
        notes.append(
            f"Kept in float32 whatever the gate says, because {result['precision']} cannot hold "
            f"their values, or not with room to spare: {shown}{rest}."
        )
    if result["unreadable"]:
        count = result["unreadable"]
        notes.append(
            f"{whole(count)} {'image' if count == 1 else 'images'} could not be read and had no "
            "part in this."
        )
    return notes


def _picture(result: Mapping[str, Any], chosen: Mapping[str, Any], tail: str) -> str:
    """Return the frame of speed against what a group loses."""
    names = [
        name
        for name in (*result["groups"], "overall")
        if (figures := chosen["groups"].get(name)) and figures["difference"] is not None
    ]
    options = "".join(
        f'<option value="{escape(name)}"{" selected" if name == tail else ""}>{escape(name)}'
        "</option>"
        for name in names
    )
    words, several = words_of(result), len(result["lowering"]["trials"]) > 1
    shapes = {"pass": ("good", 0), "inconclusive": ("wait", 2), "fail": ("bad", 1)}
    present = {trial["verdict"] for trial in result["lowering"]["trials"]}
    legend = "".join(
        f'<li><span class="swatch tint-{shape}" style="--tint: var(--{paint})"></span>'
        f"gate: {VERDICTS[verdict].lower()}</li>"
        for verdict, (paint, shape) in shapes.items()
        if verdict in present
    )
    numbers = " The figure at a mark is how many layers it has in float32." if several else ""
    return f"""<section aria-labelledby="picture-head">
<h2 id="picture-head">Speed against {words.short}</h2>
<p class="lead">Further right is faster, further down loses {words.short}; the bar is the 95 %
interval, and the shaded zone is more loss than the margin allows.{numbers}</p>{NO_SCRIPT}
<p class="choice"><label>{words.short.capitalize()} of
<select id="picture-group">{options}</select></label></p>
<ul class="legend"><li><span class="ring"></span>float32 graph</li>{legend}
<li><span class="stroke dashed" style="border-color: var(--bad)"></span>margin</li></ul>
<div class="chart"><canvas id="picture" role="img" aria-label="Speed against the difference of
{escape(tail)}; the table below holds every figure."></canvas></div></section>"""


def _provenance(result: Mapping[str, Any]) -> dict[str, str]:
    """Return what the figures were measured on, and with what."""
    lowering = result["lowering"]
    gate, calibration = lowering["gate"], lowering["calibration"]
    margin = number(gate["margin"], 2, trim=True)
    asked = "" if gate["engine"] == lowering["engine"] else f", asked for as {gate['engine']}"
    told = {
        "Bundle": f"{result['bundle']}, {result['arch']}, {whole(result['classes'])} classes",
        "Gate images": f"{whole(gate['images'])} of {gate['name']}; figures for a report should "
        "come from others, for these took part in the choice",
        "Gate": f"no group may lose {margin} {'point' if margin == '1' else 'points'} of "
        f"{words_of(result).measure} against the float32 graph on ONNX Runtime's CPU engine, by "
        "the lower end of its 95 % interval",
    }
    if calibration is not None:
        told["Calibration images"] = (
            f"{whole(calibration['images'])} of {calibration['name']}, balanced over "
            f"{whole(calibration['classes'])} classes"
        )
    scaling = result.get("scaling")
    if scaling is not None:
        lost = ", ".join(
            f"{name} {signed(group['difference'])}"
            for name, group in scaling["groups"].items()
            if group["difference"] is not None
        )
        told["Scaled decoding"] = (
            f"of JPEG files, in both graphs of the gate; alone, in float32, it costs {lost} points "
            f"(gate: {VERDICTS[scaling['verdict']].lower()})"
        )
    told["Engine"] = f"{lowering['engine']}{asked}"
    told["Speed"] = (
        "median over rounds in which the float32 graph and the other one answer the same small "
        "batch, ready in memory, one after the other on this engine"
    )
    if result["notes"]:
        told["Notes"] = " ".join(result["notes"])
    return told
