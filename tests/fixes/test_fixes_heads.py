"""Nearest class mean, classifier retraining and DisAlign: fixes from training features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import check_grad, minimize
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from ltdeploy.arrays import log_softmax
from ltdeploy.classes import ClassTable
from ltdeploy.errors import FixError
from ltdeploy.fixes.affine import AffineMap
from ltdeploy.fixes.base import Fix, FixContext
from ltdeploy.fixes.disalign import (
    _RIDGE,
    DisAlign,
    _aligned_loss,
    _image_weights,
    _Units,
    head_logits,
)
from ltdeploy.fixes.maps import Blend, NewHead, compose
from ltdeploy.fixes.nearest_class_mean import NearestClassMean, training_data
from ltdeploy.fixes.retraining import (
    ClassifierRetraining,
    _balanced_loss,
    minimise,
    retrained_heads,
    row_blocks,
)
from ltdeploy.models.head import Head

COUNTS = (120, 60, 30, 12, 5, 1)
EVERY_FIX = [
    NearestClassMean("plain"),
    NearestClassMean("l2"),
    NearestClassMean("centred_l2"),
    ClassifierRetraining(0.1),
    DisAlign(1.0),
]
NEW_HEADS = EVERY_FIX[:-1]


def make_context(
    seed: int = 0, counts: tuple[int, ...] = COUNTS, size: int = 7, spread: float = 1.5
) -> FixContext:
    """Return Gaussian classes and the head that is best under their prior, so bad for the tail."""
    rng = np.random.default_rng(seed)
    means = 2 * rng.normal(size=(len(counts), size)) + 1
    labels = np.repeat(np.arange(len(counts)), counts)
    features = means[labels] + spread * rng.normal(size=(len(labels), size))
    prior = np.log(np.maximum(counts, 1) / sum(counts))
    bias = spread**2 * prior - 0.5 * np.square(means).sum(axis=1)
    return FixContext(
        head=Head("linear", means / spread**2, bias / spread**2),
        classes=ClassTable.from_counts(counts),
        train_features=features,
        train_labels=labels,
    )


def given_of(context: FixContext) -> tuple[Head, np.ndarray, np.ndarray]:
    assert context.head is not None
    assert context.train_features is not None
    assert context.train_labels is not None
    return context.head, context.train_features, context.train_labels


def fresh(size: int = 7, images: int = 40) -> np.ndarray:
    return 3 * np.random.default_rng(99).normal(size=(images, size))


def applied(fix: Fix, context: FixContext, features: np.ndarray) -> np.ndarray:
    assert context.head is not None
    return fix.fit(context).apply(head_logits(context.head, features), features)


# Nearest class mean


def test_plain_ranks_as_the_nearest_centroid_does() -> None:
    context = make_context()
    _, features, labels = given_of(context)
    z = applied(NearestClassMean(), context, fresh())
    np.testing.assert_array_equal(
        z.argmax(axis=1), NearestCentroid().fit(features, labels).predict(fresh())
    )


def test_plain_is_minus_the_squared_distance_up_to_what_all_classes_share() -> None:
    context = make_context()
    _, features, labels = given_of(context)
    means = np.stack([features[labels == c].mean(axis=0) for c in range(6)])
    distance = np.square(fresh()[:, None, :] - means).sum(axis=2)
    z = applied(NearestClassMean(), context, fresh())
    np.testing.assert_allclose(z - np.square(fresh()).sum(axis=1)[:, None], -distance, atol=1e-9)


@pytest.mark.parametrize("variant", ["l2", "centred_l2"])
def test_normalised_variants_rank_by_cosine(variant: str) -> None:
    context = make_context()
    _, features, labels = given_of(context)
    classes = [features[labels == c] for c in range(6)]
    centre = np.zeros(7)
    if variant == "centred_l2":
        centre = np.mean([rows.mean(axis=0) for rows in classes], axis=0)

    def unit(rows: np.ndarray) -> np.ndarray:
        return rows / np.sqrt((rows**2).sum(axis=-1, keepdims=True))

    means = unit(np.stack([unit(rows - centre).mean(axis=0) for rows in classes]))
    z = applied(NearestClassMean(variant), context, fresh())  # type: ignore[arg-type]
    np.testing.assert_allclose(z, 2 * unit(fresh() - centre) @ means.T - 1, atol=1e-12)


def test_the_centre_does_not_lean_towards_the_head() -> None:
    context = make_context()
    _, features, labels = given_of(context)
    twice = np.concatenate([np.arange(len(labels)), np.flatnonzero(labels == 0)])
    more = replace(context, force=True, train_features=features[twice], train_labels=labels[twice])
    once, again = (NearestClassMean("centred_l2").fit(one) for one in (context, more))
    assert isinstance(once, NewHead)
    assert isinstance(again, NewHead)
    np.testing.assert_allclose(once.centre, again.centre)


# Classifier retraining


@pytest.mark.parametrize("l2", [0.3, 0.03])
def test_retraining_agrees_with_scikit_learn(l2: float) -> None:
    context = make_context()
    _, features, labels = given_of(context)
    classes = [features[labels == c] for c in range(6)]
    centre = np.mean([rows.mean(axis=0) for rows in classes], axis=0)
    spread = np.sqrt(np.mean([np.square(rows - centre).sum(axis=1).mean() for rows in classes]))
    reference = LogisticRegression(
        C=6 / (l2 * len(labels)), class_weight="balanced", tol=1e-10, max_iter=10_000
    ).fit((features - centre) / spread, labels)
    found = applied(ClassifierRetraining(l2), context, fresh())
    expected = reference.decision_function((fresh() - centre) / spread)
    np.testing.assert_allclose(log_softmax(found), log_softmax(expected), atol=2e-3)


def test_retraining_reaches_what_scipy_reaches_by_another_way() -> None:
    context = make_context(counts=(20, 6, 2), size=3)
    data = training_data(context, "crt")
    balanced = (1 / data.images)[data.labels]
    objective = _balanced_loss(np.asarray(data.features), data, balanced, 0.2)
    ours = minimise("crt", objective, np.zeros(12), "", gradient=1e-7)
    other = minimize(objective, np.zeros(12), jac=True, method="trust-constr", tol=1e-10)
    assert objective(ours)[0] == pytest.approx(other.fun, abs=1e-8)


@given(seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_the_gradients_are_those_of_the_losses(seed: int) -> None:
    context = make_context(seed, counts=(9, 4, 1), size=3)
    head, features, _ = given_of(context)
    data = training_data(context, "crt")
    retraining = _balanced_loss(features, data, (1 / data.images)[data.labels], 0.1)
    weights = _image_weights(data, np.array([9.0, 4.0, 1.0]), 1.2)
    alignment = _aligned_loss(head, data, weights, _Units(features.mean(axis=0), 2.0, 1.5))
    rng = np.random.default_rng(seed)
    for loss, size in ((retraining, 12), (alignment, 10)):
        point = rng.normal(size=size)
        error = check_grad(lambda x, f=loss: f(x)[0], lambda x, f=loss: f(x)[1], point)
        assert error < 1e-5 * max(1.0, float(np.linalg.norm(loss(point)[1])))


def test_row_blocks_cover_every_row_once_and_change_nothing() -> None:
    covered = np.concatenate([np.arange(1000)[rows] for rows in row_blocks(1000, 8142)])
    np.testing.assert_array_equal(covered, np.arange(1000))
    context = make_context(counts=(700, 60, 8))
    assert len(row_blocks(768, 3)) == 1
    whole = ClassifierRetraining(0.1).fit(context)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltdeploy.fixes.retraining._BLOCK_LOGITS", 3)
        assert len(row_blocks(768, 3)) == 3
        parts = ClassifierRetraining(0.1).fit(context)
    logits = np.zeros((40, 3))
    np.testing.assert_allclose(
        whole.apply(logits, fresh()), parts.apply(logits, fresh()), atol=1e-6
    )


def test_repeating_the_images_of_a_class_changes_nothing() -> None:
    context = make_context()
    _, features, labels = given_of(context)
    rows = np.concatenate([np.flatnonzero(labels == 5)] * 9 + [np.flatnonzero(labels < 5)])
    more = replace(context, force=True, train_features=features[rows], train_labels=labels[rows])
    for fix in EVERY_FIX:
        np.testing.assert_allclose(
            applied(fix, context, fresh()), applied(fix, more, fresh()), atol=1e-3
        )


def test_a_path_of_penalties_ends_where_single_fits_do() -> None:
    context = make_context()
    logits = np.zeros((40, 6))
    grid = (0.3, 0.1, 0.03)
    for l2, head in zip(grid, retrained_heads(context, grid), strict=True):
        alone = ClassifierRetraining(l2).fit(context)
        np.testing.assert_allclose(
            head.apply(logits, fresh()), alone.apply(logits, fresh()), atol=1e-3
        )


def test_a_larger_penalty_leaves_smaller_weights() -> None:
    heads = retrained_heads(make_context(), (1.0, 0.1, 0.01))
    sizes = [float(np.linalg.norm(head.weight)) for head in heads]
    assert sizes == sorted(sizes)


def test_a_cosine_head_is_retrained_on_directions() -> None:
    context = make_context()
    head, features, _ = given_of(context)
    cosine = replace(context, head=Head("cosine", head.weight, scale=16.0))
    lengths = np.random.default_rng(1).uniform(0.1, 10, size=(len(features), 1))
    stretched = replace(cosine, train_features=features * lengths)
    found, again = (ClassifierRetraining().fit(one) for one in (cosine, stretched))
    assert isinstance(found, NewHead)
    assert found.normalise
    logits = np.zeros((40, 6))
    np.testing.assert_allclose(
        found.apply(logits, fresh()), again.apply(logits, fresh() * 7), atol=1e-6
    )


# DisAlign


@pytest.mark.parametrize("rho", [0.0, 1.0, 1.4])
def test_disalign_agrees_with_autograd(rho: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write the objective once more from the paper's words, and let torch find its optimum."""
    monkeypatch.setattr("ltdeploy.fixes.disalign._GRADIENT", 1e-7)
    context = make_context()
    head, features, labels = given_of(context)
    x = torch.from_numpy(features)
    z = torch.from_numpy(features @ head.weight.T + head.bias)
    r = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    w = (1 / r) ** rho / ((1 / r) ** rho).sum()
    share_of = (w / w[labels].sum())[labels]
    x = x - share_of @ x
    x = x / (share_of @ x.square().sum(dim=1)).sqrt()
    unit = (share_of @ z.var(dim=1, unbiased=False)).sqrt()
    alpha = torch.ones(6, dtype=torch.float64, requires_grad=True)
    beta = torch.zeros(6, dtype=torch.float64, requires_grad=True)
    gate = torch.zeros(8, dtype=torch.float64, requires_grad=True)

    def blended() -> torch.Tensor:
        share = torch.sigmoid(x @ gate[:7] + gate[7])[:, None]
        return share * (alpha * z + unit * beta) + (1 - share) * z

    def loss() -> torch.Tensor:
        ridge = ((alpha - 1).square() + beta.square()).mean() + gate.square().sum()
        entropy = torch.nn.functional.cross_entropy(blended(), torch.from_numpy(labels), weight=w)
        return entropy + 0.5 * _RIDGE * ridge

    optimiser = torch.optim.LBFGS(
        [alpha, beta, gate],
        max_iter=2000,
        tolerance_grad=1e-9,
        tolerance_change=1e-15,
        line_search_fn="strong_wolfe",
    )

    def step() -> torch.Tensor:
        optimiser.zero_grad()
        value = loss()
        value.backward()
        return value

    optimiser.step(step)
    found = applied(DisAlign(rho), context, features)
    np.testing.assert_allclose(found, blended().detach().numpy(), atol=1e-4)


