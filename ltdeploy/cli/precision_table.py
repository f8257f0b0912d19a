"""What ``export`` says of precision and scaled decoding: what they cost, and what was put back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import EngineError, UsageError, did_you_mean
from .output import Output, write_text

if TYPE_CHECKING:
    from ltdeploy.export import Exported
    from ltdeploy.export.detection.detector_export import ExportedDetector
    from ltdeploy.export.precision import Trial

    from ..manifest import Precision

__all__ = [
    "report_precision",
    "report_scaling",
    "require_engine",
    "require_precision",
    "require_used",
    "write_trade",
]


def require_precision(
    precision: str, *, calibration: str | None, html: str | None, gated: bool
) -> Precision:
    """Return the precision; raise :class:`UsageError` unless its options go together."""
    from ..manifest import PRECISIONS

    named = next((name for name in PRECISIONS if name == precision), None)
    if named is None:
        raise UsageError(
            f"--precision is {precision!r}; expected one of {', '.join(PRECISIONS)}."
            f"{did_you_mean(precision, PRECISIONS)}"
        )
    if precision in ("fp32", "bf16") and calibration is not None:
        raise UsageError(
            "--calibration measures the ranges that int8 and fp16 need, and --precision is "
            f"{precision}; leave it out, or say --precision int8."
        )
    if html is not None and not (gated and precision != "fp32"):
        raise UsageError(
            "--html shows what a --precision below fp32 costs each group, which --val DATA "
            "measures; add both, or leave it out."
        )
    return named


def require_engine(engine: str, precision: Precision) -> None:
    """Refuse an engine that there is not, or that cannot run a precision, before the work.

    Raises
    ------
    EngineError
    """
    from ..engines import parse_engine
    from ..engines.choice import refusal

    name = parse_engine(engine).name
    reason = refusal(name, precision)
    if reason is not None:
        raise EngineError(f"{name} cannot run {precision}: {reason}")


def require_used(
    given: Collection[str], precision: Precision, *, calibrated: bool, gated: bool, scaled: bool
) -> None:
    """Raise :class:`UsageError` for a number that nothing would look at.

    Parameters
    ----------
    given : those of ``margin``, ``search_seconds`` and ``calibration_images`` that were typed.
    calibrated, gated, scaled : whether ``--calibration``, ``--val`` and ``--jpeg-scaling`` were.
    """
    lowered = precision != "fp32"
    measured = precision == "int8" or (precision == "fp16" and (calibrated or gated))
    for name, used, needed in (
        (
            "margin",
            gated and (lowered or scaled),
            "--val DATA, and a --precision below fp32 or --jpeg-scaling, which it is for",
        ),
        ("search_seconds", gated and lowered, "--val DATA and a --precision below fp32"),
        ("calibration_images", measured, "--precision int8, or fp16 with --calibration DATA"),
    ):
        if name in given and not used:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} does nothing here; it needs {needed}. Leave it out.")


def report_scaling(output: Output, exported: Exported) -> None:
    """Print what scaled decoding of JPEG files costs alone."""
    from ..webpage.pieces import signed

    if not exported.bundle.preprocessing.jpeg_scaling:
        return
    scaling = exported.scaling
    if scaling is None:
        output.say("Scaling  of JPEG files declared, not gated: with --val DATA it has to pass")
        return
    trial = scaling.trial
    lost = ", ".join(f"{name} {signed(group.difference)}" for name, group in trial.groups.items())
    output.say(
        f"Scaling  of JPEG files alone, in float32, changes {lost} points; {trial.flips:,} of "
        f"{scaling.images:,} answers changed on {scaling.name}, gate: {trial.verdict}"
    )
    if trial.verdict == "inconclusive":
        _say_undecided(output, trial)


def _say_undecided(output: Output, trial: Trial) -> None:
    """Say what keeps a gate from deciding: classes without images, or too few images."""
    from ltdeploy.export.precision.report_tables import uncovered

    missing = uncovered(asdict(trial)["groups"])
    for told in missing:
        output.say(f"         {told}: give --val images of the others")
    if not missing:
        output.say("         the gate cannot decide on so few images: give --val more of them")


def report_precision(output: Output, exported: Exported | ExportedDetector) -> None:
    """Print how the precision came about, and every division of the layers that was tried."""
    from ..verify.result import name_some
    from ..webpage.pieces import signed

    lowered = exported.lowered
    if lowered is None:
        return
    graph = exported.bundle.manifest.graphs[0]
    entry = lowered.entry
    line = f"Lowered  {graph.precision}: {100 * entry.low_share:.1f} % of the multiply-adds"
    if entry.calibration is not None:
        told = entry.calibration
        line += f"; ranges from {told.images} images of {told.classes} classes of {told.name}"
    output.say(line)
    if graph.precision == "fp16" and entry.calibration is None:
        source = exported.golden_from or "drawn pictures"
        output.warn(
            f"fp16's range was checked on the golden samples alone, {exported.checks.samples} of "
            f"{source}, and other images may overflow it; give training images with --calibration "
            "DATA, or labelled ones with --val DATA"
        )
    for tensor in lowered.large[:5]:
        output.say(
            f"         float32 around {tensor.tensor}: "
            + (
                f"values up to {tensor.largest:.3g}, more than fp16 holds with room to spare"
                if tensor.largest > 1
                else f"fp16 makes 0 of {tensor.largest:.3g}"
            )
        )
    if not lowered.checked:
        output.warn(
            f"{lowered.engine} computes {graph.precision} in float32 on this processor, so no gate "
            f"can say here what {graph.precision} costs: verify the bundle where it will run"
        )
        return
    if lowered.found is None:
        output.say("         not gated: with --val DATA the layers that hurt the tail are restored")
        return
    found, trade = lowered.found, lowered.trade
    groups = [name for name in exported.bundle.classes.rule.names if name in found.chosen.groups]
    output.table(
        ("fp32 layers", "low", *groups, "overall", "flips", "MB", "speed", "gate"),
        [
            (
                f"{'▸ ' if row.trial is found.chosen else ''}{len(row.trial.restored)}",
                f"{100 * row.low_share:.1f} %",
                *(signed(row.trial.groups[name].difference) for name in (*groups, "overall")),
                f"{row.trial.flips:,}",
                f"{row.trial.size_bytes / 1e6:.1f}",
                f"{row.speed:.2f} ×",
                row.trial.verdict,
            )
            for row in trade
        ],
    )
    assert entry.gate is not None
    measure, flips = "class-averaged accuracy", ""
    if exported.bundle.is_detector:
        measure, flips = "average precision", "; flips are boxes that only one of the two finds"
    output.say(
        f"Differences from float32 in points of {measure}, on {entry.gate.images:,} "
        f"images of {entry.gate.name}{flips}; speed against the float32 graph on "
        f"{lowered.engine}, measured here."
    )
    chosen = next(row for row in trade if row.trial is found.chosen)
    if chosen.speed < 1.0:
        output.warn(
            f"{graph.precision} is slower than float32 on {lowered.engine} here "
            f"({chosen.speed:.2f} ×); try --engine openvino, or keep fp32 for this engine"
        )
    if found.chosen.restored:
        output.say(f"Restored {name_some(found.chosen.restored)}; the report and --json name all")
    if not found.fewest:
        output.say("         time ran out before fewer were ruled out; run again to go on")
    if found.chosen.verdict == "inconclusive":
        _say_undecided(output, found.chosen)
        if found.chosen.restored:
            output.say("         what is restored may follow single images")


def write_trade(output: Output, html: str, result: dict[str, Any]) -> None:
    """Write what a precision costs and buys as a page; nothing where no gate could run.

    Parameters
    ----------
    result : the machine-readable result of the export.
    """
    from ltdeploy.export.precision.report import render_precision_report

    lowering = result["lowering"]
    if lowering is None or not lowering["trials"]:
        output.warn("no gate ran, so there is no trade to show: --html was not written")
        return
    write_text(Path(html), render_precision_report(result, title=Path(result["bundle"]).name))
    output.say(f"Report   {html}")
