"""``ltdeploy export`` of a detector."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import FixError, UsageError
from .options import canvas_size
from .output import Output, program, quoted
from .precision_table import report_precision, write_trade
from .runtime import ExitCode

if TYPE_CHECKING:
    from ltdeploy.export.detection.detector_export import ExportedDetector

    from ..fixes import FixFile, FixSpec
    from ..models.detectors.detector import Detector
    from ..models.detectors.onnx_detector import OnnxDetector

__all__ = ["export_boxes"]


def export_boxes(
    output: Output,
    model: Detector | OnnxDetector,
    specs: Sequence[FixSpec | FixFile],
    out: Path,
    *,
    images: str | None,
    calibration: str | None,
    precision: dict[str, Any],
    html: str | None,
    root: str | None,
    canvas: str | None,
    nms_in_graph: bool,
    force: bool,
    refused: dict[str, bool],
) -> int:
    """Export a detector and say what was done.

    Parameters
    ----------
    images : photographs to check the graph with, and to gate a precision below float32.
    calibration : training photographs.
    precision : what else the request for a precision consists of.
    html : where the trade goes.
    canvas : ``HxW``, where it is to be another than the checkpoint's.
    nms_in_graph : let the graph itself give the detections kept.
    refused : options that detectors do not have, by name, and whether each was given.
    """
    from ltdeploy.export.detection.detector_export import export_detector
    from ltdeploy.export.precision import BoxPrecisionRequest

    from ..datasets import open_boxes
    from ..fixes import FixSpec

    given = [name for name, there in refused.items() if there]
    if given:
        others = "files of weights" if given == ["--arch"] else "classifiers in this version"
        raise UsageError(
            f"{model.source.path.name} is a detector, and {', '.join(given)} is for {others}; "
            "leave it out."
        )
    for one in specs:
        if isinstance(one, FixSpec) and one.needs_validation:
            raise FixError(
                f"{one.method} of a detector is not chosen by export; give its strength, as in "
                f"--fix norcal:gamma=0.6, or choose it with '{program()} calibrate'."
            )
    if canvas is not None:
        height_px, width_px = canvas_size(canvas)
        other = replace(model.canvas, height_px=height_px, width_px=width_px)
        model = replace(model, canvas=other)
    photographs = open_boxes(images, root=root) if images is not None else None
    training = open_boxes(calibration, root=root) if calibration is not None else None
    exported = export_detector(
        model,
        specs,
        out,
        images=photographs,
        precision=BoxPrecisionRequest(calibration=training, gate=photographs, **precision),
        nms_in_graph=nms_in_graph,
        force=force,
        track=output.track,
    )
    _report(output, exported)
    output.json(_result(exported))
    if html is not None:
        write_trade(output, html, _result(exported))
    gate = exported.lowered.entry.gate if exported.lowered is not None else None
    if gate is not None and gate.verdict != "pass":
        return ExitCode.UNDECIDED
    return ExitCode.BAD_INPUT if exported.unreadable else ExitCode.OK


def _report(output: Output, exported: ExportedDetector) -> None:
    from ltdeploy.export.detection.kept_detections import CANDIDATES

    from ..bundle import SELECTION

    manifest, checks = exported.bundle.manifest, exported.checks
    table = exported.bundle.classes
    for note in manifest.source.notes:
        output.say(f"  · {note}")
    output.left_out(exported.unreadable)
    groups = ", ".join(f"{len(table.members(g))} {g}" for g in table.rule.names)
    output.say(f"Model    {manifest.arch}, {len(table)} classes ({groups})")
    for entry in manifest.fix.methods:
        told = ", ".join(f"{key} = {value}" for key, value in entry.shown().items())
        output.say(f"Fix      {entry.method} {told}".rstrip())
    if not manifest.fix.methods:
        output.say("Fix      none")
    chosen = manifest.fix.selected_on
    if chosen is not None:
        output.say(f"         chosen on {chosen.name}, {chosen.images:,} images; verify on others")
    for note in manifest.fix.notes:
        output.warn(note)
    canvas = exported.bundle.canvas
    output.say(f"Canvas   {canvas.height_px}×{canvas.width_px}, {canvas.fit.replace('_', ' ')}")
    where = "folded into the class layer" if manifest.fix.folded == "weights" else "none"
    graph = manifest.graphs[0]
    output.say(f"Graph    {graph.nodes} nodes, opset {graph.opset}; fix {where}")
    output.say(
        f"Checked  {checks.engine}, {checks.samples} images, {checks.detections} detections: "
        f"scores {checks.score_difference:.1e} and boxes {checks.box_difference_px:.2g} px from "
        f"the reference, {checks.batch_difference:.1e} between batch sizes 1, 2, 5"
    )
    inside = exported.inside
    if inside is not None:
        output.say(
            f"         suppression inside the graph: scores {inside.checks.score_difference:.1e} "
            f"and boxes {inside.checks.box_difference_px:.2g} px from the predictor's"
        )
    if inside is not None and inside.missing:
        output.warn(
            f"of {inside.checks.detections:,} detections that the predictor keeps on these "
            f"photographs the graph misses {inside.missing:,}, with scores up to "
            f"{inside.missing_score:.2g}: it looks at {CANDIDATES:,} candidates of a photograph"
        )
    if inside is not None and inside.mask_difference is not None:
        most = manifest.detection.keep_rule().top_k if manifest.detection is not None else 0
        output.say(
            f"         masks: {inside.mask_difference:.1e} from the reference's, of the best "
            f"{most} boxes, and no others are kept"
        )
    if not checks.detections:
        output.warn(
            "nothing was found on the photographs that the graph was checked with, so that they "
            "show little: give some of yours with --val BOXES.json"
        )
    report_precision(output, exported)
    output.say(f"Wrote    {exported.bundle.path}")
    others = "   (other images than chose it)" if SELECTION in manifest.files else ""
    path = quoted(exported.bundle.path)
    output.say(f"Next     {program()} verify {path} --data BOXES.json{others}")


def _result(exported: ExportedDetector) -> dict[str, Any]:
    manifest = exported.bundle.manifest
    return {
        "schema": 1,
        "bundle": str(exported.bundle.path),
        "task": manifest.task,
        "arch": manifest.arch,
        "classes": len(manifest.classes),
        "groups": {
            name: sum(entry.group == name for entry in manifest.classes)
            for name in manifest.groups.names
        },
        "fix": [method.model_dump() for method in manifest.fix.methods],
        "folded": manifest.fix.folded,
        "precision": manifest.graphs[0].precision,
        "engines": ["onnx"],
        "lowering": exported.lowered.to_dict() if exported.lowered is not None else None,
        "checks": exported.checks.to_dict(),
        "nms_in_graph": exported.inside.to_dict() if exported.inside is not None else None,
        "notes": [*manifest.source.notes, *manifest.fix.notes],
        "unreadable": len(exported.unreadable),
    }
