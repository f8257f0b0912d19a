"""``ltdeploy export``: checkpoint → bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import FixError, UsageError
from . import options as opt
from .export_boxes import export_boxes
from .output import Output, program, quoted, require_writable
from .precision_table import (
    report_precision,
    report_scaling,
    require_engine,
    require_precision,
    require_used,
    write_trade,
)
from .requested_fixes import requested_fixes
from .runtime import ExitCode
from .verify import check_report_folder

if TYPE_CHECKING:
    from ltdeploy.export import Exported


__all__ = ["export", "report_export"]

_FIX = "Fix"
_PRECISION = "Precision"


def export(
    ckpt: Annotated[str, typer.Argument(metavar="CKPT", help="Checkpoint, folder or .onnx file.")],
    tau: Annotated[
        str | None,
        typer.Option(metavar="τ|auto", help="τ-normalise the head.", rich_help_panel=_FIX),
    ] = None,
    tau_bias: Annotated[
        str,
        typer.Option(
            metavar="scale|drop|keep", help="What τ does to a bias.", rich_help_panel=_FIX
        ),
    ] = "scale",
    logit_adjust: Annotated[
        str | None,
        typer.Option(metavar="τ|auto", help="Subtract τ·log prior.", rich_help_panel=_FIX),
    ] = None,
    fix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:k=v|FILE", help="Any fix, or fix.json; repeatable.", rich_help_panel=_FIX
        ),
    ] = None,
    val: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Images that choose what is 'auto', and gate a precision or --jpeg-scaling.",
            rich_help_panel=_FIX,
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Apply a fix that is refused.", rich_help_panel=_FIX),
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            metavar="fp32|fp16|bf16|int8",
            help="Of all layers but the head, and in int8 the first; with --val, gated.",
            rich_help_panel=_PRECISION,
        ),
    ] = "fp32",
    calibration: Annotated[
        str | None,
        typer.Option(
            metavar="DATA",
            help="Training images: int8 takes its ranges from them, fp16 looks for overflow.",
            rich_help_panel=_PRECISION,
        ),
    ] = None,
    calibration_images: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="How many, as many per class; 512.", rich_help_panel=_PRECISION
        ),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="NAME[:K=V,…]",
            help="What the gate and the checks run.",
            rich_help_panel=_PRECISION,
        ),
    ] = "auto",
    margin: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS", help="What a group may lose; 1.", rich_help_panel=_PRECISION
        ),
    ] = None,
    search_seconds: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="For layers to restore; 600. Run again to go on.",
            rich_help_panel=_PRECISION,
        ),
    ] = None,
    html: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The trade, as a page.", rich_help_panel=_PRECISION),
    ] = None,
    out: Annotated[
        str | None, typer.Option(metavar="NAME.ltd", help="Default: the checkpoint's name.")
    ] = None,
    root: opt.Root = None,
    arch: opt.Arch = None,
    classes: opt.Classes = None,
    outputs: opt.Outputs = None,
    head_scale: opt.HeadScale = None,
    trust_pickle: opt.TrustPickle = False,
    image_size: opt.ImageSize = None,
    resize: opt.Resize = None,
    crop_pct: opt.CropPct = None,
    interpolation: opt.Interpolation = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    jpeg_scaling: opt.JpegScaling = False,
    canvas: opt.CanvasSize = None,
    nms_in_graph: Annotated[
        bool,
        typer.Option(
            "--nms-in-graph", help="Of a detector: the graph itself gives the boxes kept."
        ),
    ] = False,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Fix a checkpoint, fold the fix into its weights, and write a checked ONNX bundle.

    Example: ltdeploy export --tau 0.7 ckpt.pt
    """
    from ..fixes import FIXES, FixSpec

    output = Output(json, quiet)
    specs = requested_fixes(tau, tau_bias, logit_adjust, fix or [])
    elsewhere = [
        one
        for one in specs
        if isinstance(one, FixSpec) and FIXES[one.method].needs & {"training", "target"}
    ]
    if elsewhere:
        name = elsewhere[0].method
        raise UsageError(
            f"{name} is fitted by '{program()} calibrate {ckpt} --val DATA --method {name}' (with "
            "--train DATA or --target DATA, as it needs), and its fix.json then given to --fix."
        )
    learning = [one for one in specs if isinstance(one, FixSpec) and one.needs_validation]
    if val is None and learning:
        what = "'auto' is chosen" if learning[0].is_auto else f"{learning[0].method} is fitted"
        raise FixError(
            f"{what} on validation images and none were given; add --val DATA (images the model "
            "was not trained on)."
        )
    boxes = val is not None and val.lower().endswith(".json")  # a detector's: checks its graph
    if val is not None and not (learning or boxes or jpeg_scaling) and precision == "fp32":
        raise UsageError(
            "--val chooses what is 'auto' and gates a --precision below fp32 or --jpeg-scaling, "
            "and none was asked for; say --tau auto or --logit-adjust auto, or leave --val out."
        )
    if precision == "fp32" and engine != "auto":
        raise UsageError(
            f"--engine is what a --precision below fp32 is checked on, and --precision is fp32; to "
            f"run it: {program()} verify NAME.ltd --data DATA --engine {engine}"
        )
    check_report_folder(html)
    wanted = require_precision(precision, calibration=calibration, html=html, gated=val is not None)
    numbers = {
        "margin": margin,
        "search_seconds": search_seconds,
        "calibration_images": calibration_images,
    }
    limits: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    require_used(
        limits,
        wanted,
        calibrated=calibration is not None,
        gated=val is not None,
        scaled=jpeg_scaling,
    )
    require_engine(engine, wanted)
    target = bundle_path(ckpt, out)
    require_writable(target)

    from ..datasets import open_dataset, read_classes
    from ..files import default_cache
    from ..models.detectors.detector import Detector
    from ..models.detectors.onnx_detector import OnnxDetector
    from ..models.loading import load_model

    of_classifiers: dict[str, Any] = {
        "image_size": image_size,
        "resize": resize,
        "crop_pct": crop_pct,
        "interpolation": interpolation,
        "mean": mean,
        "std": std,
        "head_scale": head_scale,
    }
    table = read_classes(classes, root) if classes is not None else None
    given = opt.load_options(arch=arch, classes=table, trust_pickle=trust_pickle, **of_classifiers)
    with output.working(f"Loading {ckpt}"):
        from ltdeploy.export import PrecisionRequest, export_bundle

        model = load_model(Path(ckpt), options=given, outputs=opt.read_outputs(outputs))
    how = {"precision": wanted, "engine": engine, "journals": default_cache(), **limits}
    if isinstance(model, Detector | OnnxDetector):
        refused = {
            "--tau-bias": tau_bias != "scale",
            "--jpeg-scaling": jpeg_scaling,
            "--arch": arch is not None and isinstance(model, OnnxDetector),
            **{f"--{k.replace('_', '-')}": v is not None for k, v in of_classifiers.items()},
        }
        return export_boxes(
            output,
            model,
            specs,
            target,
            images=val,
            calibration=calibration,
            precision=how,
            html=html,
            root=root,
            canvas=canvas,
            nms_in_graph=nms_in_graph,
            force=force,
            refused=refused,
        )
    for option, there in {"--canvas": canvas is not None, "--nms-in-graph": nms_in_graph}.items():
        if there:
            raise UsageError(
                f"{option} is for detectors, and {ckpt} is a classifier; leave it out."
            )
    validation = open_dataset(val, root=root, split="val") if val is not None else None
    training = (
        open_dataset(calibration, root=root, split="train") if calibration is not None else None
    )
    request = PrecisionRequest(calibration=training, gate=validation, **how)
    exported = export_bundle(
        model,
        specs,
        target,
        validation=validation if learning else None,
        precision=request,
        jpeg_scaling=jpeg_scaling,
        force=force,
        track=output.track,
    )
    report_export(output, exported)
    output.json(export_result(exported))
    if html is not None:
        write_trade(output, html, export_result(exported))
    lowering, scaling = exported.bundle.manifest.graphs[0].lowering, exported.scaling
    gate = lowering.gate if lowering is not None else None
    verdicts = {gate.verdict if gate else "pass", scaling.trial.verdict if scaling else "pass"}
    if verdicts != {"pass"}:
        return ExitCode.UNDECIDED
    return ExitCode.BAD_INPUT if exported.unreadable else ExitCode.OK


