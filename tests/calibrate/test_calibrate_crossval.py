"""Held-out answers are held out: what learns the labels by heart must not look good."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np
import pytest

from ltdeploy.arrays import FloatArray, softmax
from ltdeploy.calibrate import Evidence, calibrate, run
from ltdeploy.calibrate.candidates import Candidate, parse_candidate
from ltdeploy.calibrate.crossval import (
    HeldOut,
    cross_validate,
    fit_on_all,
    settle,
    with_temperature,
)
from ltdeploy.classes import ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes import (
    AffineMap,
    Fix,
    FixContext,
    LogitAdjustment,
    LogitMap,
    fit_chain,
    fit_temperature,
    part_of,
    stratified_folds,
)
from ltdeploy.metrics import Bootstrap, figures_of
from ltdeploy.models.head import Activation, Head

COUNTS = [400, 100, 30, 8, 3]
TABLE = ClassTable.from_counts(COUNTS)
CLASSES = len(COUNTS)


def context_of(images: int = 400, seed: int = 0, signal: float = 1.2) -> FixContext:
    """Logits of the Bayes classifier under a long-tailed prior, labels drawn evenly."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(images) % CLASSES)
    seen = signal * np.eye(CLASSES)[labels] + 0.8 * rng.normal(size=(images, CLASSES))
    return FixContext(classes=TABLE, logits=2 * seen + np.log(TABLE.prior()), labels=labels)


@final
@dataclass(frozen=True, eq=False)
class Memory(LogitMap):
    """Give the label to every image that was seen in fitting, and leave all others as they are."""

    known: dict[bytes, int]

    @property
    def classes(self) -> int:
        return CLASSES

    def apply(self, logits: FloatArray, features: FloatArray | None = None) -> FloatArray:
        mapped = logits.copy()
        for row, own in enumerate(logits):
            if own.tobytes() in self.known:
                mapped[row, self.known[own.tobytes()]] = logits.max() + 10.0
        return mapped


@final
@dataclass(frozen=True)
class Memoriser(Fix):
    """Learn all validation labels by heart."""

    method: ClassVar[str] = "memoriser"
    needs: ClassVar[frozenset[str]] = frozenset({"validation"})  # type: ignore[assignment]

    def _map(self, context: FixContext) -> Memory:
        assert context.logits is not None
        assert context.labels is not None
        pairs = zip(context.logits, context.labels, strict=True)
        return Memory({row.tobytes(): int(label) for row, label in pairs})

    def freedom(self, context: FixContext) -> int:
        return 10_000


@final
@dataclass(frozen=True)
class Whim(Fix):
    """Shift the classes by numbers drawn by ``seed``; fails for seeds of at least ``limit``."""

    seed: float
    limit: float = 1e9
    trains: bool = False

    method: ClassVar[str] = "whim"
    needs: ClassVar[frozenset[str]] = frozenset()  # type: ignore[assignment]

    @property
    def learns_from_validation(self) -> bool:
        return self.trains

    def _map(self, context: FixContext) -> AffineMap:
        if self.seed >= self.limit:
            raise FixError(f"whim: the seed {self.seed:g} is not to be had.")
        drawn = np.random.default_rng(int(self.seed)).normal(size=CLASSES)
        return AffineMap(np.ones(CLASSES), drawn)

    def freedom(self, context: FixContext) -> int:
        return 1


def whims(count: int, limit: float = 1e9, trains: bool = False) -> Candidate:
    values = tuple(float(seed) for seed in range(count))
    return Candidate("whim", tuple((Whim(v, limit, trains),) for v in values), "seed", values)


def fold_of(context: FixContext, folds: int = 5) -> np.ndarray:
    assert context.labels is not None
    return stratified_folds(context.labels, folds)


def accuracy(top1: np.ndarray, context: FixContext) -> float:
    return 100 * float((top1 == context.labels).mean())


