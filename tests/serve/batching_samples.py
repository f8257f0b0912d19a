"""An engine that runs when a test lets it, and batchers around it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from ltdeploy.serve.batching import Batcher, BatchRules
from ltdeploy.serve.contracts import BatchReport
from ltdeploy.serve.fairness import Turns

HANG_S = 60.0

Arrays = dict[str, npt.NDArray[Any]]


class GatedEngine:
    """Adds 1000 to every number, one run for each call of :meth:`let`.

    ``batches`` are the inputs of all runs; ``fails`` is raised where it is set.
    """

    def __init__(self, runs: int = 0) -> None:
        self.batches: list[Arrays] = []
        self.fails: BaseException | None = None
        self._may_run = threading.Semaphore(runs)
        self._began = threading.Semaphore(0)

    def __call__(self, feeds: Arrays) -> Mapping[str, npt.NDArray[Any]]:
        self.batches.append(feeds)
        self._began.release()
        if not self._may_run.acquire(timeout=HANG_S):
            raise TimeoutError("the test never let the engine run")
        if self.fails is not None:
            raise self.fails
        return {"logits": feeds["images"] + 1000}

    @property
    def ran(self) -> list[list[int]]:
        """The numbers in each batch."""
        return [batch["images"][:, 0].tolist() for batch in self.batches]

    def let(self, runs: int = 1) -> None:
        """Let it end so many runs."""
        self._may_run.release(runs)

    async def began(self) -> None:
        """Wait until it has begun one more run."""
        assert await asyncio.to_thread(self._began.acquire, timeout=HANG_S)


def batcher_of(
    engine: Callable[[Arrays], Mapping[str, npt.NDArray[Any]]],
    *,
    max_batch: int = 4,
    max_delay_s: float = 0.0,
    max_queue: int = 64,
    turns: Turns | None = None,
    name: str = "model",
    observe: Callable[[BatchReport], None] | None = None,
) -> Batcher:
    """Return a batcher of the engine."""
    rules = BatchRules(max_batch=max_batch, max_delay_s=max_delay_s, max_queue=max_queue)
    return Batcher(engine, rules, turns=turns or Turns(), name=name, observe=observe)


def numbered(*numbers: int) -> Arrays:
    """Return feeds of one image per number."""
    return {"images": np.array(numbers, np.int64)[:, None]}


async def ask(batcher: Batcher, *numbers: int, deadline_s: float | None = None) -> list[int]:
    """Submit images of these numbers and return the numbers in the answer."""
    outputs = await batcher.submit(numbered(*numbers), deadline_s=deadline_s)
    return [int(number) for number in outputs["logits"][:, 0]]


async def settle() -> None:
    """Let everything happen that needs no thread and no time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def start(batcher: Batcher, *numbers: int, deadline_s: float | None = None) -> Asked:
    """Submit and return the task, when the request has been queued."""
    task = asyncio.create_task(ask(batcher, *numbers, deadline_s=deadline_s))
    await settle()
    return task


Asked = asyncio.Task[list[int]]


def within(coroutine: Callable[[], Awaitable[None]]) -> None:
    """Run the test; a hang is a failure, and so is what asyncio would only log."""
    mishaps: list[dict[str, Any]] = []

    async def limited() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _loop, context: mishaps.append(context))
        async with asyncio.timeout(HANG_S):
            await coroutine()

    asyncio.run(limited())
    assert not mishaps
