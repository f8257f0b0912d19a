"""How a request ends otherwise: clients that go, engines that fail, batchers that close."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from batching_samples import Arrays, GatedEngine, ask, batcher_of, settle, start, within
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.errors import EngineError
from ltdeploy.serve.contracts import BatchReport
from ltdeploy.serve.failures import Failed, RequestError, Unavailable

_LONG_S = 1000.0  # a delay that no test waits for


def test_a_client_that_goes_while_it_waits_is_not_run() -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine)
        first = await start(batcher, 1)
        await engine.began()
        gone, stays = await start(batcher, 2), await start(batcher, 3)
        gone.cancel()
        await settle()
        assert batcher.pending_images == 1
        engine.let(2)
        assert await first == [1001]
        assert await stays == [1003]
        assert engine.ran == [[1], [3]]
        assert gone.cancelled()
        await batcher.close()

    within(check)


def test_a_client_that_goes_during_its_run_leaves_the_others_their_rows() -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine, max_batch=3, max_delay_s=_LONG_S)
        tasks = [await start(batcher, number) for number in (1, 2, 3)]
        await engine.began()
        tasks[1].cancel()
        await settle()
        engine.let()
        assert await tasks[0] == [1001]
        assert await tasks[2] == [1003]
        assert tasks[1].cancelled()
        await batcher.close()

    within(check)


def test_a_queue_that_everyone_left_runs_nothing() -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine, max_delay_s=_LONG_S)
        gone = [await start(batcher, number) for number in (1, 2)]
        for task in gone:
            task.cancel()
        await asyncio.wait(gone)
        await batcher.close()
        assert engine.ran == []

    within(check)


@pytest.mark.parametrize(
    "error",
    [EngineError("lost /dev/nvidia0"), ValueError("x"), StopIteration(), asyncio.CancelledError()],
    ids=lambda error: type(error).__name__,
)
def test_a_failed_run_fails_its_own_requests_alone(
    error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine, max_batch=2, max_delay_s=_LONG_S)
        tasks = [await start(batcher, number) for number in (1, 2, 3, 4)]
        await engine.began()
        engine.fails = error
        engine.let()
        failed = await asyncio.gather(*tasks[:2], return_exceptions=True)
        await engine.began()
        engine.fails = None
        engine.let()
        assert await asyncio.gather(*tasks[2:]) == [[1003], [1004]]
        assert failed[0] is not failed[1]
        for failure in failed:
            assert isinstance(failure, Failed)
            assert failure.cause == "engine"
            assert "/" not in failure.reason
            assert str(error) not in failure.reason or not str(error)
        assert engine.ran == [[1, 2], [3, 4]]  # nothing was run again
        await batcher.close()

    with caplog.at_level(logging.ERROR, logger="ltdeploy.serve"):
        within(check)
    (record,) = caplog.records
    assert record.exc_info is not None
    assert record.exc_info[1] is error


def test_rows_that_do_not_fit_the_batch_are_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        def run(feeds: Arrays) -> Mapping[str, npt.NDArray[Any]]:
            return {"logits": np.zeros((1, 5))}

        batcher = batcher_of(run, max_batch=2)
        with pytest.raises(Failed):
            await ask(batcher, 1, 2)
        assert await ask(batcher, 1) == [0]
        await batcher.close()

    within(check)
    assert "1 rows for a batch of 2" in caplog.text


def test_an_observer_that_fails_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def check() -> None:
        def observe(_report: BatchReport) -> None:
            raise ValueError("no such metric")

        batcher = batcher_of(GatedEngine(runs=2), max_batch=1, observe=observe)
        assert await asyncio.gather(ask(batcher, 1), ask(batcher, 2)) == [[1001], [1002]]
        await batcher.close()

    within(check)
    assert "no such metric" in caplog.text


def test_closing_runs_what_was_accepted() -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine, max_batch=2)
        tasks = [await start(batcher, number) for number in (1, 2, 3)]
        await engine.began()
        closing = [asyncio.create_task(batcher.close()) for _ in range(2)]
        await settle()
        with pytest.raises(Unavailable) as refused:
            await ask(batcher, 4)
        assert refused.value.cause == "draining"
        assert not any(task.done() for task in (*closing, *tasks))
        engine.let(2)
        await asyncio.gather(*closing)
        assert await asyncio.gather(*tasks) == [[1001], [1002], [1003]]
        await batcher.close()

    within(check)


def test_closing_ends_the_wait_for_company() -> None:
    async def check() -> None:
        engine = GatedEngine(runs=1)
        batcher = batcher_of(engine, max_delay_s=_LONG_S)
        task = await start(batcher, 1)
        assert engine.ran == []
        await batcher.close()
        assert await task == [1001]

    within(check)


def test_closing_without_draining_refuses_what_waits() -> None:
    async def check() -> None:
        engine = GatedEngine()
        batcher = batcher_of(engine)
        runs = await start(batcher, 1)
        await engine.began()
        waits = await start(batcher, 2)
        draining = asyncio.create_task(batcher.close())
        await settle()
        closing = asyncio.create_task(batcher.close(drain=False))  # lost patience
        with pytest.raises(Unavailable) as refused:
            await waits
        assert refused.value.cause == "draining"
        assert not closing.done()
        engine.let()
        assert await runs == [1001]
        await asyncio.gather(draining, closing)
        assert engine.ran == [[1]]

    within(check)


def test_a_batcher_that_never_ran_closes() -> None:
    within(lambda: batcher_of(GatedEngine()).close())


_REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 5),  # images
        st.integers(0, 30),  # steps of the loop before it comes
        st.none() | st.integers(0, 40),  # steps after which the client goes
        st.sampled_from([None, None, 0.0, 1e-3, 30.0]),  # deadline
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=150)
@given(
    _REQUESTS,
    st.integers(0, 2**32),
    st.sampled_from([0.0, 1e-3]),
    st.booleans(),
    st.integers(0, 80),
)
def test_every_request_ends_once_and_gets_its_own_rows(
    requests: list[tuple[int, int, int | None, float | None]],
    seed: int,
    max_delay_s: float,
    drain: bool,
    steps_to_close: int,
) -> None:
    async def check() -> None:
        draw, ran = random.Random(seed), list[int]()

        def run(feeds: Arrays) -> Mapping[str, npt.NDArray[Any]]:
            numbers = feeds["images"][:, 0].tolist()
            assert len(numbers) <= 4
            ran.extend(numbers)
            if draw.random() < 0.1:
                raise EngineError("bad luck")
            return {"logits": feeds["images"] + 1000}

        batcher = batcher_of(run, max_batch=4, max_delay_s=max_delay_s, max_queue=10)

        async def client(number: int, images: int, steps: int, limit_s: float | None) -> list[int]:
            for _ in range(steps):
                await asyncio.sleep(0)
            own = range(10 * number, 10 * number + images)
            return await ask(batcher, *own, deadline_s=limit_s)

        async def cancel(task: asyncio.Task[list[int]], steps: int) -> None:
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()

        tasks, others = [], []
        for number, (images, steps, leaves, limit_s) in enumerate(requests):
            tasks.append(asyncio.create_task(client(number, images, steps, limit_s)))
            if leaves is not None:
                others.append(asyncio.create_task(cancel(tasks[-1], leaves)))
        for _ in range(steps_to_close):
            await asyncio.sleep(0)
        await batcher.close(drain=drain)
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*others)
        for number, outcome in enumerate(outcomes):
            images, _, leaves, _ = requests[number]
            own = list(range(10 * number, 10 * number + images))
            times = [ran.count(image) for image in own]
            if isinstance(outcome, list):
                assert outcome == [image + 1000 for image in own]
                assert times == [1] * images
            elif isinstance(outcome, asyncio.CancelledError):
                assert leaves is not None
                assert times in ([0] * images, [1] * images)
            else:
                assert isinstance(outcome, RequestError)
                assert times == [int(isinstance(outcome, Failed))] * images
        assert batcher.pending_images == 0

    logging.getLogger("ltdeploy.serve").disabled = True  # the runs that fail on purpose
    try:
        within(check)
    finally:
        logging.getLogger("ltdeploy.serve").disabled = False
