"""Which model runs next, where several share one device."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

__all__ = ["Turns"]


class Turns:
    """Gives the device to the waiting model that has used it least.

    Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996) over engine seconds: a model's
    clock advances by what its runs took, and the waiting model whose clock is furthest behind is
    next. One that was idle starts at the clock of the run under way, so that nobody saves up
    turns. Whoever wants the device all the time gets the same share of it, however long its runs
    are; who wants less waits for one run at most.

    Belongs to one event loop.

    Parameters
    ----------
    slots : how many runs the device takes at once.
    clock : what measures a turn, in seconds.
    """

    def __init__(self, slots: int = 1, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._free = slots
        self._clock = clock
        self._present_s = 0.0
        self._used_s: dict[str, float] = {}
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    @property
    def is_busy(self) -> bool:
        """Whether a turn that was asked for now would have to wait."""
        return not self._free or bool(self._waiting)

    @asynccontextmanager
    async def turn(self, name: str) -> AsyncIterator[None]:
        """Wait for a turn of the model ``name`` and hold it inside the ``async with``."""
        await self._take(name)
        began = self._clock()
        try:
            yield
        finally:
            self._used_s[name] += self._clock() - began
            self._free += 1
            self._grant_soon()

    async def _take(self, name: str) -> None:
        self._used_s[name] = max(self._used_s.get(name, 0.0), self._present_s)
        if not self.is_busy:
            self._begin(name)
            return
        entry = (name, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        self._grant_soon()
        try:
            await entry[1]
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            else:  # it was given the turn in the same breath
                self._free += 1
                self._grant_soon()
            raise

    def _begin(self, name: str) -> None:
        self._free -= 1
        self._present_s = max(self._present_s, self._used_s[name])

    def _grant_soon(self) -> None:
        # Not at once: the model that leaves may ask again right away, and should compete.
        if self._free and self._waiting:
            asyncio.get_running_loop().call_soon(self._grant)

    def _grant(self) -> None:
        while self._free:
            # A cancelled waiter is still in the list until its task has run.
            live = [entry for entry in self._waiting if not entry[1].done()]
            if not live:
                return
            entry = min(live, key=lambda waiter: self._used_s[waiter[0]])
            self._waiting.remove(entry)
            self._begin(entry[0])
            entry[1].set_result(None)
