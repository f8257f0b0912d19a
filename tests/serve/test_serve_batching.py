"""Batches: who runs together, when, and who is refused before."""

from __future__ import annotations

import asyncio
import threading
import time

import numpy as np
import pytest
from batching_samples import Arrays, GatedEngine, ask, batcher_of, numbered, settle, start, within

from ltdeploy.serve import batching
from ltdeploy.serve.contracts import BatchReport
from ltdeploy.serve.failures import TooLarge, TooMany, Unavailable
from ltdeploy.serve.fairness import Turns

_LONG_S = 1000.0  # a delay that no test waits for


def test_what_comes_during_a_run_runs_together_in_order() -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine, max_batch=4)
        first = await start(batcher, 1)
        await engine.began()
        rest = [await start(batcher, *numbers) for numbers in ((2,), (3, 4), (5,), (6, 7))]
        assert batcher.pending_images == 6
        engine.let(3)
        assert await first == [1001]
        assert [await task for task in rest] == [[1002], [1003, 1004], [1005], [1006, 1007]]
        assert engine.ran == [[1], [2, 3, 4, 5], [6, 7]]
        assert batcher.pending_images == 0
        await batcher.close()

    within(check)


def test_requests_are_not_split_or_overtaken() -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine, max_batch=4)
        first = await start(batcher, 1)
        await engine.began()
        rest = [await start(batcher, *numbers) for numbers in ((2, 3, 4), (5, 6), (7,))]
        engine.let(3)
        await asyncio.gather(first, *rest)
        assert engine.ran == [[1], [2, 3, 4], [5, 6, 7]]
        await batcher.close()

    within(check)


def test_a_request_alone_is_not_copied() -> None:
    async def check() -> None:
        engine = GatedEngine(runs=1)
        batcher = batcher_of(engine)
        feeds = numbered(1, 2)
        await batcher.submit(feeds, deadline_s=None)
        assert engine.batches[0]["images"] is feeds["images"]
        await batcher.close()

    within(check)


def test_only_like_runs_with_like() -> None:
    async def check() -> None:
        seen: list[tuple[str, tuple[int, ...]]] = []
        engine = GatedEngine()

        def run(feeds: Arrays) -> Arrays:
            seen.append((feeds["images"].dtype.name, feeds["images"].shape))
            return dict(engine(feeds))

        batcher = batcher_of(run)
        first = await start(batcher, 1)
        await engine.began()
        narrow, wide = np.zeros((1, 1), np.int16), np.zeros((1, 2), np.int64)
        tasks = [
            asyncio.create_task(batcher.submit({"images": images}, deadline_s=None))
            for images in (narrow, narrow, wide, wide, narrow)
        ]
        await settle()
        engine.let(5)
        await asyncio.gather(first, *tasks)
        assert seen == [
            ("int64", (1, 1)),
            ("int16", (2, 1)),
            ("int64", (2, 2)),
            ("int16", (1, 1)),
        ]
        await batcher.close()

    within(check)


def test_the_engine_runs_in_one_thread_that_is_not_the_loops() -> None:
    async def check() -> None:
        threads = set()

        def run(feeds: Arrays) -> Arrays:
            threads.add(threading.current_thread())
            return {"logits": feeds["images"]}

        batcher = batcher_of(run, max_batch=1)
        await asyncio.gather(*(ask(batcher, number) for number in range(20)))
        assert len(threads) == 1
        assert threading.main_thread() not in threads
        await batcher.close()

    within(check)


def test_an_idle_engine_waits_until_the_batch_is_full() -> None:
    async def check() -> None:
        engine = GatedEngine(runs=1)
        batcher = batcher_of(engine, max_batch=3, max_delay_s=_LONG_S)
        two = await start(batcher, 1, 2)
        assert engine.ran == []
        assert await ask(batcher, 3) == [1003]
        assert await two == [1001, 1002]
        assert engine.ran == [[1, 2, 3]]
        await batcher.close()

    within(check)


def test_a_lone_request_waits_no_longer_than_the_delay() -> None:
    async def check() -> None:
        engine = GatedEngine(runs=1)
        batcher = batcher_of(engine, max_delay_s=0.01)
        assert await ask(batcher, 1) == [1001]
        await batcher.close()

    within(check)


