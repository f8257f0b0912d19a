"""How a detector is trained, and in which order it sees which images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..arrays import FloatArray, IntArray
from ..errors import UsageError
from .repeat_factor import check_threshold, epoch_order, repeat_factors

__all__ = ["BoxTrainOptions", "Step", "plan_steps", "stream"]

_STREAMS = ("order", "flips")


@dataclass(frozen=True)
class BoxTrainOptions:
    """How to train a detector: AdamW, linear warm-up, cosine decay, flips, clipped gradients.

    Parameters
    ----------
    epochs : passes over the training images.
    batch_size : images per step; what is left over at the end of an epoch is dropped.
    learning_rate : its highest value.
    weight_decay : AdamW's (Loshchilov and Hutter 2019, arXiv 1711.05101), on all parameters.
    warmup : share of all steps in which the learning rate rises.
    clip_norm : gradients longer than this, over all parameters, are scaled down to it.
    vertical_flip : mirror every second photograph top to bottom too, where there is no up.
    proposals : of an R-CNN, how many per photograph its boxes' head learns from; None means
        torchvision's 512. A small network spends most of its time on them: 128 make a step of
        fasterrcnn_mobilenet_v3_large_320_fpn at 320 x 448 pixels 2.7 times as fast on a CPU.
    repeat_threshold : t of repeat factor sampling; None deals each image once an epoch.
    seed : decides initial weights, order and flips; the same on one machine with the same number
        of threads gives the same weights.

    Raises
    ------
    UsageError
        For values that cannot be trained with.
    """

    epochs: int = 24
    batch_size: int = 4
    learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    warmup: float = 0.1
    clip_norm: float = 5.0
    vertical_flip: bool = False
    proposals: int | None = None
    repeat_threshold: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, good, expected in (
            ("epochs", self.epochs, self.epochs >= 1, "1 or more"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("learning_rate", self.learning_rate, self.learning_rate > 0, "a number above 0"),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0, "0 or more"),
            ("warmup", self.warmup, 0 <= self.warmup < 1, "a share from 0 to below 1"),
            ("clip_norm", self.clip_norm, self.clip_norm > 0, "a number above 0"),
            ("seed", self.seed, self.seed >= 0, "0 or more"),
        ):
            if not good:
                raise UsageError(f"{name} is {value}; expected {expected}.")
        if self.proposals is not None and self.proposals < 1:
            raise UsageError(f"proposals is {self.proposals}; expected 1 or more.")
        if self.repeat_threshold is not None:
            check_threshold(self.repeat_threshold)


@dataclass(frozen=True, eq=False)
class Step:
    """One step of a training: its number and epoch, from 0, and the images it sees."""

    number: int
    epoch: int
    chosen: IntArray


def stream(options: BoxTrainOptions, name: str, number: int) -> np.random.Generator:
    """Return the random numbers of one epoch's ``"order"`` or of one step's ``"flips"``.

    They hang on the seed and the place alone: a resumed training draws them again.
    """
    return np.random.default_rng((options.seed, _STREAMS.index(name), number))


def plan_steps(
    readable: IntArray, labels: Sequence[IntArray], classes: int, options: BoxTrainOptions
) -> list[Step]:
    """Return every step of the training.

    Parameters
    ----------
    readable : array of shape (N,), int64: positions of the images that there are.
    labels : of each of them, those of its boxes.
    classes : number of classes F.
    """
    factors: FloatArray = np.ones(len(readable))
    if options.repeat_threshold is not None:
        factors = repeat_factors(labels, classes, options.repeat_threshold)
    steps: list[Step] = []
    for epoch in range(options.epochs):
        random = stream(options, "order", epoch)
        order = readable[epoch_order(factors, random)]
        size = min(options.batch_size, len(order))
        for chosen in order[: len(order) // size * size].reshape(-1, size):
            steps.append(Step(len(steps), epoch, chosen))
    return steps
