"""The sections of a benchmark's report as HTML; everything that comes from data is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from ..webpage import sections
from ..webpage.pieces import breakable, mark, number, sentence, signed, tint, whole
from .clipped import ClippedScale
from .result import SEPARATOR, short

__all__ = ["accuracies", "banner", "failures", "picture", "speeds"]

_LONG_SENTENCE = 160
_MIB = 2**20
_THREADS_PLACE = 1e-4  # rows are sorted by batch size, then by threads
_BALANCED = "balanced"

_SPEED_TERMS = [
    (
        "p50, p95, p99",
        "Latency of one run of a whole batch: half, 95 and 99 in 100 runs were faster. Beneath "
        "p50, where the medians of nine in ten rounds lie. A dash: too few runs to tell.",
    ),
    (
        "Images/s",
        "Throughput of one caller that gives one batch after another, median over the rounds.",
    ),
    (
        "× the first",
        "How many times as fast as the first row at the same batch size and threads, worked out "
        "within each round, so that what slows the machine down slows both; the interval holds "
        "nine in ten rounds, and an arrow says that it goes on.",
    ),
    (
        "Memory, load",
        "The most main memory that the engine's process ever held, Python included, up to this "
        "batch size; and what opening the engine took.",
    ),
]
_ACCURACY_TERMS = [
    (
        "Difference",
        "Points won or lost against the first row on the same images, with its 95 % interval. "
        "Both answer nearly every image alike, so this interval is much narrower than those of "
        "the accuracies themselves. In red: lost beyond chance.",
    ),
    ("Balanced", "Averaged over all classes, so that every class counts the same."),
    (
        "Flips",
        "Images to which the two give different answers; of detectors, detections that only one of "
        "the two has.",
    ),
]


def banner(result: Mapping[str, Any]) -> str:
    """Return what came out in one sentence, what it rests on, and what to know before."""
    measured = _measured(result)
    cells = _cells(result)
    facts = [
        ("engines measured", whole(len(measured))),
        ("batch sizes", ", ".join(str(b) for b in sorted({b for b, _ in cells}))),
        ("threads", ", ".join(str(t) for t in sorted({t for _, t in cells}))),
        (f"rounds of {result['seconds'] / result['rounds']:g} s each", whole(result["rounds"])),
    ]
    images = [one["accuracy"]["images"] for one in measured if one["accuracy"]]
    if images:
        facts.append(("images for accuracy", whole(max(images))))
    warnings = result["warnings"]
    signs = mark("pass", "Measured")
    if result["interrupted"]:
        signs = mark("warned", "Interrupted: what was measured until then")
    if warnings:
        count = len(warnings)
        signs += mark("warned", f"{count} {'warning' if count == 1 else 'warnings'}")
    told = result["sentence"]
    long = ' class="long"' if len(told) > _LONG_SENTENCE else ""
    notes = "".join(
        f"<li>{mark('warned', 'Warning')}<span>{sentence(text)}</span></li>" for text in warnings
    )
    return (
        '<section class="verdict pass" aria-labelledby="verdict">'
        f'<div class="marks">{signs}</div><h2 id="verdict"{long}>{escape(told)}</h2>'
        f"{sections.facts(facts)}</section>"
        + (f'<ul class="notes" aria-label="Warnings">{notes}</ul>' if notes else "")
    )


def picture(result: Mapping[str, Any]) -> str:
    """Return the frame of speed against accuracy; nothing where no accuracy was measured."""
    shown = [one for one in _measured(result) if one["accuracy"]]
    if not shown:
        return ""
    tail, cells = result["groups"][-1], _cells(result)
    of_cells = "".join(
        f'<option value="{batch},{threads}"{" selected" if (batch, threads) == cells[-1] else ""}>'
        f"batch {batch}, {_threads(threads)}</option>"
        for batch, threads in cells
    )
    of_groups = "".join(
        f'<option value="{escape(group)}"{" selected" if group == tail else ""}>{escape(group)}'
        "</option>"
        for group in (*result["groups"], _BALANCED)
        if any(_figure(one, group) for one in shown)
    )
    measure = escape(result["measure"])
    return f"""<section aria-labelledby="picture-head">