def test_the_delay_gives_way_to_a_deadline() -> None:
    async def check() -> None:
        engine = GatedEngine(runs=1)
        batcher = batcher_of(engine, max_delay_s=_LONG_S)
        waits = await start(batcher, 1)
        assert await ask(batcher, 2, deadline_s=_LONG_S / 2) == [1002]
        assert await waits == [1001]
        await batcher.close()

    within(check)


def test_waiting_is_for_company_that_lately_came() -> None:
    async def check() -> None:
        engine = GatedEngine(runs=1)
        batcher = batcher_of(engine, max_batch=2, max_delay_s=_LONG_S)
        assert await ask(batcher, 1, 2) == [1001, 1002]
        engine.let(3)
        for number in (3, 4, 5):  # the runs were alone: no waiting
            assert await ask(batcher, number) == [1000 + number]
        busy = await start(batcher, 6)
        await asyncio.gather(*(engine.began() for _ in range(5)))
        follows = await start(batcher, 7, 8)
        engine.let(2)
        await asyncio.gather(busy, follows)
        alone = await start(batcher, 9)  # nobody came during the run of 7 and 8
        engine.let()
        await alone
        busy = await start(batcher, 10)
        await asyncio.gather(*(engine.began() for _ in range(3)))
        pair = [await start(batcher, number) for number in (11, 12)]
        engine.let(2)
        await asyncio.gather(busy, *pair)
        waits = await start(batcher, 13)  # the run of 11 and 12 was shared
        assert engine.ran[-1] == [11, 12]
        engine.let()
        await asyncio.gather(waits, ask(batcher, 14))
        assert engine.ran[-1] == [13, 14]
        await batcher.close()

    within(check)


def test_too_large_a_batch_is_refused() -> None:
    async def check() -> None:
        engine = GatedEngine(runs=1)
        batcher = batcher_of(engine, max_batch=2)
        with pytest.raises(TooLarge, match="3 images; expected 2 at most") as refused:
            await ask(batcher, 1, 2, 3)
        assert refused.value.cause == "batch_too_large"
        assert await ask(batcher, 1, 2) == [1001, 1002]
        await batcher.close()

    within(check)


def test_the_queue_is_bounded_by_images() -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine, max_batch=4, max_queue=5)
        for images in (1, 2, 4):
            batcher.latency.observe(images, 10.0 * images)
        tasks = [await start(batcher, 1)]
        await engine.began()
        tasks += [await start(batcher, 2, 3), await start(batcher, 4, 5)]
        with pytest.raises(TooMany, match="4 images wait, and it holds 5") as refused:
            await ask(batcher, 6, 7)
        assert refused.value.cause == "queue_full"
        # What runs has 10 s to go, what waits needs 40.
        assert refused.value.retry_after_s == pytest.approx(50, abs=9)
        tasks.append(await start(batcher, 6))  # one more fits
        assert batcher.pending_images == 5
        engine.let(9)
        await asyncio.gather(*tasks)
        await batcher.close()

    within(check)


@pytest.mark.parametrize(("deadline_s", "is_refused"), [(25.0, True), (45.0, False)])
def test_a_deadline_that_will_be_missed_is_refused_at_once(
    deadline_s: float, is_refused: bool
) -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine, max_batch=1)
        batcher.latency.observe(1, 10.0)
        tasks = [await start(batcher, 1)]
        await engine.began()
        tasks.append(await start(batcher, 2))
        late = await start(batcher, 3, deadline_s=deadline_s)  # what runs, what waits, itself: 30 s
        assert late.done() == is_refused
        assert batcher.pending_images == 2 - is_refused
        engine.let(3)
        if is_refused:
            with pytest.raises(Unavailable, match="waits 25 s at most") as refused:
                await late
            assert refused.value.cause == "deadline"
            assert refused.value.retry_after_s == pytest.approx(5.0, abs=4.9)
        else:
            assert await late == [1003]
        await asyncio.gather(*tasks)
        await batcher.close()

    within(check)


def test_nobody_is_refused_on_a_guess() -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine, max_batch=1)
        tasks = [await start(batcher, number, deadline_s=40.0) for number in range(30)]
        assert not any(task.done() for task in tasks)
        engine.let(30)
        await asyncio.gather(*tasks)
        await batcher.close()

    within(check)


