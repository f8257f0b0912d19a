"""The sweep over strengths gives the labels of the plain loop, exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.classes import ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes import AffineMap, FixContext, LogitAdjustment, TauNorm
from ltdeploy.fixes import sweep as sweep_module
from ltdeploy.fixes.curves import curves_of
from ltdeploy.fixes.maps import LogSoftmax
from ltdeploy.fixes.sweep import sweep_fix, sweep_maps, sweep_top1
from ltdeploy.models.head import Head

GRID = np.linspace(0.0, 2.0, 21)


def plain(
    logits: np.ndarray,
    exponents: npt.ArrayLike | None,
    slopes: npt.ArrayLike | None,
    strengths: npt.ArrayLike,
    offset: npt.ArrayLike | None = None,
) -> np.ndarray:
    """Return the labels by the loop that everybody writes."""
    moved = np.zeros(logits.shape[1]) if offset is None else np.asarray(offset)
    columns = []
    for tau in np.asarray(strengths):
        if exponents is None:
            scale, shift = np.ones_like(moved), tau * np.asarray(slopes) - moved
        else:
            scale = np.exp(tau * np.asarray(exponents))
            shift = -scale * moved
        mapped = logits * scale.astype(logits.dtype) + shift.astype(logits.dtype)
        columns.append(mapped.argmax(axis=1))
    return np.stack(columns, axis=1)


def draw(seed: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return logits of a long-tailed model, slopes g and exponents h."""
    rng = np.random.default_rng(seed)
    classes = int(rng.integers(2, 60))
    slopes = np.linspace(2.0, 9.0, classes)
    logits = rng.normal(size=(40, classes)) * rng.choice([0.1, 1.0, 10.0]) - 0.7 * slopes
    logits += rng.choice([-20.0, 0.0, 20.0])
    return logits.astype(dtype), slopes, 0.3 * (slopes - slopes.mean())


@given(seed=st.integers(0, 2**31), dtype=st.sampled_from([np.float32, np.float64]))
@settings(max_examples=60, deadline=None)
def test_labels_are_the_plain_loop_s(seed: int, dtype: type) -> None:
    logits, slopes, exponents = draw(seed, dtype)
    bias = np.random.default_rng(seed + 1).normal(size=len(slopes)) * 3
    for case in ((None, slopes, None), (exponents, None, None), (exponents, None, bias)):
        found = sweep_top1(logits, case[0], case[1], GRID, case[2])
        assert found.dtype == np.int32
        np.testing.assert_array_equal(found, plain(logits, case[0], case[1], GRID, case[2]))


@given(seed=st.integers(0, 2**31), places=st.integers(0, 2))
@settings(max_examples=40, deadline=None)
def test_ties_go_to_the_lower_label(seed: int, places: int) -> None:
    rng = np.random.default_rng(seed)
    # Few distinct values: many classes tie at the ends, at crossings, and all along.
    logits = rng.normal(size=(60, 12)).round(places).astype(np.float32)
    slopes = rng.normal(size=12).round(places)
    for case in ((None, slopes), (slopes, None)):
        np.testing.assert_array_equal(sweep_top1(logits, *case, GRID), plain(logits, *case, GRID))


def test_a_class_that_wins_only_in_between_is_found() -> None:
    logits = np.array([[1.0, 0.6, -1.0]])
    top1 = sweep_top1(logits, None, np.array([0.0, 1.0, 2.0]), GRID)
    assert list(dict.fromkeys(top1[0].tolist())) == [0, 1, 2]


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-30, 1e30])
def test_extreme_logits(size: float) -> None:
    logits, slopes, exponents = draw(0)
    logits = (logits / 20 * size).astype(np.float32)
    for case in ((None, slopes), (exponents, None)):
        np.testing.assert_array_equal(sweep_top1(logits, *case, GRID), plain(logits, *case, GRID))


def test_one_sided_and_masked_logits() -> None:
    logits, slopes, exponents = draw(1)
    for shifted in (np.abs(logits), -np.abs(logits), np.where(logits > 0, 0, logits)):
        for case in ((None, slopes), (exponents, None)):
            np.testing.assert_array_equal(
                sweep_top1(shifted, *case, GRID), plain(shifted, *case, GRID)
            )
    logits[:, ::2] = -np.inf
    for case in ((None, slopes), (exponents, None)):
        np.testing.assert_array_equal(sweep_top1(logits, *case, GRID), plain(logits, *case, GRID))


@pytest.mark.parametrize("strengths", [[0.7], [0.0, 0.0], [2.0, -1.0, 0.5], [0.3, 1e-9, 40.0]])
def test_strengths_in_any_order_and_number(strengths: list[float]) -> None:
    logits, slopes, exponents = draw(2)
    for case in ((None, slopes), (exponents, None)):
        np.testing.assert_array_equal(
            sweep_top1(logits, *case, strengths), plain(logits, *case, strengths)
        )


def test_blocks_and_threads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    logits, slopes = rng.normal(size=(501, 23)).astype(np.float32), rng.normal(size=23)
    whole = sweep_top1(logits, None, slopes, GRID)
    monkeypatch.setattr(sweep_module, "_BLOCK_ELEMENTS", 100)
    monkeypatch.setattr(sweep_module, "_CHUNK_ROWS", 50)
    np.testing.assert_array_equal(sweep_top1(logits, None, slopes, GRID), whole)
    assert sweep_top1(logits[:0], None, slopes, GRID).shape == (0, len(GRID))


