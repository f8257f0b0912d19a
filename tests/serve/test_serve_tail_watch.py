"""The tail watch against a naive recount."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ltdeploy.classes import LVIS_GROUPS, ClassTable, GroupRule
from ltdeploy.errors import DataError
from ltdeploy.serve.tail_watch import TailWatch

TABLE = ClassTable(("cat", "dog", "fox", "lynx", "wolverine"), (500, 300, 50, 5, 0))


@given(
    counts=st.lists(st.integers(0, 300), min_size=1, max_size=8).filter(any),
    window=st.integers(1, 12),
    batches=st.lists(st.lists(st.integers(0, 7), max_size=30), max_size=10),
    rule=st.sampled_from([GroupRule(), LVIS_GROUPS]),
)
def test_a_snapshot_is_a_recount_of_the_last_predictions(
    counts: list[int], window: int, batches: list[list[int]], rule: GroupRule
) -> None:
    names = tuple(str(label) for label in range(len(counts)))
    table = ClassTable(names, tuple(counts), rule)
    watch = TailWatch(table, window)
    said: list[int] = []
    for batch in batches:
        labels = [label % len(table) for label in batch]
        watch.add(np.array(labels, dtype=np.int64))
        said += labels
    last, snapshot, prior = said[-window:], watch.snapshot(), table.prior()

    assert snapshot.predictions == len(last)
    assert list(snapshot.by_group) == [name for name in rule.names if name in table.groups]
    shift = 0.0
    for name, group in snapshot.by_group.items():
        members = [int(label) for label in table.members(name)]
        hits = sum(label in members for label in last)
        assert group.total == sum(label in members for label in said)
        assert group.expected == pytest.approx(prior[members].sum())
        assert group.silent_classes == sum(label not in last for label in members)
        assert group.expected_silent == pytest.approx(
            sum((1 - prior[label]) ** len(last) for label in members)
        )
        if last:
            assert group.share == pytest.approx(hits / len(last))
            assert group.ratio == pytest.approx(hits / len(last) / prior[members].sum())
            shift += abs(hits / len(last) - prior[members].sum()) / 2
        else:
            assert group.share is group.ratio is None
    assert snapshot.shift == (pytest.approx(shift) if last else None)


def test_a_quiet_tail_shows_and_a_lively_one_does_not() -> None:
    generator = np.random.default_rng(0)
    table = ClassTable.from_counts([4000] * 5 + [10] * 80)
    lively, quiet = TailWatch(table), TailWatch(table)
    for _ in range(100):
        labels = generator.choice(len(table), 120, p=table.prior())
        lively.add(labels)
        quiet.add(np.where(labels >= 5, 0, labels))
    assert lively.snapshot().predictions == quiet.snapshot().predictions == 10_000
    ratio = lively.snapshot().by_group["few"].ratio
    assert ratio is not None
    assert 0.8 < ratio < 1.2
    few = quiet.snapshot().by_group["few"]
    assert (few.share, few.ratio, few.silent_classes) == (0.0, 0.0, 80)
    assert few.expected == pytest.approx(0.0385, abs=1e-3)
    assert few.expected_silent < 10


def test_threads_lose_no_prediction() -> None:
    watch = TailWatch(TABLE, window=100_000)
    start = threading.Barrier(4)

    def say(label: int) -> None:
        start.wait()
        for _ in range(500):
            watch.add(np.array([label, label]))

    threads = [threading.Thread(target=say, args=(label,)) for label in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    groups = watch.snapshot().by_group
    assert {name: group.total for name, group in groups.items()} == Counter(
        many=2000, medium=1000, few=1000
    )


def test_a_label_that_is_no_class_is_refused_and_not_counted() -> None:
    watch = TailWatch(TABLE)
    for labels in ([0, 5], [-1]):
        with pytest.raises(DataError, match="0 to 4"):
            watch.add(np.array(labels))
    assert watch.snapshot().predictions == 0
    with pytest.raises(DataError, match="window is 0"):
        TailWatch(TABLE, window=0)