<h2 id="picture-head">Speed against {measure}</h2>
<p class="lead">Each mark is a model on an engine: further right is faster, further down loses
{measure}. Dotted lines go through the first; the bars are the 95 % interval of the {measure}, and
where the speed of nine in ten rounds lies; an arrow: that goes on.</p>{sections.NO_SCRIPT}
<p class="choice"><label>Speed at <select id="picture-cell">{of_cells}</select></label>
<label>{measure.capitalize()} of <select id="picture-group">{of_groups}</select></label></p>
<div class="chart"><canvas id="picture" role="img" aria-label="Speed against {measure} of
{escape(", ".join(one["label"] for one in shown))}; the tables below hold every figure."></canvas>
</div></section>"""


def accuracies(result: Mapping[str, Any]) -> str:
    """Return the table of accuracies, with what each engine loses against the first."""
    shown = [one for one in _measured(result) if one["accuracy"]]
    if not shown:
        return ""
    groups, tail = result["groups"], result["groups"][-1]
    columns = [*groups, _BALANCED]
    changes = [change for one in shown if (change := _change(one, tail)) is not None]
    scale = ClippedScale(changes, line=(0.0, "the first"))
    heads = "".join(
        f'<th scope="col" class="num"><span class="swatch tint-{tint(groups, name)}"></span>'
        f"{escape(name)}</th>"
        for name in columns
    )
    compared = (
        f'<th scope="col" class="num">Difference<span>{escape(tail)}</span></th>'
        f'<th scope="col">{scale.axis()}</th><th scope="col" class="num">Flips</th>'
        if changes
        else ""
    )
    rows = "".join(_accuracy_row(one, columns, tail, scale, bool(changes)) for one in shown)
    return f"""<section aria-labelledby="accuracies"><h2 id="accuracies">What the tail keeps</h2>
<p class="lead">{escape(result["measure"].capitalize())} in per cent on the same images, answered by
the very engines that were timed; groups are averages over their classes, with 95 % intervals.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Table of {escape(result["measure"])}">
<table class="plain methods pinned"><thead><tr>
<th scope="col">Engine</th>{heads}{compared}</tr></thead>
<tbody>{rows}</tbody></table></div>{sections.terms(_ACCURACY_TERMS)}</section>"""


def speeds(result: Mapping[str, Any]) -> str:
    """Return the table of every configuration that was measured."""
    measured = _measured(result)
    ratios = [s["ratio"] for one in measured for s in one["speeds"] if s["ratio"]]
    scale = ClippedScale(ratios, line=(1.0, "the first"))
    compared = (
        '<th scope="col" class="num" data-sort="high">× the first</th>'
        f'<th scope="col">{scale.axis()}</th>'
        if ratios
        else ""
    )
    rows = "".join(
        _speed_row(one, speed, scale, bool(ratios))
        for batch, threads in _cells(result)
        for one in measured
        for speed in one["speeds"]
        if (speed["batch"], speed["threads"]) == (batch, threads)
    )
    return f"""<section aria-labelledby="speeds"><h2 id="speeds">Speed</h2>
<p class="lead">Timed on {escape(result["inputs"])}, ready in memory: decoding photographs is not in
these figures, copies to and from a device are. Latencies in milliseconds.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Table of speeds">
<table class="plain methods pinned sortable"><thead><tr>
<th scope="col" data-sort="text">Engine</th>
<th scope="col" class="num" data-sort="low">Batch<span>threads</span></th>
<th scope="col" class="num" data-sort="low">p50</th>
<th scope="col" class="num" data-sort="low">p95<span>p99</span></th>
<th scope="col" class="num" data-sort="high">Images/s</th>{compared}
<th scope="col" class="num" data-sort="low">Memory<span>MiB, load</span></th></tr></thead>
<tbody>{rows}</tbody></table></div>{sections.terms(_SPEED_TERMS)}</section>"""


def failures(result: Mapping[str, Any]) -> str:
    """Return what could not be measured, and why."""
    if not result["failures"]:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{breakable(name)}</th><td>{sentence(reason)}</td></tr>'
        for name, reason in result["failures"].items()
    )
    return f"""<section aria-labelledby="failures"><h2 id="failures">Not measured</h2>
<p class="lead">Engines that do not run here, or do not run this model.</p>
<div class="scroll" tabindex="0" role="region" aria-label="Engines not measured">
<table class="plain reasons"><thead><tr><th scope="col">Engine</th><th scope="col">Reason</th></tr>
</thead><tbody>{rows}</tbody></table></div></section>"""


def _measured(result: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in result["contestants"] if one["speeds"]]


def _cells(result: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return all batch sizes and numbers of threads that were measured, ascending."""
    return sorted({(s["batch"], s["threads"]) for one in _measured(result) for s in one["speeds"]})


