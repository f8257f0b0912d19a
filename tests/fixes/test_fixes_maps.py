"""The contract of the maps that are not affine, and of maps in sequence."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltdeploy.errors import FixError
from ltdeploy.fixes import AffineMap
from ltdeploy.fixes.logit_map import LogitMap
from ltdeploy.fixes.maps import Blend, Chain, LogSoftmax, NewHead, compose, steps_of

CLASSES, FEATURES = 5, 7
KINDS = ["diagonal", "full", "head", "centred", "l2", "log_softmax", "blend"]


def draw(kind: str, rng: np.random.Generator, classes: int = CLASSES) -> LogitMap:
    """Return a drawn map of a kind."""
    vector = rng.normal(size=classes)
    match kind:
        case "diagonal":
            return AffineMap(rng.uniform(0.3, 3, size=classes), vector)
        case "full":
            return AffineMap(rng.normal(size=(classes, classes)), vector)
        case "head":
            return NewHead(rng.normal(size=(classes, FEATURES)), vector)
        case "centred":
            return NewHead(
                rng.normal(size=(classes, FEATURES)), vector, centre=rng.normal(size=FEATURES)
            )
        case "l2":
            return NewHead(
                rng.normal(size=(classes, FEATURES)), vector, rng.normal(size=FEATURES), True
            )
        case "log_softmax":
            return LogSoftmax(classes)
        case "blend":
            return Blend(rng.uniform(0.3, 3, size=classes), vector, rng.normal(size=FEATURES), 0.3)
    raise AssertionError(kind)


def data(rng: np.random.Generator, rows: int = 6) -> tuple[np.ndarray, np.ndarray]:
    return rng.normal(size=(rows, CLASSES)) * 4, rng.normal(size=(rows, FEATURES))


@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=6), seed=st.integers(0, 2**31))
@settings(max_examples=200, deadline=None)
def test_composition_is_one_after_the_other(kinds: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = [draw(kind, rng) for kind in kinds]
    logits, features = data(rng)
    expected = logits
    for one in maps:
        expected = one.apply(expected, features)
    whole = compose(*maps)
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(
        whole.apply(logits, features), expected, rtol=1e-9, atol=1e-11 * scale
    )
    assert whole.classes == CLASSES
    steps = steps_of(whole)
    pairs = list(pairwise(steps))
    joinable = (AffineMap, NewHead)
    assert not any(isinstance(a, joinable) and isinstance(b, AffineMap) for a, b in pairs)
    assert not any(isinstance(step, NewHead) for step in steps[1:])
    assert whole.needs_features == any(step.needs_features for step in steps)


@given(seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_chains_of_chains_are_flat(seed: int) -> None:
    rng = np.random.default_rng(seed)
    first = compose(draw("blend", rng), draw("log_softmax", rng))
    second = compose(draw("diagonal", rng), draw("blend", rng))
    whole = compose(first, second)
    assert [type(step) for step in steps_of(whole)] == [Blend, LogSoftmax, AffineMap, Blend]


def test_a_new_head_swallows_what_stands_before_it() -> None:
    rng = np.random.default_rng(0)
    head = draw("head", rng)
    assert compose(draw("diagonal", rng), draw("blend", rng), head) is head
    logits, features = data(rng)
    np.testing.assert_array_equal(
        head.apply(logits, features), head.apply(np.zeros_like(logits), features)
    )


@pytest.mark.parametrize("kind", ["head", "centred", "l2"])
@pytest.mark.parametrize("after", ["diagonal", "full"])
def test_an_affine_map_folds_into_a_new_head(kind: str, after: str) -> None:
    rng = np.random.default_rng(1)
    head, affine = draw(kind, rng), draw(after, rng)
    joined = compose(head, affine)
    assert isinstance(joined, NewHead)
    assert isinstance(head, NewHead)
    assert joined.centre is head.centre
    assert joined.normalise is head.normalise
    logits, features = data(rng)
    np.testing.assert_allclose(
        joined.apply(logits, features), affine.apply(head.apply(logits, features)), rtol=1e-10
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_identity_is_dropped(kind: str) -> None:
    one, nothing = draw(kind, np.random.default_rng(2)), AffineMap.identity(CLASSES)
    for whole in (compose(nothing, one), compose(one, nothing), compose(nothing, one, nothing)):
        assert type(whole) is type(one)
    assert compose(nothing, nothing).is_identity
    assert not one.is_identity


def test_maps_of_other_classes_are_refused() -> None:
    rng = np.random.default_rng(3)
    for kind in KINDS:
        with pytest.raises(FixError, match="5 and 4 classes"):
            compose(draw(kind, rng), draw(kind, rng, classes=4))
    with pytest.raises(FixError, match="no map to compose"):
        compose()


@pytest.mark.parametrize("kind", ["head", "centred", "l2", "blend"])
def test_missing_features_are_named(kind: str) -> None:
    rng = np.random.default_rng(4)
    one = draw(kind, rng)
    logits, _ = data(rng)
    assert one.needs_features
    with pytest.raises(FixError, match=r"looks at the features .* 'features' too"):
        one.apply(logits)
    with pytest.raises(FixError, match="looks at the features"):
        compose(draw("log_softmax", rng), one).apply(logits)


@pytest.mark.parametrize("kind", KINDS)
def test_features_are_not_asked_for_in_vain(kind: str) -> None:
    rng = np.random.default_rng(5)
    one = draw(kind, rng)
    logits, features = data(rng)
    if not one.needs_features:
        np.testing.assert_array_equal(one.apply(logits), one.apply(logits, features))


@given(kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=3), seed=st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_float32_is_float64_rounded_once(kinds: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    whole = compose(*(draw(kind, rng) for kind in kinds))
    logits, features = (array.astype(np.float32) for array in data(rng))
    narrow = whole.apply(logits, features)
    wide = whole.apply(logits.astype(np.float64), features)
    assert narrow.dtype == np.float32
    assert wide.dtype == np.float64
    np.testing.assert_array_equal(narrow, wide.astype(np.float32))


def test_log_softmax_keeps_probabilities_and_survives_huge_logits() -> None:
    logits = np.array([[1e4, -1e4, 0.0, 5.0, 1e4]])
    mapped = LogSoftmax(5).apply(logits)
    np.testing.assert_allclose(np.exp(mapped).sum(axis=1), 1.0)
    np.testing.assert_allclose(mapped - mapped[:, :1], logits - logits[:, :1])


def test_a_blend_goes_from_one_map_to_the_other() -> None:
    rng = np.random.default_rng(6)
    logits, features = data(rng)
    affine = AffineMap(rng.uniform(0.5, 2, size=CLASSES), rng.normal(size=CLASSES))
    silent = np.zeros(FEATURES)
    closed = Blend(affine.scale, affine.shift, silent, -1e3)
    opened = Blend(affine.scale, affine.shift, silent, 1e3)
    half = Blend(affine.scale, affine.shift, silent, 0.0)
    np.testing.assert_array_equal(closed.apply(logits, features), logits)
    np.testing.assert_allclose(opened.apply(logits, features), affine.apply(logits))
    middle = (logits + affine.apply(logits)) / 2
    np.testing.assert_allclose(half.apply(logits, features), middle)


def test_a_feature_of_length_zero_stays_finite() -> None:
    head = NewHead(np.ones((2, 3)), np.array([1.0, 2.0]), normalise=True)
    np.testing.assert_array_equal(head.apply(np.zeros((1, 2)), np.zeros((1, 3))), [[1.0, 2.0]])


@pytest.mark.parametrize("kind", ["head", "l2", "log_softmax", "blend"])
def test_what_cannot_be_undone_says_so(kind: str) -> None:
    rng = np.random.default_rng(7)
    one = draw(kind, rng)
    with pytest.raises(FixError, match=rf"\({type(one).__name__}\) cannot be undone"):
        one.inverse()
    with pytest.raises(FixError, match="cannot be undone"):
        Chain((draw("diagonal", rng), one)).inverse()


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: NewHead(np.ones((2, 3)), np.ones(3)), "needs W of shape"),
        (lambda: NewHead(np.ones(3), np.ones(3)), "needs W of shape"),
        (lambda: NewHead(np.ones((2, 3)), np.ones(2), np.ones(2)), "centre of shape"),
        (lambda: NewHead(np.full((2, 3), np.nan), np.ones(2)), "not finite"),
        (lambda: Blend(np.ones(2), np.ones(3), np.ones(4), 0.0), "needs α and β"),
        (lambda: Blend(np.ones(2), np.ones(2), np.ones(4), np.inf), "not finite"),
    ],
)
def test_wrong_shapes_and_numbers_are_refused(build: object, text: str) -> None:
    assert callable(build)
    with pytest.raises(FixError, match=text):
        build()