def test_disalign_weighs_classes_as_the_paper_does() -> None:
    data = training_data(make_context(), "disalign")
    weights = _image_weights(data, np.array(COUNTS, dtype=float), 1.3)
    per_class = np.array([weights[data.labels == c].sum() for c in range(6)])
    expected = np.array(COUNTS) * (1 / np.array(COUNTS)) ** 1.3
    np.testing.assert_allclose(per_class, 6 * expected / expected.sum())


def test_disalign_on_part_of_the_images_weighs_classes_by_their_counts() -> None:
    context = make_context()
    _, features, labels = given_of(context)
    kept = np.flatnonzero((labels > 0) | (np.arange(len(labels)) % 4 == 0))
    part = replace(context, train_features=features[kept], train_labels=labels[kept])
    data = training_data(part, "disalign")
    weights = _image_weights(data, np.array(COUNTS, dtype=float), 0.0)
    assert weights[data.labels == 0].sum() == pytest.approx(6 * 120 / sum(COUNTS))


def test_disalign_with_extreme_rho_stays_finite() -> None:
    weights = _image_weights(training_data(make_context(), "d"), np.array(COUNTS, float), 500.0)
    assert np.isfinite(weights).all()
    assert weights.sum() == pytest.approx(6)


def test_head_logits_follow_the_head() -> None:
    rng = np.random.default_rng(0)
    weight, bias, x = rng.normal(size=(4, 3)), rng.normal(size=4), rng.normal(size=(5, 3))
    np.testing.assert_allclose(head_logits(Head("linear", weight, bias), x), x @ weight.T + bias)
    np.testing.assert_allclose(head_logits(Head("linear", weight), x), x @ weight.T)
    cosine = torch.nn.functional.cosine_similarity(
        torch.from_numpy(x)[:, None], torch.from_numpy(weight)[None], dim=2
    )
    np.testing.assert_allclose(
        head_logits(Head("cosine", weight, scale=30.0), x), 30 * cosine.numpy()
    )
    assert not head_logits(Head("cosine", weight, scale=30.0), np.zeros((1, 3))).any()