def bundle_path(ckpt: str, out: str | None) -> Path:
    """Return where the bundle goes: ``--out``, or the checkpoint's name with ``.ltd``, here."""
    if out is not None:
        path = Path(out)
        if path.suffix != ".ltd":
            raise UsageError(
                f"--out is {out!r}; expected a name that ends in .ltd, like moths.ltd."
            )
        return path
    name = Path(ckpt).name
    for ending in (".pth.tar", ".safetensors", ".ckpt", ".onnx", ".pth", ".pt", ".th", ".bin"):
        if name.endswith(ending):
            name = name.removesuffix(ending)
            break
    return Path(f"{name}.ltd")


def export_result(exported: Exported) -> dict[str, Any]:
    """Return the machine-readable result of an export."""
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
        "selected_on": (
            manifest.fix.selected_on.model_dump() if manifest.fix.selected_on is not None else None
        ),
        "precision": manifest.graphs[0].precision,
        "engines": ["onnx"],
        "lowering": exported.lowered.to_dict() if exported.lowered is not None else None,
        "scaling": exported.scaling.to_dict() if exported.scaling is not None else None,
        "checks": exported.checks.to_dict(),
        "notes": [*manifest.source.notes, *manifest.fix.notes],
        "unreadable": len(exported.unreadable),
    }


