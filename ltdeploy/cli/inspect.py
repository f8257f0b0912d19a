"""``ltdeploy inspect``: what is in a checkpoint, an ONNX file or a bundle."""

from __future__ import annotations

from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .._optional import require
from ..errors import UsageError
from . import options as opt
from .output import Output

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..manifest import LoweringEntry
    from ..models.detectors.detector import Detector
    from ..models.detectors.onnx_detector import OnnxDetector
    from ..models.detectors.onnx_guess import OnnxOutlook
    from ..models.inspection import Inspection

__all__ = ["inspect"]


def inspect(
    path: Annotated[
        str, typer.Argument(metavar="CKPT|BUNDLE|ONNX|BOXES.json", help="What to look into.")
    ],
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
    html: Annotated[
        str | None, typer.Option(metavar="FILE", help="A page on annotated photographs.")
    ] = None,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> None:
    """Say what was recognised, whether the tail can be fixed, and what export still needs."""
    output = Output(json, quiet)

    from ..verify.contenders import is_bundle

    if html is None and is_bundle(path):
        from ..bundle import open_bundle

        _show_bundle(output, open_bundle(path))
        return

    if Path(path).suffix == ".json" and Path(path).is_file():
        from .inspect_boxes import inspect_boxes

        inspect_boxes(output, path, root=root, html=html)
        return
    if html is not None:
        raise UsageError(f"--html is for annotated photographs (BOXES.json), and {path} is none.")

    from ..datasets import read_classes
    from ..models.inspection import inspect_checkpoint

    options = opt.load_options(
        arch=arch,
        classes=read_classes(classes, root) if classes is not None else None,
        image_size=image_size,
        resize=resize,
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=mean,
        std=std,
        head_scale=head_scale,
        trust_pickle=trust_pickle,
    )
    if outputs is not None:
        from ..models.detectors.onnx_detector import OnnxDetector
        from ..models.loading import load_model

        model = load_model(path, options=options, outputs=opt.read_outputs(outputs))
        assert isinstance(model, OnnxDetector)
        _show_detector(output, model)
        return
    if Path(path).suffix == ".onnx" and Path(path).is_file():
        from ..models.detectors.onnx_guess import look_at

        seen = look_at(Path(path))
        if seen.is_detector:
            _show_outlook(output, Path(path), seen)
            return
    if Path(path).is_dir():
        require("torch", extra="torch", purpose="look into checkpoints")
        from ..models.detectors.detector import load_detector
        from ..models.detectors.huggingface_detectors import is_detector_folder

        if is_detector_folder(Path(path)):
            _show_detector(output, load_detector(path, options=options))
            return
    if Path(path).is_file() and Path(path).suffix != ".onnx":
        from ..models.classifier import read_parts
        from ..models.detectors.detector import detector_from, is_detector

        parts = read_parts(Path(path), options)
        if is_detector(parts):
            _show_detector(output, detector_from(Path(path), parts, options))
            return
    found = inspect_checkpoint(path, options)
    _show_checkpoint(output, found)
    output.json(found.to_dict())


def _show_outlook(output: Output, path: Path, seen: OnnxOutlook) -> None:
    """Say what an ONNX detector takes and gives, and what could be declared of it."""
    start = seen.mapping()
    output.say(f"File           {path.name}")
    output.say("Layout         ONNX; it looks like a detector's")
    for what, tensors in (("Takes", seen.inputs), ("Gives", seen.outputs)):
        for name, shape in tensors.items():
            output.say(f"{what:14} {name} [{', '.join(map(str, shape))}]")
    if start is None:
        output.say("  · No layout fits: fastestdet, yolov5, yolov8 and detr are known.")
    else:
        output.say(
            "Outputs        could be declared like this; mean, std, channels and fit are what such "
            "detectors usually have, and the file does not show them:"
        )
        entries = ",\n".join(f" {dumps(key)}: {dumps(value)}" for key, value in start.items())
        output.say(f"{{\n{entries}\n}}")
    missing = ["--outputs FILE", "--classes FILE (without the background)"]
    output.say("Missing for export:")
    for line in missing:
        output.say(f"  {line}")
    output.json(
        {
            "schema": 1,
            "task": "detection",
            "path": str(path),
            "layout": "ONNX",
            "inputs": seen.inputs,
            "outputs": seen.outputs,
            "mapping": start,
            "missing": missing,
        }
    )


def _show_detector(output: Output, model: Detector | OnnxDetector) -> None:
    table, canvas, head = model.classes, model.canvas, model.head
    output.say(f"File           {model.source.path.name}")
    output.say(f"Layout         {model.source.layout}")
    output.say(f"Architecture   {model.arch}, a detector")
    background = "none" if head.background is None else f"column {head.background}"
    layers = ", ".join(map(repr, model.head_paths))
    output.say(
        f"Class layer    {layers}, {head.classes} columns × "
        f"{head.weight.shape[1]} features, {head.activation}, background {background}"
    )
    output.say(
        f"Canvas         {canvas.height_px}×{canvas.width_px}, {canvas.fit.replace('_', ' ')}"
    )
    missing = [] if table is not None else ["--classes FILE (without the background)"]
    output.say(
        "Classes        training counts unknown"
        if table is None
        else f"Classes        {len(table)}; {max(table.counts)} … {min(table.counts)} training "
        "images per class"
    )
    output.say(f"Trained with   {model.trained_with or 'unknown'}")
    for note in model.source.notes:
        output.say(f"  · {note}")
    output.say(f"Missing for export: {missing[0]}" if missing else "Nothing is missing for export.")
    output.json(
        {
            "schema": 1,
            "task": "detection",
            "path": str(model.source.path),
            "layout": model.source.layout,
            "arch": model.arch,
            "columns": head.classes,
            "background": head.background,
            "activation": head.activation,
            "canvas": canvas.to_dict(),
            "classes": None if table is None else list(table.names),
            "train_counts": None if table is None else list(table.counts),
            "trained_with": model.trained_with,
            "missing": missing,
            "notes": list(model.source.notes),
        }
    )


def _show_checkpoint(output: Output, found: Inspection) -> None:
    facts = found.to_dict()
    output.say(f"File           {found.path.name}")
    output.say(f"Layout         {found.layout}")
    output.say(f"Architecture   {found.arch or 'not recognised'}")
    if found.tensors is not None:
        output.say(f"Tensors        {found.tensors}")
    head = found.head
    if head is None:
        output.say("Head           not recognised")
    else:
        parts = [f"{head.path!r}, {head.classes} classes × {head.features} features"]
        parts += [head.kind] if head.kind else []
        parts += ["with bias" if head.bias else "no bias"] if head.bias is not None else []
        parts += [f"scale {head.scale:g}"] if head.scale is not None else []
        output.say(f"Head           {', '.join(parts)}")
        if head.norm_min is not None:
            line = (
                f"Row norms      {head.norm_min:.3g} … {head.norm_max:.3g}, median "
                f"{head.norm_median:.3g}"
            )
            if head.norm_correlation is not None:
                line += f"; rank correlation with the counts {head.norm_correlation:+.2f}"
            output.say(line)
    table = found.classes
    if table is None:
        output.say("Classes        training counts unknown")
    else:
        groups = ", ".join(f"{len(table.members(g))} {g}" for g in table.rule.names)
        output.say(
            f"Classes        {len(table)} ({groups}); {sum(table.counts):,} training images, "
            f"{max(table.counts)} … {min(table.counts)} per class"
        )
    if found.preprocessing is not None:
        output.say(
            f"Preprocessing  {facts['preprocessing_text']} (from the {found.preprocessing_from})"
        )
    output.say(f"Trained with   {found.trained_with or 'unknown'}")
    for line in (*found.advice, *found.notes):
        output.say(f"  · {line}")
    if found.missing:
        output.say("Missing for export:")
        for line in found.missing:
            output.say(f"  {line}")
    else:
        output.say("Nothing is missing for export.")


def _show_bundle(output: Output, bundle: Bundle) -> None:
    manifest, table = bundle.manifest, bundle.classes
    graph, fix = manifest.graphs[0], manifest.fix
    methods = "; ".join(
        f"{m.method} {', '.join(f'{k} = {v}' for k, v in m.shown().items())}".rstrip()
        for m in fix.methods
    )
    groups = ", ".join(f"{len(table.members(g))} {g}" for g in table.rule.names)
    output.say(f"Bundle         {bundle.path} (every hash is right)")
    output.say(f"Made           {manifest.created} by ltdeploy {manifest.versions['ltdeploy']}")
    output.say(f"Architecture   {manifest.arch}")
    output.say(f"Classes        {len(table)} ({groups})")
    output.say(f"Fix            {methods or 'none'} (folded: {fix.folded})")
    if fix.selected_on is not None:
        output.say(f"Chosen on      {fix.selected_on.images} images of {fix.selected_on.name}")
    output.say(
        f"Graph          {graph.file}, {graph.precision}, opset {graph.opset}, {graph.nodes} nodes"
    )
    if graph.lowering is not None:
        output.say(f"Precision      {_told(graph.lowering)}")
    for tensor in (*graph.inputs, *graph.outputs):
        axes = ", ".join(str(axis) for axis in tensor.shape)
        output.say(f"  {tensor.name:12} {tensor.dtype} [{axes}]")
    output.say(f"Source         {manifest.source.path} ({manifest.source.layout})")
    for note in (*manifest.source.notes, *fix.notes):
        output.say(f"  · {note}")
    result: dict[str, Any] = manifest.model_dump(by_alias=True, mode="json")
    output.json(result)


def _told(lowering: LoweringEntry) -> str:
    """Return in a line how a graph's precision came about."""
    told = [f"{100 * lowering.low_share:.1f} % of the multiply-adds are low"]
    if lowering.restored:
        told.append(f"{len(lowering.restored)} layers restored to float32")
    if lowering.calibration is not None:
        told.append(f"ranges from {lowering.calibration.images} images")
    gate = lowering.gate
    told.append(
        "not gated"
        if gate is None
        else f"gate: {gate.verdict} on {gate.images} images of {gate.name}, margin "
        f"{gate.margin:g}, on {gate.engine}"
    )
    return "; ".join(told)