def _threads(threads: int) -> str:
    return f"{threads} {'thread' if threads == 1 else 'threads'}"


def _figure(one: Mapping[str, Any], group: str) -> Mapping[str, Any] | None:
    accuracy = one["accuracy"]
    figure: Mapping[str, Any] | None
    figure = accuracy[_BALANCED] if group == _BALANCED else accuracy["groups"].get(group)
    return figure


def _change(one: Mapping[str, Any], group: str) -> Mapping[str, Any] | None:
    change = one["accuracy"]["change"]
    figure: Mapping[str, Any] | None
    figure = change and {**change["groups"], _BALANCED: change[_BALANCED]}.get(group)
    return figure


def _interval(figure: Mapping[str, float]) -> str:
    return f"{number(figure['low'], 1)} … {number(figure['high'], 1)}"


def _head(one: Mapping[str, Any]) -> str:
    name, *rest = (breakable(part) for part in one["label"].split(SEPARATOR))
    return f'<th scope="row">{name}{"".join(f"<small>{part}</small>" for part in rest)}</th>'


def _accuracy_row(
    one: Mapping[str, Any],
    columns: Sequence[str],
    tail: str,
    scale: ClippedScale,
    compared: bool,
) -> str:
    return f"<tr>{_head(one)}{''.join(_accuracy_cells(one, columns, tail, scale, compared))}</tr>"


def _accuracy_cells(
    one: Mapping[str, Any],
    columns: Sequence[str],
    tail: str,
    scale: ClippedScale,
    compared: bool,
) -> Iterator[str]:
    for name in columns:
        figure = _figure(one, name)
        if figure is None:
            yield '<td class="num">–</td>'
        else:
            moved = _change(one, name)
            past = " past" if moved and moved["high"] < 0 else ""
            difference = f"<small>{signed(moved['value'])} points</small>" if moved else ""
            yield (
                f'<td class="num{past}">{number(figure["value"], 1)}'
                f"<small>{_interval(figure)}</small>{difference}</td>"
            )
    if not compared:
        return
    change = _change(one, tail)
    if change is None:
        yield '<td class="num">–</td><td></td><td class="num">–</td>'
        return
    ends = f"{signed(change['low'])} … {signed(change['high'])}"
    label = f"{tail}: {signed(change['value'])} points against the first, interval {ends}"
    yield f'<td class="num">{signed(change["value"])}<small>{ends}</small></td>'
    plot = scale.plot(change["value"], change["low"], change["high"], label=label, tint=2)
    yield f'<td>{plot}</td><td class="num">{whole(one["accuracy"]["change"]["flips"])}</td>'


def _speed_row(
    one: Mapping[str, Any], speed: Mapping[str, Any], scale: ClippedScale, compared: bool
) -> str:
    p50, images, peak = speed["p50_ms"], speed["images_per_s"], speed["peak_bytes"]
    cells = [
        (
            speed["batch"] + speed["threads"] * _THREADS_PLACE,
            f"{whole(speed['batch'])}<small>{_threads(speed['threads'])}</small>",
        ),
        (p50["value"], f"{short(p50['value'])}<small>{_spread(p50)}</small>"),
        (speed["p95_ms"], f"{short(speed['p95_ms'])}<small>{short(speed['p99_ms'])}</small>"),
        (images["value"], f"<b>{short(images['value'])}</b><small>{_spread(images)}</small>"),
    ]
    memory = "–" if peak is None else whole(round(peak / _MIB))
    memory = f"{memory}<small>{short(speed['load_s'])} s</small>"
    middle = ""
    if compared:
        ratio, plot = speed["ratio"], ""
        if ratio is None:
            ratio = {"value": None}
            text = "–"
        else:
            text = f"{number(ratio['value'], 2)}<small>{_spread(ratio)}</small>"
            label = f"{number(ratio['value'], 2)} times as fast as the first, {_spread(ratio)}"
            plot = scale.plot(ratio["value"], ratio["low"], ratio["high"], label=label)
        middle = f"{_cell(ratio['value'], text)}<td>{plot}</td>"
    before = "".join(_cell(*cell) for cell in cells)
    return f"<tr>{_head(one)}{before}{middle}{_cell(peak, memory)}</tr>"


def _spread(figure: Mapping[str, float]) -> str:
    return f"{short(figure['low'])} … {short(figure['high'])}"


def _cell(value: float | None, text: str) -> str:
    return f'<td class="num" data-value="{"" if value is None else value}">{text}</td>'
