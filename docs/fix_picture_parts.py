"""What the pictures of docs/fixes are made of: the reports' colours, and two kinds of chart."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from ltdeploy.calibrate import Calibration, Evidence
from ltdeploy.calibrate.result import MethodResult, Sweep
from ltdeploy.fixes import FIXES, fit_temperature, parse_spec

__all__ = [
    "ACCENT",
    "BEFORE",
    "COLOURS",
    "GROUPS",
    "INK",
    "LINE",
    "SOFT",
    "WARN",
    "draw_methods",
    "draw_sweep",
    "label_ends",
    "label_line",
    "reached",
    "save",
    "set_x_ticks",
    "sweep_of",
    "tell_costs",
    "told",
    "use_report_style",
]

ROOT = Path(__file__).resolve().parents[1]
GROUPS = ("many", "medium", "few")
PX_PER_INCH = 200  # seven inches wide: shown at half its size


def report_colours() -> dict[str, str]:
    """Return the light colours of the reports by name, so that pictures and reports agree."""
    sheet = ROOT / "ltdeploy" / "webpage" / "assets" / "page.css"
    light = sheet.read_text("utf-8").partition("@media")[0]
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))


TOLD = report_colours()
COLOURS = {name: TOLD[f"group-{place}"] for place, name in enumerate(GROUPS)}
INK, SOFT, LINE, BEFORE = (TOLD[name] for name in ("ink", "soft", "line", "before"))
ACCENT, WARN = TOLD["accent"], TOLD["warn"]


def use_report_style() -> None:
    """Set fonts, lines and colours for all pictures."""
    mpl.rcParams.update(
        {
            "font.size": 10,
            "text.color": INK,
            "axes.labelcolor": SOFT,
            "axes.edgecolor": LINE,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.titlelocation": "left",
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "grid.color": LINE,
            "grid.linewidth": 0.6,
            "xtick.color": SOFT,
            "ytick.color": SOFT,
            "xtick.major.size": 0,
            "ytick.major.size": 0,
            "lines.linewidth": 2,
            "lines.solid_capstyle": "round",
            "figure.dpi": PX_PER_INCH,
            "figure.constrained_layout.use": True,
            "figure.constrained_layout.wspace": 0.06,
        }
    )


def reached(result: MethodResult) -> dict[str, float]:
    """Return a method's accuracy per group and averaged over classes, in percent."""
    found = {name: figure.value for name, figure in result.figures.groups.items() if figure}
    return {**found, "balanced": result.figures.balanced.value}


def told(name: str, values: dict[str, float]) -> None:
    """Print figures of a caption."""
    print(f"{name:<44}" + "  ".join(f"{key} {value:6.2f}" for key, value in values.items()))


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Return heights moved apart until neighbours are ``gap`` apart, their order kept."""
    order = np.argsort(heights)
    placed = np.array(heights, dtype=float)[order]
    for _ in range(100):
        for low in range(len(placed) - 1):
            short = gap - (placed[low + 1] - placed[low])
            if short > 1e-9:
                placed[low] -= short / 2
                placed[low + 1] += short / 2
    result = np.empty_like(placed)
    result[order] = placed
    return result.tolist()


def label_ends(axes: Axes, x: float, ends: dict[str, tuple[float, str]], gap: float) -> None:
    """Write names beside the right ends of lines, ``{name: (height, colour)}``, and lead to them.

    The axes end at ``x``. Where ends are close, names stand apart and the leaders are slanted.
    """
    heights = spread([height for height, _ in ends.values()], gap)
    for (name, (end, colour)), height in zip(ends.items(), heights, strict=True):
        axes.annotate(
            name,
            (x, end),
            xytext=(1.04, height),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "shrinkA": 1,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )


def label_line(
    axes: Axes, at: tuple[float, float], name: str, colour: str, move: tuple[float, float]
) -> None:
    """Write a line's name beside one of its points, moved by some typographic points."""
    above = "bottom" if move[1] > 0 else "top"
    axes.annotate(name, at, xytext=move, textcoords="offset points", color=colour, va=above)


def set_x_ticks(axes: Axes, ticks: Sequence[float], names: Sequence[str]) -> None:
    """Set ticks whose outer labels end with the axes, clear of the next panel's and of y's."""
    axes.set_xticks(ticks, names)
    axes.tick_params(axis="x", pad=6)
    labels = axes.get_xticklabels()
    labels[0].set_horizontalalignment("left")
    labels[-1].set_horizontalalignment("right")