# What all of them hold


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_the_order_of_classes_does_not_matter(fix: Fix) -> None:
    context = make_context()
    head, _, labels = given_of(context)
    order = np.random.default_rng(3).permutation(6)
    assert head.bias is not None
    permuted = replace(
        context,
        head=Head("linear", head.weight[order], head.bias[order]),
        classes=ClassTable.from_counts([COUNTS[c] for c in order]),
        train_labels=np.argsort(order)[labels],
    )
    np.testing.assert_allclose(
        applied(fix, permuted, fresh()), applied(fix, context, fresh())[:, order], atol=1e-3
    )


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_the_order_of_images_does_not_matter(fix: Fix) -> None:
    context = make_context()
    _, features, labels = given_of(context)
    order = np.random.default_rng(4).permutation(len(labels))
    shuffled = replace(context, train_features=features[order], train_labels=labels[order])
    np.testing.assert_allclose(
        applied(fix, shuffled, fresh()), applied(fix, context, fresh()), atol=1e-3
    )


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_the_same_evidence_gives_the_same_map(fix: Fix) -> None:
    once, again = (applied(fix, make_context(), fresh()) for _ in range(2))
    np.testing.assert_array_equal(once, again)


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_one_image_per_class_is_enough(fix: Fix) -> None:
    context = make_context(counts=(1, 1, 1, 1))
    _, features, labels = given_of(context)
    z = applied(fix, context, features)
    assert np.isfinite(z).all()
    if not isinstance(fix, DisAlign):
        np.testing.assert_array_equal(z.argmax(axis=1), labels)