def report_export(output: Output, exported: Exported) -> None:
    """Say what was recognised, what was done, and what to do next."""
    from ..bundle import SELECTION

    manifest, checks = exported.bundle.manifest, exported.checks
    table = exported.bundle.classes
    for note in manifest.source.notes:
        output.say(f"  · {note}")
    for note in manifest.fix.notes:
        output.say(f"  · {note}")
    output.left_out(exported.unreadable)
    groups = ", ".join(f"{len(table.members(g))} {g}" for g in table.rule.names)
    output.say(f"Model    {manifest.arch}, {len(table)} classes ({groups})")
    fitted = {one.method for one in exported.fixes}
    for entry in manifest.fix.methods:
        if entry.method not in fitted:
            told = ", ".join(f"{key} = {value}" for key, value in entry.shown().items())
            output.say(f"Fix      {entry.method} {told}".rstrip() + ", from the fix file")
    for one in exported.fixes:
        line = f"Fix      {one.fix.describe() if one.fix is not None else f'no {one.method}'}"
        if one.choice is not None and manifest.fix.selected_on is not None:
            line += (
                f", chosen on {manifest.fix.selected_on.images} validation images: class-averaged "
                f"accuracy {one.choice.before:.1f} % → {one.choice.after:.1f} % on held-out folds"
            )
        output.say(line)
        if one.choice is not None and one.choice.note:
            output.say(f"         {one.choice.note}")
    if not exported.fixes and not manifest.fix.methods:
        output.say("Fix      none")
    if exported.golden_from is not None:
        output.say(
            f"Golden   a few images of {exported.golden_from} are inside the bundle (golden.npz), "
            "to check engines with"
        )
    where = {
        "weights": "folded into the head's weights: no cost at inference",
        "nodes": "in explicit nodes, as far as the head's weights cannot take it",
        "none": "none",
    }
    output.say(
        f"Graph    {manifest.graphs[0].nodes} nodes, opset {manifest.graphs[0].opset}; fix "
        f"{where[manifest.fix.folded]}"
    )
    output.say(
        f"Checked  {checks.engine}, {checks.samples} images: {checks.reference_difference:.1e} "
        f"from the reference, {checks.batch_difference:.1e} between batch sizes 1, 2, 5"
    )
    report_scaling(output, exported)
    report_precision(output, exported)
    output.say(f"Wrote    {exported.bundle.path}")
    others = "   (other images than chose it)" if SELECTION in manifest.files else ""
    output.say(f"Next     {program()} verify {quoted(exported.bundle.path)} --data DATA{others}")