def test_what_learns_labels_by_heart_does_not_look_good() -> None:
    context = context_of()
    assert context.logits is not None
    fold = fold_of(context)
    unfixed = accuracy(context.logits.argmax(axis=1), context)
    candidate = Candidate("memoriser", ((Memoriser(),),))
    held_out = cross_validate(candidate, context, fold)
    assert held_out.top1.shape == (400, 1)
    assert accuracy(held_out.top1[:, 0], context) == pytest.approx(unfixed)
    mapped = settle(held_out, [0] * 5, context, fold)[1][:]
    assert accuracy(mapped.argmax(axis=1), context) == pytest.approx(unfixed)
    # Negative control: on the images it was fitted on, it is always right.
    in_sample = fit_chain([Memoriser()], context).apply(context.logits)
    assert accuracy(in_sample.argmax(axis=1), context) == 100.0
    assert unfixed < 70


def test_what_is_chosen_among_many_by_chance_does_not_look_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of 200 useless shifts the best looks good on the images that chose it, and nowhere else."""
    monkeypatch.setattr(run, "candidates", lambda names, context: ((whims(200),), ()))
    honest, figures, in_sample = [], [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        labels = np.arange(120) % CLASSES
        context = FixContext(classes=TABLE, logits=rng.normal(size=(120, CLASSES)), labels=labels)
        done = calibrate(Evidence(context, "noise"))
        honest.append(np.mean([change.after for change in done.changes]))
        figures.append(done.chosen.objective.value)
        in_sample.append(done.sweeps[0].series["balanced"].max())
    assert np.mean(in_sample) > 25  # chance is 20
    assert np.mean(honest) < 22
    assert figures == pytest.approx(honest)


def test_what_learns_labels_by_heart_is_not_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = (parse_candidate("temperature"), Candidate("memoriser", ((Memoriser(),),)))
    monkeypatch.setattr(run, "candidates", lambda names, context: (tried, ()))
    done = calibrate(Evidence(context_of(), "synthetic"))
    assert done.chosen.name == "temperature"
    assert done.methods[-1].figures.balanced == done.chosen.figures.balanced
    assert "nothing that was tried reaches more" in done.reason


def test_each_fold_is_answered_by_the_fit_on_the_others() -> None:
    context = context_of(100)
    fold = fold_of(context)
    held_out = cross_validate(parse_candidate("vector"), context, fold)
    assert held_out.candidate.values == (1.0, 0.1, 0.01, 0.001)
    assert held_out.top1.shape == (100, 4)
    assert context.logits is not None
    for value, chain in enumerate(held_out.candidate.chains):
        for number in range(5):
            own = fold == number
            fitted = fit_chain(chain, part_of(context, ~own))
            expected = fitted.apply(context.logits[own]).argmax(axis=1)
            np.testing.assert_array_equal(held_out.top1[own, value], expected)


def test_what_learns_nothing_is_fitted_once_for_all_folds() -> None:
    context = context_of(100)
    held_out = cross_validate(parse_candidate("logit_adjustment"), context, fold_of(context))
    assert all(one is maps[0] for maps in held_out.maps for one in maps)
    assert context.logits is not None
    for place, value in enumerate(held_out.candidate.values):
        mapped = LogitAdjustment(value).fit(context).apply(context.logits)
        np.testing.assert_array_equal(held_out.top1[:, place], mapped.argmax(axis=1))


def test_a_later_fix_that_learns_makes_the_chain_learn() -> None:
    context = context_of(100)
    candidate = parse_candidate("bias_corrected_temperature:l2=0.1+vector:l2=0.1")
    maps = cross_validate(candidate, context, fold_of(context)).maps
    assert len({id(one) for one in maps[0]}) == 5
    later = parse_candidate("logit_adjustment:tau=1.0+vector:l2=0.1")
    assert len({id(one) for one in cross_validate(later, context, fold_of(context)).maps[0]}) == 5


def test_the_temperature_of_a_fold_is_fitted_on_the_others() -> None:
    context = context_of(200)
    assert context.logits is not None
    assert context.labels is not None
    weights = np.random.default_rng(0).uniform(0.5, 1.5, size=200)
    context = FixContext(
        classes=TABLE, logits=context.logits, labels=context.labels, weights=weights
    )
    fold = fold_of(context)
    held_out = cross_validate(parse_candidate("logit_adjustment"), context, fold)
    places = [20, 0, 19, 21, 20]
    found = settle(held_out, places, context, fold)[1][:]
    assert found.dtype == np.float64
    for number, place in enumerate(places):
        others = fold != number
        fixed = held_out.maps[place][0].apply(context.logits)
        t = fit_temperature(fixed[others], context.labels[others], weights[others])
        np.testing.assert_allclose(found[~others], (fixed / t)[~others], rtol=1e-6, atol=1e-6)


def test_what_calibrates_is_given_no_temperature() -> None:
    context = context_of(200)
    fold = fold_of(context)
    held_out = cross_validate(parse_candidate("vector"), context, fold)
    assert context.logits is not None
    mapped = settle(held_out, [0] * 5, context, fold)[1][:]
    for number in range(5):
        own = fold == number
        expected = held_out.maps[0][number].apply(context.logits[own])
        np.testing.assert_allclose(mapped[own], expected, rtol=1e-6)
    fitted, t = fit_on_all(held_out, 0, context)
    assert t is None
    assert isinstance(fitted, AffineMap)


def test_the_final_fit_is_on_all_images_with_its_temperature_inside() -> None:
    context = context_of(400)
    assert context.logits is not None
    assert context.labels is not None
    held_out = cross_validate(parse_candidate("logit_adjustment"), context, fold_of(context))
    fitted, t = fit_on_all(held_out, 20, context)
    adjusted = context.logits - np.log(TABLE.prior())
    assert t == pytest.approx(fit_temperature(adjusted, context.labels))
    np.testing.assert_allclose(fitted.apply(context.logits), adjusted / t)


def with_head(context: FixContext, activation: Activation) -> FixContext:
    return replace(context, head=Head("linear", np.eye(CLASSES), activation=activation))


@pytest.mark.parametrize(
    ("method", "activation"),
    [
        ("temperature", "softmax"),
        ("temperature", "sigmoid"),
        ("logit_adjustment", "softmax"),
        ("tau_norm", "sigmoid"),
        ("ncm", "softmax"),
    ],
)
def test_every_head_is_given_a_temperature(method: str, activation: Activation) -> None:
    context = context_of(200)
    assert context.logits is not None
    assert context.labels is not None
    trained = 1e4 * np.eye(CLASSES)
    context = with_head(
        replace(
            context,
            features=1e4 * context.logits,
            train_features=trained,
            train_labels=np.arange(CLASSES),
        ),
        activation,
    )
    fold = fold_of(context)
    held_out = cross_validate(parse_candidate(method), context, fold)
    settled, mapped = settle(held_out, [0] * 5, context, fold)
    assert settled.notes == ()
    fitted, t = fit_on_all(settled, 0, context)
    assert t is not None
    plain = held_out.maps[0][0].apply(context.logits, context.features)
    assert t == pytest.approx(fit_temperature(plain, context.labels, activation=activation))
    fixed = fitted.apply(context.logits, context.features)
    np.testing.assert_allclose(fixed, plain / t)
    np.testing.assert_array_equal(mapped[:].argmax(axis=1), plain.argmax(axis=1))


def test_a_model_that_is_always_right_stays_modest_and_says_so() -> None:
    labels = np.arange(50) % CLASSES
    context = FixContext(classes=TABLE, logits=20.0 * np.eye(CLASSES)[labels], labels=labels)
    held_out = cross_validate(parse_candidate("temperature"), context, fold_of(context))
    settled, mapped = settle(held_out, [0] * 5, context, fold_of(context))
    assert len(settled.notes) == 1  # and not once per fold
    assert "right on every image" in settled.notes[0]
    np.testing.assert_allclose(softmax(mapped[:]).max(axis=1), 0.95, atol=0.04)
    assert settled.top1 is held_out.top1


def test_a_temperature_that_cannot_be_fitted_is_said() -> None:
    zeros = np.zeros(4, dtype=int)
    context = FixContext(classes=TABLE, logits=np.eye(CLASSES)[zeros], labels=zeros)
    identity = AffineMap.identity(CLASSES)
    fitted, t, note = with_temperature(identity, context)
    assert (fitted, t) == (identity, None)
    assert note.startswith("the confidence is left as it is: temperature: the validation data has")


def test_held_out_logits_are_mapped_as_they_are_read() -> None:
    context = context_of(100)
    fold = fold_of(context)
    candidate = parse_candidate("bias_corrected_temperature:l2=0.1")
    _, mapped = settle(cross_validate(candidate, context, fold), [0] * 5, context, fold)
    assert mapped.shape == (100, CLASSES)
    whole = mapped[:]
    for rows in (slice(0, 1), slice(7, 40), slice(90, 200), slice(50, 50)):
        np.testing.assert_array_equal(mapped[rows], whole[rows])
    assert context.labels is not None
    bootstrap = Bootstrap(context.labels, TABLE)
    read = figures_of(mapped, context.labels, TABLE, bootstrap)
    assert read == figures_of(whole, context.labels, TABLE, bootstrap)


@pytest.mark.parametrize("trains", [False, True])
def test_values_that_cannot_be_fitted_are_left_out_with_a_note(trains: bool) -> None:
    context = context_of(100)
    fold = fold_of(context)
    whole = cross_validate(whims(6, trains=trains), context, fold)
    assert whole.notes == ()
    part: HeldOut = cross_validate(whims(6, limit=4.0, trains=trains), context, fold)
    assert part.candidate.values == (0.0, 1.0, 2.0, 3.0)
    assert len(part.candidate.chains) == len(part.maps) == 4
    np.testing.assert_array_equal(part.top1, whole.top1[:, :4])
    assert part.notes == (
        "seed=4 could not be fitted: whim: the seed 4 is not to be had.",
        "seed=5 could not be fitted: whim: the seed 5 is not to be had.",
    )


def test_what_cannot_be_fitted_at_all_is_an_error() -> None:
    context = context_of(100)
    with pytest.raises(FixError, match="the seed 0 is not"):
        cross_validate(whims(6, limit=0.0), context, fold_of(context))
    with pytest.raises(FixError, match="the seed 3 is not"):
        cross_validate(Candidate("whim", ((Whim(3.0, limit=0.0),),)), context, fold_of(context))


def test_what_can_only_be_fitted_where_it_changes_nothing_is_an_error() -> None:
    context = context_of(100)
    trained = FixContext(
        classes=TABLE,
        logits=context.logits,
        labels=context.labels,
        trained_with="balanced_softmax",
    )
    with pytest.raises(FixError, match="already corrects"):
        cross_validate(parse_candidate("logit_adjustment"), trained, fold_of(context))
    # Negative control: doing nothing on purpose is no failure.
    nothing = cross_validate(parse_candidate("temperature"), trained, fold_of(context))
    assert nothing.maps[0][0].is_identity


def test_no_fold_is_empty_and_classes_are_spread() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        images = int(rng.integers(2, 40))
        labels = rng.integers(7, size=images)
        folds = min(5, images)
        fold = stratified_folds(labels, folds, seed)
        sizes = np.bincount(fold, minlength=folds)
        assert sizes.max() - sizes.min() <= 1
        for label in np.unique(labels):
            own = np.bincount(fold[labels == label], minlength=folds)
            assert own.max() - own.min() <= 1
        np.testing.assert_array_equal(
            fold, stratified_folds(rng.permutation(7)[labels], folds, seed)
        )
    other = stratified_folds(np.arange(40) % 4, 5, 1)
    assert not np.array_equal(other, stratified_folds(np.arange(40) % 4, 5, 2))
