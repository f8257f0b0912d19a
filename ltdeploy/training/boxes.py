"""Train a detector with torchvision's own losses, from nothing to a checkpoint."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .._optional import require
from ..arrays import IntArray
from ..canvas import Canvas
from ..classes import ClassTable
from ..datasets.boxes import BoxDataset
from ..errors import DataError, UsageError
from ..models.detectors.architectures import (
    ARCHITECTURES,
    RCNN_KINDS,
    Architecture,
    build_detector,
    check_detector_arch,
)
from ..models.detectors.design import DESIGNS
from ..progress import Tracker, silent
from .box_batches import TrainCanvases
from .box_loop import Batches, fit
from .box_masks import check_outlined
from .box_schedule import BoxTrainOptions, plan_steps
from .checkpointing import TrainData, save_detector_checkpoint
from .interrupts import hold_back
from .loop import Tell
from .resume import State, check_resume, resume_path

if TYPE_CHECKING:
    from torch import nn

    from .class_loss import ClassLoss

__all__ = ["BoxTrainOptions", "BoxTrainResult", "train_detector"]


@dataclass(frozen=True)
class BoxTrainResult:
    """What came out of a detector's training.

    Parameters
    ----------
    path : the checkpoint.
    classes : names and training images per class; images left out are not counted.
    instances : boxes per class.
    losses : of each epoch the mean of each loss, by torchvision's names, and their ``total``.
    unreadable : name and reason of each training image that was left out.
    steps : over all epochs.
    resumed_from : how many of them an earlier, interrupted run had done.
    seconds : time that this run took, reading the images included.
    """

    path: Path
    classes: ClassTable
    instances: tuple[int, ...]
    losses: tuple[Mapping[str, float], ...]
    unreadable: tuple[tuple[str, str], ...]
    steps: int
    resumed_from: int
    seconds: float


def train_detector(
    dataset: BoxDataset,
    arch: str,
    options: BoxTrainOptions,
    out: str | os.PathLike[str],
    *,
    canvas: Canvas | None = None,
    class_loss: ClassLoss | None = None,
    trained_with: str | None = None,
    resume: bool = False,
    keep_every_s: float = 300.0,
    tracker: Tracker = silent,
    tell: Tell | None = None,
) -> BoxTrainResult:
    """Train a detector on a data set and write its checkpoint to ``out``.

    What an interrupted training needs to go on is kept in ``out.resume`` until the end. Ctrl-C
    lets the step under way end, and writes it.

    Parameters
    ----------
    arch : ``torchvision:NAME``; weights start at random. A Mask R-CNN learns masks from the data
        set's segmentations, too.
    canvas : what a photograph is put on; None means the architecture's own.
    class_loss : from logits (R, F + 1) and labels (R,), 0 the background, to a scalar; for R-CNNs.
        None means cross-entropy.
    trained_with : the name of ``class_loss``, for the checkpoint.
    resume : go on with the interrupted training of the same name; where there is none, start.
    keep_every_s : how much time an interruption may cost that is no Ctrl-C: a power cut, a kill.
    tracker : shows progress, one item per step.
    tell : takes a sentence at the end of each epoch.

    Raises
    ------
    DataError
        If no image can be read, none has a box, or a Mask R-CNN's objects lack segmentations.
    UsageError
        For an architecture that cannot be trained, a class loss that does not suit it or has no
        name, a canvas smaller than a cell of its coarsest level, an interrupted training that would
        be overwritten or differs, a finished one to go on with, or a loss that stops being a
        number.
    CheckpointError
        If a file cannot be written, or the interrupted training cannot be read.
    TrainingInterrupted
        On Ctrl-C after a step; :exc:`KeyboardInterrupt` before the first.
    """
    torch = require("torch", extra="torch", purpose="train")
    started = time.perf_counter()
    architecture = _trainable(arch, class_loss, trained_with, options)
    is_rcnn = architecture.kind in RCNN_KINDS
    size = canvas or architecture.canvas()
    _check_canvas(size, arch)
    check_resume(out, resume=resume)
    with_masks = DESIGNS[check_detector_arch(arch)].family == "maskrcnn"
    if with_masks:
        check_outlined(dataset, instead=arch.replace("maskrcnn", "fasterrcnn"))
    images = TrainCanvases(dataset, size, with_masks=with_masks, tracker=tracker)
    labels = images.labels()
    classes, instances = _count(dataset, labels)
    plan = plan_steps(images.readable, labels, len(classes), options)
    loss_name = trained_with or ("cross_entropy" if is_rcnn else "focal")
    run = {
        "arch": arch,
        **asdict(options),
        "trained_with": loss_name,
        "canvas": size.to_dict(),
        "class_names": list(classes.names),
        "data": _digest(dataset, images, with_masks),
    }
    path = resume_path(out)
    # The caller's random state is left as it was.
    with hold_back() as held, torch.random.fork_rng():
        torch.manual_seed(options.seed)
        module = build_detector(arch, len(classes), size)
        with _trained_by(module, is_rcnn, class_loss, options.proposals):
            state = State(path, run, keep_every_s)
            # torchvision's R-CNNs keep label 0 for the background, its other detectors do not.
            batches = Batches(images, size, options, first_label=int(is_rcnn))
            progress, resumed_from = fit(
                module, batches, plan, state, options, held, tracker, tell, arch
            )
        save_detector_checkpoint(
            out,
            module.state_dict(),
            arch=arch,
            classes=classes,
            instances=instances,
            canvas=size,
            trained_with=loss_name,
            sampler=_sampler(options),
            epochs=options.epochs,
            seed=options.seed,
            train_data=TrainData(dataset.name, len(images.readable), images.hashes),
        )
        path.unlink(missing_ok=True)
    return BoxTrainResult(
        Path(out),
        classes,
        instances,
        tuple(progress.means()),
        tuple(images.unreadable),
        len(plan),
        resumed_from,
        time.perf_counter() - started,
    )


def _trainable(
    arch: str, class_loss: ClassLoss | None, trained_with: str | None, options: BoxTrainOptions
) -> Architecture:
    architecture = ARCHITECTURES[check_detector_arch(arch)]
    if class_loss is not None and architecture.kind not in RCNN_KINDS:
        raise UsageError(
            f"A class loss was given for {arch}, whose head scores each class by itself; expected "
            "an R-CNN, for example torchvision:fasterrcnn_resnet50_fpn."
        )
    if options.proposals is not None and architecture.kind not in RCNN_KINDS:
        raise UsageError(
            f"proposals is {options.proposals}, but {arch} makes none; leave it out, or train an "
            "R-CNN, for example torchvision:fasterrcnn_resnet50_fpn."
        )
    if class_loss is not None and trained_with is None:
        raise UsageError(
            "A class loss was given without its name; expected trained_with, for example "
            "'seesaw': fixes must know whether the loss corrected for the class counts already."
        )
    return architecture


def _check_canvas(canvas: Canvas, arch: str) -> None:
    # The last level of an R-CNN's pyramid has stride 64, that of a one-stage detector's 128.
    least_px = 128 if DESIGNS[check_detector_arch(arch)].is_one_stage else 64
    if min(canvas.height_px, canvas.width_px) < least_px:
        raise UsageError(
            f"The canvas is {canvas.height_px}x{canvas.width_px}; expected both sides to be "
            f"{least_px} pixels or more, one cell of the coarsest level at which {arch} looks for "
            "objects. Give a larger --canvas, like 320x448."
        )


def _trained_by(
    module: nn.Module, is_rcnn: bool, class_loss: ClassLoss | None, proposals: int | None
) -> AbstractContextManager[None]:
    if not is_rcnn:
        return nullcontext()
    from torch.nn.functional import cross_entropy

    from .class_loss import using_class_loss

    return using_class_loss(module, class_loss or cross_entropy, proposals)


def _count(dataset: BoxDataset, labels: Sequence[IntArray]) -> tuple[ClassTable, tuple[int, ...]]:
    """Return the class table, counted in images, and the boxes per class."""
    classes = len(dataset.class_names)
    instances = np.bincount(np.concatenate(labels), minlength=classes)
    if not instances.any():
        raise DataError(
            f"None of the {len(labels)} readable images of {dataset.name} has a box to train on; "
            "expected at least one that is no crowd."
        )
    held = np.concatenate([np.unique(one) for one in labels])
    counts = tuple(np.bincount(held, minlength=classes).tolist())
    table = ClassTable(dataset.class_names, counts, dataset.class_table().rule)
    return table, tuple(instances.tolist())


def _sampler(options: BoxTrainOptions) -> dict[str, Any] | None:
    if options.repeat_threshold is None:
        return None
    return {"name": "repeat_factor", "t": options.repeat_threshold}


def _digest(dataset: BoxDataset, images: TrainCanvases, with_masks: bool) -> str:
    digest = hashlib.sha256(images.hashes.tobytes())
    for index in images.readable:
        truth = dataset.truth(int(index))
        for values in (truth.boxes, truth.labels, truth.crowd):
            digest.update(np.ascontiguousarray(values).tobytes())
        for annotation in truth.ids[~truth.crowd].tolist() if with_masks else ():
            digest.update(repr(dataset.segmentations[annotation]).encode())
    return digest.hexdigest()