@pytest.mark.parametrize("fix", NEW_HEADS, ids=Fix.describe)
@given(seed=st.integers(0, 1000))
@settings(max_examples=5, deadline=None)
def test_an_unseen_class_never_wins_and_changes_nothing_else(fix: Fix, seed: int) -> None:
    context = make_context(seed, counts=(40, 0, 9, 2))
    _, _, labels = given_of(context)
    seen = replace(
        context,
        head=None,
        classes=ClassTable.from_counts([40, 9, 2]),
        train_labels=np.searchsorted([0, 2, 3], labels),
    )
    z = applied(fix, context, fresh())
    assert (z[:, 1] < z.max(axis=1)).all()
    np.testing.assert_allclose(z[:, 1], z[:, [0, 2, 3]].mean(axis=1), atol=1e-9)
    alone = fix.fit(seen).apply(np.zeros((40, 3)), fresh())
    np.testing.assert_allclose(z[:, [0, 2, 3]], alone, atol=1e-9)


def test_disalign_leaves_an_unseen_class_almost_alone() -> None:
    found = DisAlign().fit(make_context(counts=(40, 0, 9, 2)))
    assert isinstance(found, Blend)
    away = np.abs(found.scale - 1)
    assert away[1] < away.max()
    assert np.isfinite(found.shift).all()


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
@pytest.mark.parametrize("size", [1e-6, 1e6])
def test_units_of_the_features_do_not_matter(fix: Fix, size: float) -> None:
    context = make_context()
    head, features, _ = given_of(context)
    scaled = replace(
        context,
        head=Head("linear", head.weight / size, head.bias),
        train_features=features * size,
    )
    z, again = applied(fix, context, fresh()), applied(fix, scaled, fresh() * size)
    if fix == NearestClassMean("plain"):
        again = again / size**2  # squared distances
    np.testing.assert_allclose(again, z, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("fix", EVERY_FIX[:1] + EVERY_FIX[3:], ids=Fix.describe)
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_huge_and_tiny_features_stay_finite(fix: Fix, size: float) -> None:
    context = make_context()
    head, features, _ = given_of(context)
    scaled = replace(
        context,
        head=Head("linear", head.weight / size, head.bias),
        train_features=(features * size).astype(np.float32),
    )
    z = applied(fix, scaled, fresh() * size)
    assert np.isfinite(z).all()
    assert (z.argmax(axis=1) == applied(fix, context, fresh()).argmax(axis=1)).mean() > 0.9


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_float32_features_agree_with_float64(fix: Fix) -> None:
    context = make_context()
    head, features, _ = given_of(context)
    narrow = fix.fit(replace(context, train_features=features.astype(np.float32)))
    logits = head_logits(head, fresh()).astype(np.float32)
    found = narrow.apply(logits, fresh().astype(np.float32))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, applied(fix, context, fresh()), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("fix", NEW_HEADS, ids=Fix.describe)
def test_a_temperature_behind_a_new_head_folds_into_it(fix: Fix) -> None:
    context = make_context()
    head, _, _ = given_of(context)
    found = fix.fit(context)
    cooler = AffineMap(np.full(6, 1 / 2.5), np.linspace(-1, 1, 6))
    joined = compose(AffineMap(np.full(6, 3.0), np.ones(6)), found, cooler)
    assert isinstance(joined, NewHead)
    logits = head_logits(head, fresh())
    np.testing.assert_allclose(
        joined.apply(logits, fresh()), cooler.apply(found.apply(logits, fresh())), atol=1e-10
    )


def test_freedom_counts_what_is_learnt() -> None:
    context = make_context()
    assert NearestClassMean().freedom(context) == 6 * 7
    assert ClassifierRetraining().freedom(context) == 6 * 8
    assert DisAlign().freedom(context) == 2 * 6 + 7 + 1


# What they refuse


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_missing_features_are_named(fix: Fix) -> None:
    with pytest.raises(FixError, match="--train DATA"):
        fix.fit(replace(make_context(), train_features=None))


def test_disalign_needs_head_and_counts() -> None:
    with pytest.raises(FixError, match="weight"):
        DisAlign().fit(replace(make_context(), head=None))
    with pytest.raises(FixError, match="--classes FILE"):
        DisAlign().fit(replace(make_context(), classes=None))


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"foldable": False}, "more than its last linear map"),
        ({"background": 0}, "background row"),
        ({"activation": "sigmoid"}, "softmax heads"),
        ({"weight": np.eye(6)}, "have 7 numbers per image and the head takes 6"),
    ],
)
def test_heads_that_do_not_suit_are_refused(fix: Fix, change: dict[str, object], text: str) -> None:
    context = make_context()
    head, _, _ = given_of(context)
    with pytest.raises(FixError, match=text):
        fix.fit(replace(context, head=replace(head, **change)))  # type: ignore[arg-type]


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_training_data_that_cannot_be_used_is_refused(fix: Fix) -> None:
    context = make_context()
    _, features, labels = given_of(context)
    broken = features.copy()
    broken[3, 2] = np.nan
    for change, text in (
        ({"train_features": features[:, 0]}, r"shape \(M, D\)"),
        ({"train_features": features[1:]}, r"shape \(M, D\)"),
        ({"train_features": features[:0], "train_labels": labels[:0]}, "at least 1"),
        ({"train_labels": labels + 1}, "from 0 to 5"),
        ({"train_labels": labels - 1}, "from 0 to 5"),
        ({"train_labels": labels.astype(float)}, "whole numbers"),
        ({"train_features": broken}, "not finite, the first in row 3"),
        ({"classes": ClassTable.from_counts([1] * 7)}, "has 7 classes and the model 6"),
    ):
        with pytest.raises(FixError, match=text):
            fix.fit(replace(context, **change))


