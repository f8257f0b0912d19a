"""``ltdeploy train``: a plain cross-entropy training, the baseline that fixes start from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from . import options as opt
from .output import Output, program
from .runtime import ExitCode

__all__ = ["train"]


def train(
    data: Annotated[str, typer.Option(metavar="DATA", help="Training images, as for verify.")],
    arch: Annotated[
        str,
        typer.Option(metavar="A", help="timm:NAME, torchvision:NAME, hf:FOLDER or cifar:resnet20."),
    ],
    out: Annotated[str, typer.Option(metavar="ckpt.pt", help="The checkpoint to write.")],
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Passes over the data.")] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Images per step.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(metavar="LR", help="Its highest value.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(metavar="N", help="Decides all that is drawn.")
    ] = None,
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
    """Train a classifier with cross-entropy from random weights."""
    output = Output(json, quiet)
    if Path(out).suffix != ".pt":
        raise UsageError(f"--out is {out!r}; expected a name that ends in .pt, like ckpt.pt.")

    from ..datasets import open_dataset
    from ..models.architectures import default_preprocessing
    from ..models.options import adjust_preprocessing
    from ..training.loop import TrainOptions
    from ..training.loop import train as fit

    told: dict[str, Any] = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }
    options = replace(TrainOptions(), **{k: v for k, v in told.items() if v is not None})
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
    done = fit(dataset, arch, options, out, preprocessing=preprocessing, tracker=output.track)
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
