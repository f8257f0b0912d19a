"""Train an image classifier with cross-entropy, from nothing to a checkpoint."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .._optional import require
from ..classes import ClassTable
from ..datasets.base import Dataset
from ..datasets.loader import Batch
from ..errors import DataError, UsageError
from ..images import Preprocessing, normalise
from ..progress import Tracker, silent
from .batches import TrainImages, crop_and_flip
from .checkpointing import TrainData, save_checkpoint

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Tell", "TrainOptions", "TrainResult", "epoch_line", "learning_rate", "train"]

Tell = Callable[[str], None]

TRAINED_WITH = "cross_entropy"


@dataclass(frozen=True)
class TrainOptions:
    """How to train: SGD with Nesterov momentum, linear warm-up, cosine decay.

    Parameters
    ----------
    epochs : passes over the training images.
    batch_size : images per step.
    learning_rate : its highest value.
    momentum : of SGD.
    weight_decay : on all parameters.
    warmup : share of all steps in which the learning rate rises.
    padding : random shift as a share of the shorter side of the images.
    seed : decides initial weights, order and augmentation; the same on one machine with the same
        number of threads gives the same weights.

    Raises
    ------
    UsageError
        For values that cannot be trained with.
    """

    epochs: int = 90
    batch_size: int = 64
    learning_rate: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    warmup: float = 0.1
    padding: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, good, expected in (
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size, self.batch_size >= 2, "2 or more"),
            ("learning_rate", self.learning_rate, self.learning_rate > 0, "a number above 0"),
            ("momentum", self.momentum, 0 < self.momentum < 1, "a number between 0 and 1"),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more"),
            ("warmup", self.warmup, 0 <= self.warmup < 1, "a share from 0 to below 1"),
            ("padding", self.padding, 0 <= self.padding < 0.5, "a share from 0 to below 0.5"),
            ("seed", self.seed, self.seed >= 0, "0 or more"),
        ):
            if not good:
                raise UsageError(f"{name} is {value}; expected {expected}.")


@dataclass(frozen=True)
class TrainResult:
    """What came out of a training.

    Parameters
    ----------
    path : the checkpoint.
    classes : names and training counts; images left out are not counted.
    losses : mean cross-entropy of each epoch.
    accuracy : share of the last epoch's augmented training images that were recognised, in percent.
    unreadable : name and reason of each training image that was left out.
    seconds : time spent training, reading the images included.
    """

    path: Path
    classes: ClassTable
    losses: tuple[float, ...]
    accuracy: float
    unreadable: tuple[tuple[str, str], ...]
    seconds: float


def train(
    dataset: Dataset,
    arch: str,
    options: TrainOptions,
    out: str | os.PathLike[str],
    *,
    preprocessing: Preprocessing | None = None,
    tracker: Tracker = silent,
    tell: Tell | None = None,
) -> TrainResult:
    """Train a network on a data set and write its checkpoint to ``out``.

    Parameters
    ----------
    arch : ``timm:NAME``, ``torchvision:NAME``, ``cifar:resnetN`` or ``hf:FOLDER``; weights start at
        random.
    preprocessing : what an image becomes before augmentation; None means the architecture's own.
    tracker : shows progress, one item per step.
    tell : takes a sentence at the end of each epoch.

    Raises
    ------
    DataError
        If the data set has fewer than two classes, or no image of it can be read.
    UsageError
        For an unknown architecture, or when the loss stops being a number.
    """
    torch = require("torch", extra="torch", purpose="train")
    architectures = require(
        "ltdeploy.models.architectures", extra="torch", purpose="build networks"
    )
    started = time.perf_counter()
    names = ClassTable.from_counts(dataset.counts().tolist(), dataset.class_names).names
    if len(names) < 2:
        raise DataError(
            f"The data set {dataset.name} has one class, {names[0]!r}; expected at least two to "
            "tell apart."
        )
    size = preprocessing or architectures.default_preprocessing(arch)
    # The caller's random state is left as it was.
    with torch.random.fork_rng():
        torch.manual_seed(options.seed)
        side_px = size.height_px if size.height_px == size.width_px else None
        module = architectures.build(arch, len(names), image_size_px=side_px)
        images = TrainImages(dataset, size, tracker=tracker)
        losses, accuracy = _fit(module, images, len(dataset), size, options, tracker, tell, arch)
    # Only now is every image known that could not be read: large data sets are read as they go.
    counts = np.bincount(dataset.labels[images.readable], minlength=len(names))
    classes = ClassTable.from_counts(counts.tolist(), names)
    save_checkpoint(
        out,
        module.state_dict(),
        arch=arch,
        classes=classes,
        preprocessing=size,
        trained_with=TRAINED_WITH,
        epochs=options.epochs,
        seed=options.seed,
        train_data=TrainData(dataset.name, len(images.readable), images.hashes()),
    )
    return TrainResult(
        Path(out),
        classes,
        tuple(losses),
        accuracy,
        tuple(images.unreadable),
        time.perf_counter() - started,
    )


def learning_rate(step: int, steps: int, options: TrainOptions) -> float:
    """Return the learning rate of a step, counted from 0.

    It rises in equal parts over the warm-up, then falls as ``½(1 + cos πp)`` over the rest
    (Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5, without restarts).
    """
    rising = round(options.warmup * steps)
    if step < rising:
        return options.learning_rate * (step + 1) / rising
    done = (step - rising) / max(1, steps - rising)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def epoch_line(epoch: int, epochs: int, loss: float, seconds: float) -> str:
    """Return what is said at the end of an epoch, counted from 0.

    Examples
    --------
    >>> epoch_line(0, 24, 1.5, 61.2)
    'Epoch 1 of 24: loss 1.500, 61.2 s'
    """
    return f"Epoch {epoch + 1} of {epochs}: loss {loss:.3f}, {seconds:.1f} s"


def _fit(
    module: nn.Module,
    images: TrainImages,
    count: int,
    preprocessing: Preprocessing,
    options: TrainOptions,
    tracker: Tracker,
    tell: Tell | None,
    arch: str,
) -> tuple[list[float], float]:
    """Run all epochs; return the mean loss of each and the last one's accuracy in percent."""
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Channels last is the layout in which convolutions are fastest, on CPUs above all.
    module.train().to(device).to(memory_format=torch.channels_last)
    loss_of = torch.nn.functional.cross_entropy
    optimiser = torch.optim.SGD(
        module.parameters(),
        lr=options.learning_rate,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        nesterov=True,
    )
    random = np.random.default_rng(options.seed)
    steps = options.epochs * max(1, count // options.batch_size)
    padding_px = int(options.padding * min(preprocessing.height_px, preprocessing.width_px))
    losses: list[float] = []
    right = seen = 0

    def batches() -> Iterator[tuple[int, Batch]]:
        for epoch in range(options.epochs):
            began = time.monotonic()
            for batch in images.deal(random, options.batch_size):
                yield epoch, batch
            if tell is not None and len(losses) > epoch:
                seconds = time.monotonic() - began
                tell(epoch_line(epoch, options.epochs, losses[epoch], seconds))

    shown = tracker(batches(), total=steps, label=f"Training {arch}")
    for step, (epoch, batch) in enumerate(shown):
        if epoch == len(losses):
            losses.append(0.0)
            right = seen = 0
        pixels = normalise(crop_and_flip(batch.images, random, padding_px), preprocessing)
        inputs = torch.from_numpy(pixels).to(device, memory_format=torch.channels_last)
        labels = torch.from_numpy(batch.labels).to(device)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(min(step, steps - 1), steps, options)
        logits = module(inputs)
        loss = loss_of(logits, labels)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise UsageError(
                f"The loss became {value} in epoch {epoch + 1} of {options.epochs}; the learning "
                f"rate {options.learning_rate:g} is too high for {arch}. Try a tenth of it."
            )
        right += int((logits.argmax(dim=1) == labels).sum())
        seen += len(labels)
        losses[-1] += (value - losses[-1]) * len(labels) / seen
    module.eval().to("cpu").to(memory_format=torch.contiguous_format)
    return losses, 100 * right / max(1, seen)