def test_an_idle_engine_gives_a_bad_forecast_another_try(monkeypatch: pytest.MonkeyPatch) -> None:
    async def check() -> None:
        engine = GatedEngine(runs=2)
        batcher = batcher_of(engine)
        assert await ask(batcher, 1) == [1001]
        for _ in range(50):
            batcher.latency.observe(1, 3 * _LONG_S)
        monkeypatch.setattr(batching, "_DOUBT_S", _LONG_S)
        with pytest.raises(Unavailable):
            await ask(batcher, 2, deadline_s=_LONG_S)
        monkeypatch.setattr(batching, "_DOUBT_S", -1.0)
        assert await ask(batcher, 3, deadline_s=_LONG_S) == [1003]
        await batcher.close()

    within(check)


def test_a_deadline_that_passes_in_the_queue_is_refused_before_the_run() -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine)
        first = await start(batcher, 1)
        await engine.began()
        stays = await start(batcher, 2)
        with pytest.raises(Unavailable, match="before the run began") as refused:
            await ask(batcher, 3, deadline_s=0.01)
        assert refused.value.cause == "deadline"
        assert batcher.pending_images == 1  # refused while the engine is still at work
        engine.let(2)
        await asyncio.gather(first, stays)
        assert engine.ran == [[1], [2]]
        await batcher.close()

    within(check)


def test_a_deadline_that_passes_while_the_loop_is_held_up_starts_no_run() -> None:
    async def check() -> None:
        engine = GatedEngine(runs=1)
        batcher = batcher_of(engine)
        late = asyncio.create_task(ask(batcher, 1, deadline_s=0.005))
        await asyncio.sleep(0)
        time.sleep(0.02)  # before the batcher's task has run
        with pytest.raises(Unavailable):
            await late
        assert engine.ran == []
        for passed_s in (0.0, -1.0):
            with pytest.raises(Unavailable, match="before the run began"):
                await ask(batcher, 2, deadline_s=passed_s)
        assert await ask(batcher, 3) == [1003]
        await batcher.close()

    within(check)


def test_a_run_that_began_is_delivered_late() -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine)
        task = await start(batcher, 1, deadline_s=1.5)
        await engine.began()
        await asyncio.sleep(1.6)
        engine.let()
        assert await task == [1001]
        await batcher.close()

    within(check)


def test_a_quiet_model_is_not_kept_from_the_device_by_a_busy_one() -> None:
    async def check() -> None:
        order: list[str] = []
        engine = GatedEngine()

        def runner(name: str) -> GatedEngine:
            class Logged(GatedEngine):
                def __call__(self, feeds: Arrays) -> Arrays:
                    order.append(name)
                    return dict(engine(feeds))

            return Logged()

        turns = Turns()
        busy = batcher_of(runner("busy"), max_batch=1, turns=turns, name="busy")
        quiet = batcher_of(runner("quiet"), max_batch=1, turns=turns, name="quiet")
        tasks = [await start(busy, number) for number in range(20)]
        await engine.began()
        tasks.append(await start(quiet, 1))
        engine.let(21)
        await asyncio.gather(*tasks)
        assert order.index("quiet") == 1
        await asyncio.gather(busy.close(), quiet.close())

    within(check)


def test_waiting_for_another_model_is_waiting_enough() -> None:
    async def check() -> None:
        turns, other_engine, engine = Turns(), GatedEngine(), GatedEngine(runs=1)
        other = batcher_of(other_engine, turns=turns, name="other")
        batcher = batcher_of(engine, max_delay_s=_LONG_S, turns=turns)
        others = await start(other, 1)
        await other_engine.began()
        tasks = [await start(batcher, number) for number in (2, 3)]
        assert engine.ran == []
        other_engine.let()
        await others
        assert await asyncio.gather(*tasks) == [[1002], [1003]]
        assert engine.ran == [[2, 3]]
        await asyncio.gather(other.close(), batcher.close())

    within(check)


def test_every_run_is_reported() -> None:
    async def check() -> None:
        engine, reports = GatedEngine(), list[BatchReport]()
        batcher = batcher_of(engine, observe=reports.append)
        first = await start(batcher, 1)
        await engine.began()
        rest = [await start(batcher, 2), await start(batcher, 3, 4)]
        engine.let()
        await first
        await engine.began()
        engine.fails = ValueError("broken")
        engine.let()
        await asyncio.gather(*rest, return_exceptions=True)
        await batcher.close()
        assert [(r.images, r.requests, r.failed) for r in reports] == [(1, 1, False), (3, 2, True)]
        assert all(len(r.queued_s) == r.requests for r in reports)
        assert all(wait >= 0 for r in reports for wait in (*r.queued_s, r.run_s))

    within(check)
