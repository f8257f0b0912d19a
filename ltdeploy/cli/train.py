"""``ltdeploy train``: a plain cross-entropy training, the baseline that fixes start from."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UsageError
from . import options as opt
from .output import Output, program
from .runtime import ExitCode, interrupted, typed_with

if TYPE_CHECKING:
    from ..canvas import Canvas

__all__ = ["train"]


def train(
    data: Annotated[str, typer.Option(metavar="DATA", help="Training images, as for verify.")],
    arch: Annotated[
        str,
        typer.Option(metavar="A", help="timm:NAME, torchvision:NAME, hf:FOLDER or cifar:resnet20."),
    ],
    out: Annotated[str, typer.Option(metavar="ckpt.pt", help="The checkpoint to write.")],
    epochs: Annotated[
        int | None,
        typer.Option(metavar="N", help="Passes over the data.", show_default="90, of detectors 24"),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(metavar="N", help="Images per step.", show_default="64, of detectors 4"),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            metavar="LR", help="Its highest value.", show_default="0.1, of detectors 0.0005"
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Decides all that is drawn.")
    ] = None,
    canvas: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="Detectors: height and width they see.",
            show_default="800x1088, of those with _320 320x448",
        ),
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(metavar="S", help="Detectors: repeat_factor[:t=0.001], rare classes oftener."),
    ] = None,
    proposals: Annotated[
        int | None,
        typer.Option(metavar="N", help="R-CNNs: proposals per image learnt from; 128 is fast."),
    ] = None,
    vertical_flip: Annotated[
        bool, typer.Option("--vertical-flip", help="Detectors: where photographs have no up.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Detectors: go on from ckpt.pt.resume, which Ctrl-C writes, and each 5 minutes.",
        ),
    ] = False,
    root: opt.Root = None,
    image_size: opt.ImageSize = None,
    resize: opt.Resize = None,
    crop_pct: opt.CropPct = None,
    interpolation: opt.Interpolation = None,
    mean: opt.Mean = None,
    std: opt.Std = None,
    json: opt.Json = None,
    quiet: opt.Quiet = False,
    debug: opt.Debug = False,
) -> int:
    """Train a classifier, or a detector on a COCO or LVIS json, from random weights."""
    output = Output(json, quiet)
    if Path(out).suffix != ".pt":
        raise UsageError(f"--out is {out!r}; expected a name that ends in .pt, like ckpt.pt.")
    told: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    told = {name: value for name, value in told.items() if value is not None}
    for_boxes = {
        "--canvas": canvas,
        "--sampler": sampler,
        "--proposals": proposals,
        "--vertical-flip": vertical_flip,
        "--resume": resume,
    }
    for_images = {
        "--image-size": image_size,
        "--resize": resize,
        "--crop-pct": crop_pct,
    }
    boxes = _is_detector(arch)
    for name, value in (for_images if boxes else for_boxes).items():
        if value:
            meant = "detectors; they take --canvas HxW" if boxes else "classifiers"
            raise UsageError(f"{name} is not for {meant}; --arch is {arch!r}. Leave it out.")
    if boxes:
        from ..models.detectors.architectures import ARCHITECTURES, check_detector_arch
        from ..training.repeat_factor import parse_sampler

        adjusted = opt.load_options(interpolation=interpolation, mean=mean, std=std)
        size = ARCHITECTURES[check_detector_arch(arch)].canvas()
        size = replace(size, **adjusted.preprocessing_changes())
        if canvas is not None:
            size = _resized(size, canvas)
        told["repeat_threshold"] = None if sampler is None else parse_sampler(sampler)
        told |= {"proposals": proposals, "vertical_flip": vertical_flip}
        return _train_detector(data, arch, out, root, told, size, resume, output)

    if Path(data).suffix.lower() == ".json":
        raise UsageError(
            f"--data is {data!r}, and a COCO or LVIS json of boxes needs a detector's "
            f"architecture; --arch is {arch!r}. Give one, for example "
            "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn."
        )
    from ..datasets import open_dataset
    from ..models.architectures import default_preprocessing
    from ..models.options import adjust_preprocessing
    from ..training.loop import TrainOptions
    from ..training.loop import train as fit

    options = replace(TrainOptions(), **told)
    changes = opt.load_options(
        image_size=image_size,
        resize=resize,
        crop_pct=crop_pct,
        interpolation=interpolation,
        mean=mean,
        std=std,
    ).preprocessing_changes()
    dataset = open_dataset(data, root=root, split="train")
    preprocessing = adjust_preprocessing(default_preprocessing(arch), changes)
    done = fit(
        dataset,
        arch,
        options,
        out,
        preprocessing=preprocessing,
        tracker=output.track,
        tell=_line(output),
    )
    output.left_out(done.unreadable)
    output.say(
        f"Trained {arch} on {len(dataset) - len(done.unreadable)} images of {len(done.classes)} "
        f"classes in {done.seconds:.0f} s: loss {done.losses[-1]:.3f}, training accuracy "
        f"{done.accuracy:.1f} %"
    )
    output.say(f"Wrote    {out}")
    output.say(f"Next     {program()} export --tau auto --val DATA {out}")
    output.json(
        {
            "schema": 1,
            "checkpoint": out,
            "arch": arch,
            "classes": len(done.classes),
            "images": len(dataset) - len(done.unreadable),
            "unreadable": len(done.unreadable),
            "losses": list(done.losses),
            "train_accuracy": done.accuracy,
            "seconds": done.seconds,
        }
    )
    return ExitCode.BAD_INPUT if done.unreadable else ExitCode.OK


def _line(output: Output) -> Callable[[str], None]:
    """Return what prints a line on stderr where no bar is drawn."""

    def tell(text: str) -> None:
        if not (output.quiet or sys.stderr.isatty()):
            print(text, file=sys.stderr, flush=True)

    return tell


def _resized(canvas: Canvas, text: str) -> Canvas:
    height_px, width_px = opt.canvas_size(text)
    try:
        return replace(canvas, height_px=height_px, width_px=width_px)
    except UsageError as error:
        raise UsageError(f"--canvas is {text!r}: {error}") from None


def _is_detector(arch: str) -> bool:
    from ..models.detectors.design import FAMILIES

    # A mistyped one too, which is then told the names of detectors.
    family, _, name = arch.partition(":")
    return family == "torchvision" and ("_fpn" in name or name.startswith(FAMILIES))


def _train_detector(
    data: str,
    arch: str,
    out: str,
    root: str | None,
    told: dict[str, Any],
    canvas: Canvas,
    resume: bool,
    output: Output,
) -> int:
    from ..datasets.coco_json import read_boxes
    from ..training.box_schedule import BoxTrainOptions
    from ..training.boxes import train_detector
    from ..training.interrupts import TrainingInterrupted
    from ..training.resume import check_resume, resume_path

    if Path(data).suffix != ".json":
        raise UsageError(
            f"--data is {data!r}; expected the COCO or LVIS .json of boxes that {arch} learns."
        )
    goes_on = check_resume(out, resume=resume)  # before the data are read
    dataset = read_boxes(Path(data), None if root is None else Path(root))
    for note in dataset.notes:
        output.say(f"Note     {note}")
    options = BoxTrainOptions(**told)
    if resume and not goes_on:
        output.say(f"Note     There is no {resume_path(out)} to go on with; it starts anew.")
    try:
        done = train_detector(
            dataset,
            arch,
            options,
            out,
            canvas=canvas,
            resume=resume,
            tracker=output.track,
            tell=_line(output),
        )
    except TrainingInterrupted as stop:
        return interrupted(
            f"Interrupted after step {stop.step} of {stop.steps}; go on with: "
            f"{typed_with('--resume')}"
        )
    output.left_out(done.unreadable)
    again = f", {done.resumed_from} of them before it was interrupted" if done.resumed_from else ""
    images = len(dataset) - len(done.unreadable)
    output.say(
        f"Trained {arch} on {images} images with {sum(done.instances)} boxes of "
        f"{len(done.classes)} classes in {done.steps} steps{again}, {done.seconds:.0f} s: loss "
        f"{done.losses[-1]['total']:.3f}"
    )
    output.say(f"Wrote    {out}")
    output.say(f"Next     {program()} export --val DATA {out}")
    output.json(
        {
            "schema": 1,
            "checkpoint": out,
            "task": "detection",
            "arch": arch,
            "classes": len(done.classes),
            "images": images,
            "boxes": sum(done.instances),
            "unreadable": len(done.unreadable),
            "losses": [dict(epoch) for epoch in done.losses],
            "steps": done.steps,
            "resumed_from": done.resumed_from,
            "seconds": done.seconds,
        }
    )
    return ExitCode.BAD_INPUT if done.unreadable else ExitCode.OK
