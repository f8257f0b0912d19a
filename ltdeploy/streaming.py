"""Answer a stream of images, decoding the next while the engine runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias, TypeVar

from .canvas import Canvas
from .datasets.loader import Decoded, decode_ahead
from .images import ImageSource, Preprocessing
from .inference import batch_size_for

__all__ = ["NamedImage", "stream_answers"]

Answer = TypeVar("Answer")
NamedImage: TypeAlias = tuple[str, ImageSource | Callable[[], ImageSource]]


def stream_answers(
    images: Iterable[NamedImage],
    preprocessing: Preprocessing | Canvas,
    answer: Callable[[Decoded, list[str]], Iterable[Answer]],
    refuse: Callable[[str, str], Answer],
) -> Iterator[Answer]:
    """Yield one answer per image, in order.

    Parameters
    ----------
    images : name and image, or name and a function that gets the image; it is called in the
        decoding threads. Taken in the caller's thread, a few batches ahead of the answers.
    answer : answers a batch of readable images, given with their names.
    refuse : gives the answer for an image that cannot be used, from its name and the reason.
    """
    names: deque[str] = deque()  # of the images under way: decoding runs ahead

    def noted() -> Iterator[NamedImage]:
        for name, image in images:
            names.append(name)
            yield name, image

    runs = decode_ahead(noted(), _fetch, preprocessing, batch_size=batch_size_for(preprocessing))
    first = 0
    try:
        for run in runs:
            batch = [names.popleft() for _ in range(len(run.positions) + len(run.failures))]
            failed = {place - first: str(error) for place, error in run.failures}
            readable = [name for place, name in enumerate(batch) if place not in failed]
            # A batch of no image breaks an engine that reuses its buffers (OpenVINO).
            answered = iter(answer(run, readable) if readable else ())
            for place, name in enumerate(batch):
                yield refuse(name, failed[place]) if place in failed else next(answered)
            first += len(batch)
    finally:
        runs.close()


def _fetch(named: NamedImage) -> tuple[str, ImageSource]:
    name, image = named
    return name, image() if callable(image) else image