def draw_sweep(axes: Axes, sweep: Sweep, *, labels: bool = True, x_label: str = "") -> None:
    """Draw each group's accuracy over a method's parameter, with the chosen value."""
    shown = {**{name: COLOURS[name] for name in GROUPS}, "balanced": INK}
    for name, colour in shown.items():
        width = 1.5 if name == "balanced" else 2
        style = (0, (4, 2)) if name == "balanced" else "-"
        axes.plot(sweep.values, sweep.series[name], color=colour, linewidth=width, linestyle=style)
        at = sweep.values.index(sweep.chosen)
        axes.plot(sweep.chosen, sweep.series[name][at], "o", color=colour, markersize=5)
    axes.axvline(sweep.chosen, color=BEFORE, linewidth=1, zorder=0)
    axes.set(xlabel=x_label or sweep.parameter, ylim=(0, 65))
    axes.margins(x=0)
    ticks = np.arange(min(sweep.values), max(sweep.values) + 0.01, 0.25 if x_label == "ρ" else 0.5)
    set_x_ticks(axes, ticks.tolist(), [f"{tick:g}" for tick in ticks])
    if labels:
        last = int(np.argmax(sweep.values))
        ends = {
            "all classes" if name == "balanced" else name: (float(sweep.series[name][last]), colour)
            for name, colour in shown.items()
        }
        label_ends(axes, max(sweep.values), ends, gap=3.4)


def sweep_of(done: Calibration, method: str) -> Sweep:
    """Return the sweep of one method."""
    return next(sweep for sweep in done.sweeps if sweep.method == method)


def draw_methods(axes: Axes, results: Sequence[tuple[str, MethodResult]]) -> None:
    """Draw one row per method: three groups, and the average over all classes."""
    for row, (_, result) in enumerate(results):
        values = reached(result)
        axes.plot(
            [min(values.values()), max(values.values())], [row, row], color=LINE, linewidth=1.5
        )
        for name in GROUPS:
            axes.plot(values[name], row, "o", color=COLOURS[name], markersize=7)
        axes.plot(values["balanced"], row, "|", color=INK, markersize=14, markeredgewidth=2.2)
    first = reached(results[0][1])
    sides = {"many": "center", "medium": "right", "few": "center", "balanced": "left"}
    for name, side in sides.items():
        axes.annotate(
            "all classes" if name == "balanced" else name,
            (first[name], 0),
            xytext=({"right": 6, "left": -4}.get(side, 0), 11),
            textcoords="offset points",
            color=COLOURS.get(name, INK),
            ha=side,
        )
    axes.set(ylim=(len(results) - 0.4, -1.2), xlim=(0, 62), xlabel="accuracy on held-out folds, %")
    axes.set_yticks(range(len(results)), [name for name, _ in results])
    axes.tick_params(axis="y", colors=INK)
    axes.grid(axis="y", visible=False)


def tell_costs(evidence: Evidence) -> None:
    """Print how long one fit of each method takes, and how many numbers it learns."""
    known = replace(evidence.context, target_logits=evidence.logits[:3000])
    assert known.head is not None
    assert known.labels is not None
    sigmoid = replace(known, head=replace(known.head, activation="sigmoid"))
    given = {"tau_norm": ":tau=0.7", "logit_adjustment": ":tau=1", "temperature": ":t=1"}
    for name in FIXES:
        if name == "score_multiplier" or FIXES[name].of_detectors:
            continue  # given, and not fitted; not of classifiers
        fix = parse_spec(name + given.get(name, "")).fixed()
        context = sigmoid if name == "platt" else known
        start = time.perf_counter()
        fix.fit(context)
        if name == "temperature":
            fit_temperature(evidence.logits, known.labels)
        seconds = time.perf_counter() - start
        print(f"one fit of {name:<33}{seconds:7.3f} s  learns {fix.freedom(context):,}")


def save(figure: Figure, path: Path) -> None:
    """Write a picture in few colours, which is less than half as large and looks the same."""
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    plt.close(figure)
    image = Image.open(drawn).convert("RGB")
    image.quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")