def test_files_and_memory_maps_give_the_same(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits, slopes = rng.normal(size=(300, 17)).astype(np.float32), rng.normal(size=17)
    whole = sweep_top1(logits, None, slopes, GRID)
    path = tmp_path / "logits.npy"
    np.save(path, logits)
    mapped = np.load(path, mmap_mode="r")
    np.testing.assert_array_equal(sweep_top1(path, None, slopes, GRID), whole)
    np.testing.assert_array_equal(sweep_top1(str(path), None, slopes, GRID), whole)
    np.testing.assert_array_equal(sweep_top1(mapped, None, slopes, GRID), whole)
    np.testing.assert_array_equal(sweep_top1(mapped[100:], None, slopes, GRID), whole[100:])
    changed = np.load(path, mmap_mode="c")
    changed[0] = np.eye(17)[5] * 100  # in memory only: the file must not be asked
    assert (sweep_top1(changed, None, slopes, GRID)[0] == 5).all()
    np.save(path, np.asfortranarray(logits))
    np.testing.assert_array_equal(sweep_top1(path, None, slopes, GRID), whole)
    np.save(path, logits.astype(">f8"))
    np.testing.assert_array_equal(sweep_top1(path, None, slopes, GRID), whole)


def test_files_that_are_no_logits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FixError, match="Cannot read the logits"):
        sweep_top1(tmp_path / "none.npy", None, np.ones(3), GRID)
    np.savez(tmp_path / "many.npz", a=np.ones(3))
    with pytest.raises(FixError, match="several arrays"):
        sweep_top1(tmp_path / "many.npz", None, np.ones(3), GRID)


def context() -> FixContext:
    rng = np.random.default_rng(0)
    counts = np.geomspace(500, 2, 30).astype(int).tolist()
    weight = rng.normal(size=(30, 8)) * np.geomspace(3, 0.3, 30)[:, None]
    bias = rng.normal(size=30)
    logits = rng.normal(size=(200, 8)) @ weight.T + bias
    return FixContext(
        head=Head("linear", weight, bias), classes=ClassTable.from_counts(counts), logits=logits
    )


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (lambda tau: LogitAdjustment(tau), "lines"),
        (lambda tau: TauNorm(tau), "exponentials"),
        (lambda tau: TauNorm(tau, "drop"), "exponentials"),
        (lambda tau: TauNorm(tau, "keep"), None),
    ],
)
def test_families_of_fixes_are_recognised_and_right(build, kind) -> None:  # type: ignore[no-untyped-def]
    given = context()
    assert given.logits is not None
    maps = [build(tau).fit(given) for tau in GRID]
    curves = curves_of(maps, GRID, np.float64)
    assert (None if curves is None else curves.kind) == kind
    expected = np.stack([one.apply(given.logits).argmax(axis=1) for one in maps], axis=1)
    found = sweep_fix([build(tau) for tau in GRID], given, GRID)
    np.testing.assert_array_equal(found, expected)


def test_what_is_no_family_is_not_taken_for_one() -> None:
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=6)
    lines = [AffineMap(np.ones(6), tau * slopes) for tau in GRID]
    assert curves_of(lines, GRID, np.float32) is not None
    assert curves_of(lines, GRID**2, np.float32) is None  # other strengths than these maps have
    bent = [*lines[:-2], AffineMap(np.ones(6), lines[-2].shift + 1e-6 * slopes[0]), lines[-1]]
    assert curves_of(bent, GRID, np.float32) is None
    assert curves_of([AffineMap(np.eye(6), np.zeros(6))], np.ones(1), np.float32) is None
    negative = [AffineMap(-np.exp(tau * slopes), np.zeros(6)) for tau in GRID]
    assert curves_of(negative, GRID, np.float32) is None
    logits = rng.normal(size=(50, 6)).astype(np.float32)
    for maps in (bent, negative, [LogSoftmax(6)] * len(GRID)):
        expected = np.stack([one.apply(logits).argmax(axis=1) for one in maps], axis=1)
        np.testing.assert_array_equal(sweep_maps(logits, maps, GRID), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_named(value: float) -> None:
    logits = np.zeros((30, 4), dtype=np.float32)
    logits[17, 2] = value
    with pytest.raises(FixError, match="image 17"):
        sweep_top1(logits, None, np.ones(4), GRID)
    full = [AffineMap(np.eye(4), np.zeros(4))]
    with pytest.raises(FixError, match="image 17"):
        sweep_maps(logits, full, [1.0])


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    logits = np.zeros((3, 4), dtype=np.float32)
    with pytest.raises(FixError, match="one of them"):
        sweep_top1(logits, np.ones(4), np.ones(4), GRID)
    with pytest.raises(FixError, match="have 4 classes and the fix's map 5"):
        sweep_top1(logits, None, np.ones(5), GRID)
    with pytest.raises(FixError, match="a map per strength"):
        sweep_maps(logits, [AffineMap.identity(4)], GRID)


def test_without_slack_rounding_would_change_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltdeploy.fixes.curves._SLACK", 0.0)
    rng = np.random.default_rng(0)
    differ = 0
    for _ in range(50):
        logits = rng.normal(size=(100, 40)).round(1).astype(np.float32)
        slopes = rng.normal(size=40).round(1)
        found = sweep_top1(logits, None, slopes, GRID)
        differ += int((found != plain(logits, None, slopes, GRID)).sum())
    assert differ