@pytest.mark.parametrize("fix", EVERY_FIX, ids=Fix.describe)
def test_counts_that_contradict_the_features_are_refused(fix: Fix) -> None:
    context = make_context()
    _, features, labels = given_of(context)
    rest = labels != 5
    without = replace(context, train_features=features[rest], train_labels=labels[rest])
    with pytest.raises(FixError, match=r"no training features of 1 class: '5' \(label 5\)"):
        fix.fit(without)
    backwards = replace(context, classes=ClassTable.from_counts(COUNTS[::-1]))
    with pytest.raises(FixError, match="same order of classes"):
        fix.fit(backwards)
    assert fix.fit(replace(backwards, force=True)).classes == 6
    single = replace(
        context,
        classes=ClassTable.from_counts([120, 0, 0, 0, 0, 0]),
        train_features=features[labels == 0],
        train_labels=labels[labels == 0],
    )
    with pytest.raises(FixError, match="at least two classes"):
        fix.fit(single)


def test_without_counts_a_class_without_features_is_an_error() -> None:
    context = make_context()
    _, features, labels = given_of(context)
    rest = labels != 5
    unknown = replace(
        context, classes=None, train_features=features[rest], train_labels=labels[rest]
    )
    with pytest.raises(FixError, match=r"--classes FILE\) that say 0"):
        NearestClassMean().fit(unknown)


