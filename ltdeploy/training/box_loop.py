"""The steps of a detector's training, from where it stands to the end."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..canvas import Canvas
from ..errors import UsageError
from ..images import normalise
from ..progress import Tracker
from .box_batches import BoxSample, TrainCanvases, flip
from .box_schedule import BoxTrainOptions, Step, stream
from .interrupts import HeldBack, TrainingInterrupted
from .loop import Tell, TrainOptions, epoch_line, learning_rate
from .resume import Progress, State

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

__all__ = ["Batches", "fit"]


@dataclass(frozen=True)
class Batches:
    """What torchvision's detectors take in training.

    Parameters
    ----------
    images : the canvases and their boxes, and masks where they are trained on.
    canvas : tells mean and standard deviation.
    options : tell the flips.
    first_label : what class 0 is called.
    """

    images: TrainCanvases
    canvas: Canvas
    options: BoxTrainOptions
    first_label: int

    def deal(
        self, plan: Sequence[Step], device: torch.device
    ) -> Iterator[tuple[list[Tensor], list[dict[str, Tensor]]]]:
        """Yield images and targets of each step."""
        import torch

        dealt = self.images.batches(step.chosen for step in plan)
        for step, samples in zip(plan, dealt, strict=True):
            random = stream(self.options, "flips", step.number)
            turned = [
                flip(
                    sample,
                    horizontal=bool(random.random() < 0.5),
                    vertical=bool(random.random() < 0.5) and self.options.vertical_flip,
                )
                for sample in samples
            ]
            stacked = np.stack([sample.pixels for sample in turned])
            pixels = torch.from_numpy(normalise(stacked, self.canvas.as_preprocessing()))
            yield list(pixels.to(device)), [self._target(sample, device) for sample in turned]

    def _target(self, sample: BoxSample, device: torch.device) -> dict[str, Tensor]:
        import torch

        target = {
            "boxes": torch.from_numpy(sample.boxes),
            "labels": torch.from_numpy(sample.labels + self.first_label),
        }
        if sample.masks is not None:
            target["masks"] = torch.from_numpy(sample.masks)
        return {name: value.to(device) for name, value in target.items()}


def fit(
    module: nn.Module,
    batches: Batches,
    plan: Sequence[Step],
    state: State,
    options: BoxTrainOptions,
    held: HeldBack,
    tracker: Tracker,
    tell: Tell | None,
    arch: str,
) -> tuple[Progress, int]:
    """Run the steps that are left; return how it went, and how many had been done before.

    Raises
    ------
    TrainingInterrupted
        If Ctrl-C was pressed, or the tracker raised :exc:`KeyboardInterrupt`, after a step.
    """
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    # Channels last is the layout in which convolutions are fastest, on CPUs above all.
    module.train().to(device).to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(
        module.parameters(), lr=options.learning_rate, weight_decay=options.weight_decay
    )
    schedule = TrainOptions(learning_rate=options.learning_rate, warmup=options.warmup)
    progress = state.read(module, optimiser)
    left = plan[progress.step :]
    resumed_from = progress.step
    shown = tracker(batches.deal(left, device), total=len(left), label=f"Training {arch}")
    written = began = time.monotonic()
    try:
        for step, (inputs, targets) in zip(left, shown, strict=True):
            for group in optimiser.param_groups:
                group["lr"] = learning_rate(step.number, len(plan), schedule)
            losses: dict[str, Tensor] = module(inputs, targets)
            total = torch.stack(list(losses.values())).sum()
            _check_finite("loss", float(total.detach()), step, options, arch)
            optimiser.zero_grad(set_to_none=True)
            total.backward()  # type: ignore[no-untyped-call]
            # The last step has no next loss to show that it went wrong.
            norm = torch.nn.utils.clip_grad_norm_(module.parameters(), options.clip_norm)
            _check_finite("gradient's norm", float(norm), step, options, arch)
            optimiser.step()
            values = {name: float(value.detach()) for name, value in losses.items()}
            progress.add(step.epoch, values | {"total": float(total.detach())})
            now = time.monotonic()
            if progress.step == len(plan) or plan[progress.step].epoch > step.epoch:
                if tell is not None:
                    loss = progress.means()[step.epoch]["total"]
                    tell(epoch_line(step.epoch, options.epochs, loss, now - began))
                began = now
            held.release()
            if now - written >= state.every_s:
                state.write(module, optimiser, progress)
                written = time.monotonic()
    except KeyboardInterrupt:  # never in the midst of a step: there Ctrl-C is held back
        if not progress.step:
            raise
        if progress.step > resumed_from:
            state.write(module, optimiser, progress)
        raise TrainingInterrupted(progress.step, len(plan), state.path) from None
    module.eval().to("cpu").to(memory_format=torch.contiguous_format)
    return progress, resumed_from


def _check_finite(what: str, value: float, step: Step, options: BoxTrainOptions, arch: str) -> None:
    if not math.isfinite(value):
        raise UsageError(
            f"The {what} became {value} in epoch {step.epoch + 1} of {options.epochs}; the "
            f"learning rate {options.learning_rate:g} is too high for {arch}. Try a tenth of it."
        )
