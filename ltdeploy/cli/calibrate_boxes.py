"""``ltdeploy calibrate`` of a detector: fixes side by side by average precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UsageError
from .output import Output, program, quoted, write_text
from .runtime import ExitCode

if TYPE_CHECKING:
    from ..calibrate.boxes import BoxCalibration, BoxMethodResult
    from ..metrics import Figure
    from ..models.detectors.detector import Detector
    from ..models.detectors.onnx_detector import OnnxDetector

__all__ = ["calibrate_detector"]

_MOST_CLASSES_SHOWN = 8
_SIGNS = {"chosen": "→ ", "too costly for the head": "✗ "}


def calibrate_detector(
    output: Output,
    ckpt: str,
    model: Detector | OnnxDetector,
    val: str,
    *,
    root: str | None,
    methods: Sequence[str] | None,
    objective: str | None,
    max_head_loss: float | None,
    trained_with: str | None,
    folds: int,
    seed: int,
    force: bool,
    out: Path,
    report: Path,
    cache: Path | None,
    refused: Mapping[str, object],
) -> int:
    """Choose a detector's fix, write it and its report, and print what the choice rests on.

    Parameters
    ----------
    ckpt : the model's file and what was said of it, as a shell takes them.
    out, report : where the fix and the report go.
    cache : folder of the outputs of earlier runs; None keeps nothing.
    refused : options that detectors do not have, by name, and what was given.
    """
    from ..calibrate import Aim
    from ..calibrate.boxes import (
        calibrate_boxes,
        evidence_of_detector,
        fix_file_of_boxes,
        render_box_report,
    )
    from ..datasets import open_boxes
    from ..fixes import write_fix_file

    given = [name for name, value in refused.items() if value is not None]
    if given:
        raise UsageError(
            f"{model.source.path.name} is a detector, and {', '.join(given)} is for classifiers in "
            "this version; leave it out."
        )
    aim = Aim(objective or "balanced", None, max_head_loss)  # type: ignore[arg-type]
    evidence = evidence_of_detector(
        model,
        open_boxes(val, root=root),
        methods=methods,
        trained_with=trained_with,
        cache=cache,
        force=force,
        track=output.track,
        warn=output.warn,
    )
    done = calibrate_boxes(
        evidence, methods=methods, aim=aim, folds=folds, seed=seed, track=output.track
    )
    write_fix_file(out, fix_file_of_boxes(done, evidence))
    result = {**done.to_dict(), "unreadable": len(evidence.unreadable)}
    write_text(report, render_box_report(result, title=model.source.path.name))
    output.json(result)
    _report(output, done)
    output.left_out(evidence.unreadable)
    output.say(f"Fix      {out}")
    output.say(f"Report   {report}")
    output.say(f"Next     {program()} export --fix {quoted(out)} {ckpt}")
    return ExitCode.BAD_INPUT if evidence.unreadable else ExitCode.OK


def _report(output: Output, done: BoxCalibration) -> None:
    """Print every method's figures, what was not tried, warnings, and the reason for the choice."""
    groups = list(done.strata.groups)
    shown = groups if len(groups) > 1 else []
    output.table(
        ("method", "learnt", *(f"AP {name}" for name in shown), "AP", "AP50", "gain"),
        [
            (
                _name(one, done),
                f"{one.freedom:,}",
                *(f"{one.figures.groups[name]:.2f}" for name in shown),
                f"{one.figures.ap:.2f}",
                f"{one.figures.ap50:.2f}",
                _interval(one.standing.gain) if one is not done.before else "",
            )
            for one in done.methods
        ],
    )
    over = "" if done.aim.objective == "balanced" else f" of the {groups[-1]} group"
    output.say(
        f"AP in percent on held-out folds of {done.images:,} images, each ranked by itself; gain "
        f"of mean AP{over} over no fix with its 95 % interval."
    )
    if any(one.standing.status == "too costly for the head" for one in done.methods):
        output.say(
            f"✗ may cost the {groups[0]} group more than {done.aim.max_head_loss:g} points, by the "
            "lower end of its 95 % interval."
        )
    if len(done.classes) <= _MOST_CLASSES_SHOWN:
        _report_classes(output, done)
    elif len(shown) < 2:
        output.say(f"All classes are in the {groups[0]} group.")
    reasons: dict[str, list[str]] = {}
    for one in done.skipped:
        reasons.setdefault(one.reason.rstrip("."), []).append(one.method)
    for reason, names in reasons.items():
        begins = ("each " if len(names) > 1 else "it ") if reason.startswith("is ") else ""
        output.say(f"Not tried: {', '.join(names)}: {begins}{reason}.")
    for text in done.warnings:
        output.warn(text)
    output.say(f"Chosen   {done.reason}")


def _report_classes(output: Output, done: BoxCalibration) -> None:
    """Print AP and AP50 of each class under each method: groups hide what few classes show."""
    table = done.classes
    output.table(
        ("AP / AP50", *table.names),
        [
            ("  objects (images)", *map(_held, done.class_objects, done.class_images)),
            *(
                (
                    _name(one, done),
                    *map(_pair, one.figures.by_class, one.figures.by_class50),
                )
                for one in done.methods
            ),
        ],
    )


def _name(method: BoxMethodResult, done: BoxCalibration) -> str:
    from ..calibrate.boxes import shown_fix

    name = method.name if method.fix is None else shown_fix(method.fix, done.classes)
    if method.fix is None and method is not done.before:
        name = f"{name}: none"
    return f"{_SIGNS.get(method.standing.status, '  ')}{name}"


def _held(objects: int, images: int) -> str:
    return f"{objects:,} ({images:,})"


def _pair(ap: float, ap50: float) -> str:
    return "–" if ap != ap else f"{ap:.1f} / {ap50:.1f}"  # NaN: no object


def _interval(figure: Figure) -> str:
    text = f"{figure.value:+.2f} [{figure.low:+.2f}, {figure.high:+.2f}]"
    return text.replace("-", "−")