def test_features_that_are_all_the_same_cannot_be_retrained_on() -> None:
    context = make_context()
    _, features, _ = given_of(context)
    with pytest.raises(FixError, match="are the same"):
        ClassifierRetraining().fit(replace(context, train_features=np.ones_like(features)))


@pytest.mark.parametrize("fix", [ClassifierRetraining(), DisAlign()], ids=Fix.describe)
def test_an_optimum_that_is_not_reached_is_an_error(
    fix: Fix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ltdeploy.fixes.retraining._ITERATIONS", 2)
    with pytest.raises(FixError, match=f"{fix.method} did not converge: after 2 steps"):
        fix.fit(make_context())


@pytest.mark.parametrize(
    ("build", "text"),
    [
        (lambda: NearestClassMean("centered_l2"), "Did you mean 'centred_l2'"),  # type: ignore[arg-type]
        (lambda: ClassifierRetraining(0.0), "above 0"),
        (lambda: DisAlign(-0.5), "at least 0"),
        (lambda: DisAlign(float("nan")), "rho is nan"),
    ],
)
def test_parameters_out_of_their_range_are_refused(build, text: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(FixError, match=text):
        build()


def test_each_lifts_the_tail_of_a_long_tailed_mixture() -> None:
    """Forty overlapping classes, tested with as many images each: the smaller half must gain."""
    counts = tuple(np.geomspace(800, 12, 40).astype(int).tolist())
    context = make_context(5, counts=counts, size=24, spread=4.0)
    head, _, _ = given_of(context)
    rng = np.random.default_rng(6)
    labels = np.repeat(np.arange(40), 50)
    features = (16 * head.weight)[labels] + 4.0 * rng.normal(size=(2000, 24))

    def tail(z: np.ndarray) -> float:
        return float((z.argmax(axis=1) == labels)[labels >= 20].mean())

    before = tail(head_logits(head, features))
    for fix in EVERY_FIX:
        assert tail(applied(fix, context, features)) > before + 0.05, fix.describe()
