"""Requests that arrive together run together.

When a batch starts
    The engine is at work: whatever comes meanwhile is the next batch, up to ``max_batch`` images,
    and starts as soon as the engine is free; nothing is delayed for it. The engine is idle: the
    oldest request waits for others until the batch is full, ``max_delay_s`` at most, and not at all
    where that would break a deadline. After a run that nobody shared, and during which nobody came,
    a lone request does not wait: a client that asks one by one has the engine's own latency. The
    first run with company turns the waiting on again.

What is refused
    More images than ``max_batch`` (413), more than ``max_queue`` waiting images (429), an answer
    that would come after the deadline by what was learnt of the engine (503, at once), a deadline
    that passes in the queue (503, then). A run that has begun is delivered, late or not.

Who is in a batch
    The oldest requests, in order, and only ones of the same shapes and dtypes. If the engine
    fails, all of them fail and none is run again: a batch that takes the engine down should not
    do so twice.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .contracts import Arrays, BatchReport
from .failures import Failed, RequestError, TooLarge, TooMany, Unavailable
from .fairness import Turns
from .latency import LatencyModel

__all__ = ["BatchRules", "Batcher"]

Run = Callable[[Arrays], Mapping[str, npt.NDArray[Any]]]

_LOG = logging.getLogger("ltdeploy.serve")
# An idle engine tries a request that looks too slow once its last run is this old. Otherwise one
# slow run, and nobody would be let in to show that it was an exception.
_DOUBT_S = 1.0


@dataclass(frozen=True)
class BatchRules:
    """What runs together, and how much may wait.

    Parameters
    ----------
    max_batch : images of one run at most.
    max_delay_s : how long a request waits for others on an idle engine at most; 0 for none.
    max_queue : images that wait at most, without those that run; ``max_batch`` or more.
    """

    max_batch: int
    max_delay_s: float
    max_queue: int


@dataclass(frozen=True, eq=False)
class _Request:
    feeds: Arrays
    images: int
    came_s: float
    deadline_s: float
    answer: asyncio.Future[Arrays]

    @property
    def kind(self) -> dict[str, tuple[np.dtype[Any], tuple[int, ...]]]:
        """What must be the same of all in a batch: inputs, dtypes, shapes of an image."""
        return {name: (array.dtype, array.shape[1:]) for name, array in self.feeds.items()}


@dataclass(frozen=True)
class _Outcome:
    """What the worker thread hands back; an error travels as a value, whatever its kind."""

    run_s: float
    outputs: Mapping[str, npt.NDArray[Any]]
    error: BaseException | None = None


class Batcher:
    """The queue of one model and the thread that runs it.

    Belongs to one event loop. A model that is swapped gets a new batcher; the old one is closed
    and finishes what it accepted.

    Parameters
    ----------
    run : the engine; its inputs and outputs have the images on their first axis.
    rules : see :class:`BatchRules`.
    turns : what shares the device among models.
    name : of the model, for ``turns`` and the log.
    observe : told of every run, on the event loop.

    Attributes
    ----------
    latency : what was learnt: seconds from asking for the device to the result, so that what other
        models take of it is part of the prediction.
    """

    def __init__(
        self,
        run: Run,
        rules: BatchRules,
        *,
        turns: Turns,
        name: str,
        observe: Callable[[BatchReport], None] | None = None,
    ) -> None:
        self.latency = LatencyModel()
        self._run, self._rules, self._turns, self._name = run, rules, turns, name
        self._observe = observe
        self._queue: deque[_Request] = deque()
        self._queued_images = 0
        self._running_images = 0
        self._asked_s = self._last_run_s = -math.inf
        self._has_company = True
        self._is_closed = False
        self._news = asyncio.Event()
        # It lives as long as there is work.
        self._pump: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"ltdeploy-{name}")

    @property
    def pending_images(self) -> int:
        """Images that wait for their run."""
        return self._queued_images

    async def submit(
        self, feeds: Mapping[str, npt.NDArray[Any]], *, deadline_s: float | None
    ) -> Arrays:
        """Return the outputs for ``feeds``, run together with what else arrives.

        Cancelling it takes the images out of the queue; of a run under way the result is dropped.

        Parameters
        ----------
        feeds : arrays by input name, each with the same n ≥ 1 images on its first axis.
        deadline_s : seconds from now by which the answer is wanted; None for no deadline.

        Returns
        -------
        dict of arrays by output name, with n rows in the order of the images.

        Raises
        ------
        TooLarge
            For more images than a batch may have.
        TooMany
            If the queue is full.
        Unavailable
            If the answer would come too late, or the batcher is closed.
        Failed
            If the engine failed.
        """
        loop = asyncio.get_running_loop()
        images = len(next(iter(feeds.values())))
        self._admit(images, deadline_s, loop.time())
        deadline = math.inf if deadline_s is None else loop.time() + deadline_s
        request = _Request(dict(feeds), images, loop.time(), deadline, loop.create_future())
        self._queue.append(request)
        self._queued_images += images
        self._news.set()
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._work(), name=f"ltdeploy-{self._name}")
        alarm = None if deadline_s is None else loop.call_at(deadline, self._expire, request)
        try:
            return await request.answer
        finally:
            if alarm is not None:
                alarm.cancel()
            if request.answer.cancelled():
                self._drop(request)

    async def close(self, *, drain: bool = True) -> None:
        """Take no more requests, and return when the accepted ones are answered.

        Parameters
        ----------
        drain : whether what waits is run; otherwise it is refused, and only the run under way ends.
        """
        self._is_closed = True
        while not drain and self._queue:
            self._refuse(self._queue[0], _draining())
        self._news.set()
        if self._pump is not None:
            await asyncio.wait({self._pump})
        self._thread.shutdown(wait=False)

    def _admit(self, images: int, deadline_s: float | None, now_s: float) -> None:
        """Raise unless a request of so many images may wait."""
        if self._is_closed:
            raise _draining()
        if images > self._rules.max_batch:
            raise TooLarge(
                f"The request has {images} images; expected {self._rules.max_batch} at most.",
                "batch_too_large",
            )
        if self._queued_images + images > self._rules.max_queue:
            raise TooMany(
                f"The queue is full: {self._queued_images} images wait, and it holds "
                f"{self._rules.max_queue}; try again later.",
                "queue_full",
                retry_after_s=self._predicted_s(0, now_s),
            )
        if deadline_s is None:
            return
        if deadline_s <= 0:
            raise _too_late()
        predicted_s = self._predicted_s(images, now_s)
        is_idle = not self._queue and not self._running_images
        if is_idle and now_s - self._last_run_s > _DOUBT_S:
            predicted_s = 0.0
        if predicted_s > deadline_s:
            raise Unavailable(
                f"The answer would come in about {predicted_s:.3g} s, and the request waits "
                f"{deadline_s:.3g} s at most.",
                "deadline",
                retry_after_s=max(0.0, predicted_s - deadline_s),
            )

    def _predicted_s(self, images: int, now_s: float) -> float:
        """Return when all that is accepted, and ``images`` more, are answered: seconds from now."""
        full, rest = divmod(self._queued_images + images, self._rules.max_batch)
        seconds = full * self.latency.predict(self._rules.max_batch)
        if rest:
            seconds += self.latency.predict(rest)
        if self._running_images:
            ends_s = self._asked_s + self.latency.predict(self._running_images)
            seconds += max(0.0, ends_s - now_s)
        return seconds

    async def _work(self) -> None:
        """Run batches until nothing waits."""
        loop = asyncio.get_running_loop()
        while self._queue:
            await self._gather()
            self._asked_s = loop.time()
            async with self._turns.turn(self._name):
                batch = self._take(loop.time())
                if not batch:
                    continue
                began_s = loop.time()
                outcome = await loop.run_in_executor(self._thread, _run_batch, self._run, batch)
                self._running_images = 0
                self._last_run_s = loop.time()
            self._has_company = len(batch) > 1 or bool(self._queue)
            self._deliver(batch, outcome)
            self._report(batch, outcome, began_s)

    async def _gather(self) -> None:
        """Wait for more requests, as long as that is of use."""
        while (wait_s := self._patience_s()) > 0:
            self._news.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._news.wait()
            except TimeoutError:
                return

    def _patience_s(self) -> float:
        """Return how long the requests that wait can wait for more."""
        if self._is_closed or not self._queue or self._queued_images >= self._rules.max_batch:
            return 0.0
        # While another model has the device, waiting for the turn gathers requests as well.
        if not self._has_company or self._turns.is_busy:
            return 0.0
        start_s = self._queue[0].came_s + self._rules.max_delay_s
        ends_s = start_s + self.latency.predict(self._queued_images)
        if any(request.deadline_s <= ends_s for request in self._queue):
            return 0.0
        return start_s - asyncio.get_running_loop().time()

    def _take(self, now_s: float) -> list[_Request]:
        """Take the next batch out of the queue, in order; it may be empty."""
        batch: list[_Request] = []
        while self._queue:
            request = self._queue[0]
            if request.deadline_s <= now_s:
                self._expire(request)
                continue
            is_too_many = self._running_images + request.images > self._rules.max_batch
            if batch and (is_too_many or request.kind != batch[0].kind):
                break
            self._drop(request)
            self._running_images += request.images
            batch.append(request)
        return batch

    def _drop(self, request: _Request) -> None:
        """Take a request out of the queue, if it is there."""
        if request in self._queue:
            self._queue.remove(request)
            self._queued_images -= request.images

    def _refuse(self, request: _Request, error: RequestError) -> None:
        self._drop(request)
        if not request.answer.done():
            request.answer.set_exception(error)

    def _expire(self, request: _Request) -> None:
        if request in self._queue:
            self._refuse(request, _too_late())

    def _deliver(self, batch: Sequence[_Request], outcome: _Outcome) -> None:
        """Give every request that still waits its rows, or the failure."""
        if outcome.error is not None:
            _LOG.error("the engine of %s failed", self._name, exc_info=outcome.error)
        first = 0
        for request in batch:
            rows = slice(first, first + request.images)
            first = rows.stop
            if request.answer.done():
                continue
            if outcome.error is not None:
                request.answer.set_exception(
                    Failed("The engine failed on this batch; the server's log has more.", "engine")
                )
            else:
                request.answer.set_result({k: v[rows] for k, v in outcome.outputs.items()})

    def _report(self, batch: Sequence[_Request], outcome: _Outcome, began_s: float) -> None:
        images = sum(request.images for request in batch)
        if outcome.error is None:
            self.latency.observe(images, self._last_run_s - self._asked_s)
        if self._observe is None:
            return
        queued_s = [began_s - request.came_s for request in batch]
        failed = outcome.error is not None
        try:
            self._observe(BatchReport(images, len(batch), queued_s, outcome.run_s, failed))
        except Exception:
            _LOG.exception("a run of %s could not be recorded", self._name)


def _draining() -> Unavailable:
    return Unavailable("The server takes no more requests for this model.", "draining")


def _too_late() -> Unavailable:
    return Unavailable("The deadline passed before the run began.", "deadline", retry_after_s=0.0)


def _run_batch(run: Run, batch: Sequence[_Request]) -> _Outcome:
    """Run the batch, in the worker thread."""
    began_s = time.perf_counter()
    try:
        feeds = batch[0].feeds
        if len(batch) > 1:
            feeds = {name: np.concatenate([r.feeds[name] for r in batch]) for name in feeds}
        began_s = time.perf_counter()
        outputs = run(feeds)
        run_s = time.perf_counter() - began_s
        images = sum(request.images for request in batch)
        for name, array in outputs.items():
            if len(array) != images:
                raise ValueError(f"{name} has {len(array)} rows for a batch of {images} images")
    except BaseException as error:  # of any kind: a thread that died would leave clients waiting
        return _Outcome(time.perf_counter() - began_s, {}, error)
    return _Outcome(run_s, outputs)
