"""Ctrl-C in the midst of a step waits for the step's end: half a step is nothing to go on with."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

__all__ = ["HeldBack", "TrainingInterrupted", "hold_back"]


class TrainingInterrupted(KeyboardInterrupt):
    """A training was told to stop, and what it needs to go on is written.

    Parameters
    ----------
    step, steps : steps done, and all there are.
    path : what the training goes on from.
    """

    def __init__(self, step: int, steps: int, path: Path) -> None:
        super().__init__(f"Interrupted after step {step} of {steps}; {path} holds the rest.")
        self.step = step
        self.steps = steps
        self.path = path


class HeldBack:
    """Whether Ctrl-C was pressed meanwhile."""

    def __init__(self) -> None:
        self.pressed = False

    def release(self) -> None:
        """Raise :exc:`KeyboardInterrupt` if it was."""
        if self.pressed:
            raise KeyboardInterrupt


@contextlib.contextmanager
def hold_back() -> Iterator[HeldBack]:
    """Hold Ctrl-C back while the block runs; one that the block let pass is heard at its end.

    Outside of the main thread, and where the shell said not to listen, nothing is changed.
    """
    held = HeldBack()
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield held
        return

    def note(number: int, frame: FrameType | None) -> None:
        held.pressed = True

    signal.signal(signal.SIGINT, note)
    try:
        yield held
    finally:
        signal.signal(signal.SIGINT, before)
    if held.pressed:
        before(signal.SIGINT, None)
