"""Warm-up and turns on a clock that the test moves; and the machine as files tell it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, repeat

import pytest
from bench_samples import machine

from ltdeploy.bench import machine as machine_module
from ltdeploy.bench.machine import describe_machine
from ltdeploy.bench.timing import take_turn, warm_up


class Scripted:
    """Something whose runs take what a script says, and the clock that they move."""

    def __init__(self, seconds: Iterator[float]) -> None:
        self.now, self.runs, self._seconds = 0.0, 0, seconds

    def clock(self) -> float:
        return self.now

    def run(self) -> None:
        self.runs += 1
        self.now += next(self._seconds)


def test_warms_up_until_two_windows_are_alike() -> None:
    slow_start = Scripted(chain(repeat(0.5, 3), repeat(0.2, 3), repeat(0.1)))
    done = warm_up(slow_start.run, slow_start.clock)
    assert done.stable
    assert done.runs == slow_start.runs == 12  # 0.5, 0.2, 0.1 and once more 0.1


def test_a_window_of_fast_runs_lasts_a_tenth_of_a_second() -> None:
    fast = Scripted(repeat(0.001))
    assert warm_up(fast.run, fast.clock).stable
    assert fast.now == pytest.approx(0.2, rel=0.05)


def test_what_never_settles_is_told() -> None:
    growing = Scripted(0.04 * 1.05**number for number in range(1000))
    assert not warm_up(growing.run, growing.clock).stable
    assert growing.runs == 36
    hopeless = Scripted(10.0 * 0.8**number for number in range(1000))
    assert not warm_up(hopeless.run, hopeless.clock).stable
    assert hopeless.runs == 6  # not all windows: each takes its time


def test_a_turn_leaves_its_first_runs_out() -> None:
    cold = Scripted(chain([0.06], repeat(0.01)))
    latencies_ms = take_turn(cold.run, 0.1, cold.clock)
    assert latencies_ms == pytest.approx([10.0] * len(latencies_ms))
    assert len(latencies_ms) in (10, 11)  # sums of 0.01 are not exact


def test_a_turn_has_at_least_one_run() -> None:
    slow = Scripted(repeat(7.0))
    assert take_turn(slow.run, 0.1, slow.clock) == pytest.approx([7000.0])
    assert slow.runs == 2


def test_busy_is_a_quarter_of_the_cores() -> None:
    assert machine(0.6).is_busy
    assert not machine(0.4).is_busy
    assert not machine(None).is_busy


def test_facts_leave_out_what_is_not_known() -> None:
    told = machine(None).facts()
    assert told["GPU"] == "none found"
    assert told["CPU"] == "Some CPU <3 GHz>, 2 usable cores"
    assert "Load average at the start" not in told


def test_this_machine_is_described() -> None:
    here = describe_machine()
    assert here.cores >= 1
    assert here.cpu
    assert {"ltdeploy", "numpy"} <= set(here.versions)
    assert set(here.to_dict()) == set(vars(here))


def test_a_machine_without_proc_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "_read", lambda path: "")
    here = describe_machine()
    assert here.memory_bytes is None
    assert here.cpu_quota is None
    assert here.cpu
