"""The whole choice, on logits whose best fix is known."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from evidence_samples import CLASSES, COUNTS, evidence, plain, row

from ltdeploy.calibrate import (
    AUTO,
    Aim,
    Calibration,
    Evidence,
    calibrate,
    check_context,
)
from ltdeploy.classes import ClassTable
from ltdeploy.errors import DataError, FixError, UsageError
from ltdeploy.fixes import LogitAdjustment, VectorScaling
from ltdeploy.models.head import Head

_PRIORS = re.compile("spread over|distributed otherwise|exact")
QUICK = ("temperature", "logit_adjustment", "tau_norm", "vector")


def test_the_prior_that_was_planted_is_found() -> None:
    done = calibrate(evidence(1000, seed=120))
    assert done.chosen.name == "logit_adjustment"
    (fix,) = done.chosen.fixes
    assert fix.parameters()["tau"] == pytest.approx(1.0, abs=0.3)
    assert done.chosen.objective.value > done.before.objective.value + 10
    assert done.chosen.t == pytest.approx(1.0, abs=0.3)  # Bayes's logits are calibrated
    assert done.reason.startswith(f"{fix.describe()} raises class-averaged accuracy")
    # The map that is proposed does on new images what was promised.
    new = evidence(4000, seed=121)
    fixed = done.fix.apply(new.logits).argmax(axis=1) == new.labels
    promised = done.chosen.objective
    assert promised.low - 1 <= 100 * fixed.mean() <= promised.high + 1


def test_where_nothing_helps_nothing_is_chosen() -> None:
    done = calibrate(evidence(500, lean=0.0))
    assert done.chosen.freedom == 0
    assert done.chosen.fixes == ()
    assert done.reason.startswith("No change of decisions: class-averaged accuracy")
    # Confidence is set all the same, and no decision with it.
    assert [one["method"] for one in done.chosen.methods()] == ["temperature"]
    new = evidence(200, lean=0.0, seed=10).logits
    np.testing.assert_array_equal(done.fix.apply(new).argmax(axis=1), new.argmax(axis=1))
    assert done.fix.apply(new) == pytest.approx(new / done.chosen.t)


def test_a_model_that_is_always_right_is_left_as_it_is() -> None:
    labels = np.arange(100) % CLASSES
    right = 10.0 * np.eye(CLASSES)[labels]
    done = calibrate(evidence(labels, logits=right, features=None))
    assert done.chosen.name == "temperature"
    np.testing.assert_array_equal(done.fix.apply(right).argmax(axis=1), labels)
    assert any("right on every image" in text for text in done.warnings)
    assert any("Was it trained on them?" in text for text in done.warnings)


def test_methods_stand_in_the_order_of_the_objective_after_the_model_as_it_is() -> None:
    done = calibrate(evidence(500))
    assert done.before is done.methods[0]
    assert done.before.status == "before"
    reached = [method.objective.value for method in done.methods[1:]]
    assert reached == sorted(reached, reverse=True)
    assert [method.status for method in done.methods].count("chosen") == 1
    assert done.chosen in done.methods
    tried = {method.name for method in done.methods[1:]} | {s.method for s in done.skipped}
    assert tried == set(AUTO)


@pytest.mark.parametrize("objective", ["balanced", "few", "harmonic", "overall"])
def test_figures_and_standings_tell_the_same(objective: Any) -> None:
    prior = np.array([0.6, 0.2, 0.1, 0.05, 0.05]) if objective == "overall" else None
    done = calibrate(evidence(400), methods=QUICK, aim=Aim(objective, prior))
    best = max(method.objective.value for method in done.methods[1:])
    assert {method.name for method in done.methods[1:]} == set(QUICK)
    for method in done.methods:
        assert method.behind[0] == pytest.approx(method.objective.value - best, abs=1e-6)
        assert method.objective.low <= method.objective.value <= method.objective.high
    unfixed = row(done, "temperature")  # changes no decision
    assert unfixed.objective.value == pytest.approx(done.before.objective.value)
    assert unfixed.head_change.value == 0.0


def test_the_simpler_one_is_chosen_and_the_better_one_named() -> None:
    methods = ("temperature", "logit_adjustment", "dirichlet")
    done = calibrate(evidence(1000, seed=60), methods=methods)
    ahead = row(done, "dirichlet")
    assert done.chosen.name == "logit_adjustment"
    assert (ahead.status, ahead.behind[0]) == ("candidate", 0.0)
    assert 0 < -done.chosen.behind[0] <= done.chosen.behind[1]
    assert "; dirichlet is " in done.reason
    # Whoever is chosen: all stand behind the best one, the model as it is too.
    assert done.before.behind[0] == pytest.approx(row(done, "temperature").behind[0])


@pytest.mark.parametrize("per_class", [1, 3])
@pytest.mark.parametrize("objective", ["balanced", "harmonic"])
def test_a_few_images_per_class_are_enough_for_every_method(per_class: int, objective: Any) -> None:
    done = calibrate(evidence(CLASSES * per_class), aim=Aim(objective))
    told = plain(done)  # finite, or it would be no JSON
    skipped = {one.method for one in done.skipped}
    # A class without an image in a fold leaves no prior to measure there.
    shift = {"bias_corrected_temperature+label_shift:source=validation"}
    assert skipped == {"platt"} | (shift if per_class == 1 else set())
    assert len(told["methods"]) == 1 + len(AUTO) - len(skipped)
    for method in done.methods:
        figures = method.figures
        for figure in (figures.balanced, figures.nll, figures.ece, figures.classwise_ece):
            assert figure.low <= figure.value <= figure.high
    assert done.folds == 5
    assert any("fewer than 3" in text for text in done.warnings) == (per_class == 1)


@pytest.mark.parametrize("images", [2, 3, 6])
def test_fewer_images_than_classes_or_folds(images: int) -> None:
    for seed in range(2):
        done = calibrate(evidence(images), seed=seed)
        assert done.folds == min(5, images)
        plain(done)


def test_all_images_of_one_class_are_refused_in_words() -> None:
    with pytest.raises(DataError, match="20 images of 1 class; choosing a fix needs at least two"):
        evidence(np.zeros(20, dtype=np.int64))


def test_missing_classes_are_named_and_stand_in_no_figure() -> None:
    done = calibrate(evidence(np.arange(300) % 3), methods=QUICK)
    assert done.warnings[0].startswith("2 of 5 classes have no validation image")
    assert "3, 4" in done.warnings[0]
    assert done.before.figures.groups["few"] is None
    told = plain(done)
    assert [one["before"] is None for one in told["classes"]] == [False, False, False, True, True]
    assert told["confidence"]["after"]["few"]["accuracy"] is None
    # Negative control.
    whole = calibrate(evidence(300), methods=QUICK)
    assert not any("no validation image" in text for text in whole.warnings)


def test_what_would_correct_twice_is_left_out_with_the_reason() -> None:
    done = calibrate(evidence(300, trained_with="balanced_softmax"))
    reasons = {one.method: one.reason for one in done.skipped}
    assert "trained with balanced_softmax" in reasons["logit_adjustment"]
    assert "logit_adjustment" not in {method.name for method in done.methods}
    assert {"tau_norm", "vector", "group_boost"} <= {method.name for method in done.methods}
    with pytest.raises(FixError, match="already corrects"):
        calibrate(
            evidence(300, trained_with="balanced_softmax"), methods=["logit_adjustment:tau=1"]
        )
    forced = evidence(300, trained_with="balanced_softmax", force=True)
    assert row(calibrate(forced, methods=QUICK), "logit_adjustment").freedom == 1


def test_a_model_that_does_not_lean_is_pointed_out_where_its_loss_is_unknown() -> None:
    def hints(**changes: Any) -> list[str]:
        done = calibrate(evidence(400, **changes), methods=["temperature"])
        return [text for text in done.warnings if "does not lean" in text]

    assert "--trained-with" in hints(lean=0.0)[0]
    assert "What is recorded is cross_entropy" in hints(lean=0.0, trained_with="cross_entropy")[0]
    assert hints(lean=0.0, trained_with="balanced_softmax") == []
    assert hints(lean=1.0) == []


def test_a_validation_prior_unlike_the_target_is_pointed_out() -> None:
    def hints(images: np.ndarray | int, aim: Aim) -> list[str]:
        done = calibrate(evidence(images), methods=["temperature"], aim=aim)
        return [text for text in done.warnings if _PRIORS.search(text)]

    skewed = np.repeat(np.arange(CLASSES), [200, 100, 50, 30, 20])
    target = np.array([0.1, 0.1, 0.2, 0.3, 0.3])
    assert "as your target prior says" in hints(skewed, Aim("overall", target))[0]
    assert "over the classes equally" in hints(skewed, Aim())[0]
    assert "Say --target-prior" in hints(skewed, Aim("overall"))[0]
    estimated = Aim("overall", target, estimated=True)
    assert "from 40 unlabelled images, and so few say little" in hints(skewed, estimated)[0]
    assert "if it were exact" in hints(skewed, estimated)[0]
    by_chance = np.repeat(np.arange(CLASSES), [12, 6, 5, 9, 8])
    assert np.abs(np.bincount(by_chance) / 40 - 0.2).sum() / 2 > 0.1
    assert hints(by_chance, Aim()) == []
    own = np.bincount(skewed) / len(skewed)
    assert hints(skewed, Aim("overall", own)) == []
    assert hints(400, Aim()) == []
    like_training = np.repeat(np.arange(CLASSES), np.array(COUNTS) // 2 + 1)
    assert hints(like_training, Aim("overall")) == []


def test_a_target_prior_is_tried_and_called_a_fix() -> None:
    target = np.array([0.05, 0.05, 0.1, 0.3, 0.5])
    done = calibrate(evidence(1000), aim=Aim("overall", target))
    assert row(done, "target_prior").freedom == 0
    assert done.chosen.name == "target_prior"
    assert done.reason.startswith("target_prior:prior=[5 values] raises the accuracy over images")
    unnamed = calibrate(evidence(400), methods=QUICK, aim=Aim("overall", target))
    assert "target_prior" not in {method.name for method in unnamed.methods}


def test_target_priors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UsageError, match="has 4 shares and there are 5 classes"):
        calibrate(evidence(50), aim=Aim("overall", np.full(4, 0.25)))
    nowhere = np.array([0, 0, 0, 0.5, 0.5])
    with pytest.raises(UsageError, match="no share to any class that has validation images"):
        calibrate(evidence(np.arange(60) % 3), aim=Aim("overall", nowhere))
    # One image of the only class that counts: the folds without it must not divide by zero.
    one = np.append(np.arange(60) % 3, 3)
    done = calibrate(evidence(one), aim=Aim("overall", nowhere))
    assert "vector" in {skipped.method for skipped in done.skipped}
    assert done.before.objective.value in (0.0, 100.0)


def test_no_method_and_too_few_folds_are_refused() -> None:
    with pytest.raises(UsageError, match="No method is named"):
        calibrate(evidence(50), methods=[])
    with pytest.raises(UsageError, match="number of folds is 1"):
        calibrate(evidence(50), folds=1)
    assert calibrate(evidence(50), methods=["temperature"], folds=3).folds == 3


def test_the_head_is_protected() -> None:
    def done(limit: float | None) -> Calibration:
        methods = ("temperature", "logit_adjustment", "vector")
        return calibrate(evidence(1000), methods=methods, aim=Aim(max_head_loss=limit))

    free, held, nothing = done(None), done(8.0), done(0.0)
    assert free.chosen.head_change.value < -8.0
    assert held.chosen.head_change.low >= -8.0
    assert held.before.objective.value < held.chosen.objective.value < free.chosen.objective.value
    for method in held.methods[1:]:
        costly = method.head_change.low < -8.0 - 1e-9
        assert costly == (method.status == "too costly for the head")
    assert nothing.chosen.freedom == 0
    assert "more than the 0 allowed" in nothing.reason
    assert "The fix is a temperature of" in nothing.reason


@pytest.mark.parametrize("seed", range(6))
def test_a_larger_limit_never_leaves_less(seed: int) -> None:
    """A strength that just fails is not the end of its method: a milder one is chosen."""
    given = evidence(300, seed=seed)
    reached = []
    for limit in (2.0, 4.0, 6.0, 8.0, 12.0, 20.0):
        done = calibrate(given, methods=["logit_adjustment"], aim=Aim(max_head_loss=limit))
        assert done.chosen.head_change.low >= -limit
        reached.append(done.chosen.objective.value)
    assert reached[-1] > reached[0] + 2
    assert all(later > before - 2 for before, later in pairwise(reached))


def test_forced_evidence_keeps_to_the_limit() -> None:
    given = evidence(300)
    forced = replace(given, context=replace(given.context, force=True))
    kept = calibrate(forced, methods=["vector"], aim=Aim(max_head_loss=0.5))
    assert kept.chosen.name == "temperature"
    free = calibrate(forced, methods=["logit_adjustment:tau=6"])
    assert free.chosen.name == "logit_adjustment:tau=6"


def test_the_same_seed_gives_the_same_result() -> None:
    first, again = (plain(calibrate(evidence(100), seed=3)) for _ in range(2))
    assert first == again
    assert plain(calibrate(evidence(100), seed=4)) != first


def test_how_classes_are_numbered_changes_nothing() -> None:
    order = np.array([3, 0, 4, 2, 1])  # the old label of each new one
    context = evidence(300).context
    assert context.logits is not None
    assert context.head is not None
    assert context.labels is not None
    assert context.target_logits is not None
    assert context.train_labels is not None
    new = np.argsort(order)
    renumbered = replace(
        context,
        head=Head("linear", context.head.weight[order]),
        classes=ClassTable.from_counts(COUNTS[order].tolist(), [str(label) for label in order]),
        logits=context.logits[:, order],
        labels=new[context.labels],
        train_labels=new[context.train_labels],
        target_logits=context.target_logits[:, order],
    )
    for aim in (Aim(), Aim("few", None, 10.0)):
        ours = calibrate(Evidence(context, "x"), aim=aim)
        theirs = calibrate(Evidence(check_context(renumbered), "x"), aim=aim)
        assert theirs.chosen.name == ours.chosen.name
        assert theirs.chosen.fixes == ours.chosen.fixes
        assert theirs.chosen.per_fold == ours.chosen.per_fold
        expected, found = (done.chosen.figures.to_dict() for done in (ours, theirs))
        assert order[found["worst"].pop("label")] == expected["worst"].pop("label")
        for name in expected:
            for part, figure in expected[name].items():
                assert found[name][part] == pytest.approx(figure, rel=1e-4)
        for method in ours.methods:
            assert row(theirs, method.name).objective.value == pytest.approx(
                method.objective.value, abs=1.0
            )


def test_sweeps_are_what_each_value_reaches() -> None:
    given = evidence(300)
    done = calibrate(given, methods=QUICK)
    sweeps = {sweep.method: sweep for sweep in done.sweeps}
    assert set(sweeps) == {"logit_adjustment", "tau_norm"}
    sweep = sweeps["logit_adjustment"]
    assert sweep.chosen == row(done, sweep.method).fixes[0].parameters()["tau"]
    assert sweep.series["balanced"][0] == pytest.approx(done.before.figures.balanced.value)
    for place in (0, 10, 25):
        mapped = LogitAdjustment(sweep.values[place]).fit(given.context).apply(given.logits)
        right = mapped.argmax(axis=1) == given.labels
        per_class = 100 * np.array([right[given.labels == c].mean() for c in range(CLASSES)])
        assert sweep.series["balanced"][place] == pytest.approx(per_class.mean())
        assert sweep.series["overall"][place] == pytest.approx(100 * right.mean())
        assert sweep.series["few"][place] == pytest.approx(per_class[3:].mean())
    best = sweep.values[int(sweep.series["balanced"].argmax())]
    assert sweep.chosen == best


def test_confidence_and_classes_are_those_of_the_figures() -> None:
    overconfident = evidence(600, logits=3 * evidence(600).logits, features=None)
    done = calibrate(overconfident, methods=["logit_adjustment"])
    before, after = done.confidence["before"]["all"], done.confidence["after"]["all"]
    assert before.accuracy == pytest.approx(done.before.figures.overall.value)
    assert after.accuracy == pytest.approx(done.chosen.figures.overall.value)
    for one, figures in ((before, done.before.figures), (after, done.chosen.figures)):
        assert one.diagram.error is not None
        assert 100 * one.diagram.error == pytest.approx(figures.ece.value, abs=1e-4)
    # Three times too sure, and not after.
    assert before.confidence is not None
    assert before.accuracy is not None
    assert after.confidence == pytest.approx(after.accuracy, abs=5)
    assert before.confidence > before.accuracy + 10
    assert [change.images for change in done.changes] == [120] * CLASSES
    of_classes = np.array([(change.before, change.after) for change in done.changes])
    assert of_classes.mean(axis=0) == pytest.approx(
        [done.before.figures.balanced.value, done.chosen.figures.balanced.value]
    )


def test_likelihoods_are_weighted_to_the_target() -> None:
    """Vector scaling on skewed images must come out as if every class had as many."""
    skewed = evidence(np.repeat(np.arange(CLASSES), [400, 100, 60, 40, 40]))
    done = calibrate(skewed, methods=["vector:l2=0.01"])
    weights = 1 / np.bincount(skewed.labels)[skewed.labels]
    expected = VectorScaling(0.01).fit(replace(skewed.context, weights=weights))
    np.testing.assert_allclose(
        done.fix.apply(skewed.logits), expected.apply(skewed.logits), rtol=1e-6
    )
    unweighted = VectorScaling(0.01).fit(skewed.context)
    assert not np.allclose(done.fix.apply(skewed.logits), unweighted.apply(skewed.logits), rtol=0.1)


def test_a_sigmoid_head_has_its_own_methods() -> None:
    head = Head("linear", np.zeros((CLASSES, 0)), activation="sigmoid", foldable=False)
    given = evidence(
        200, head=head, features=None, train_features=None, train_labels=None, target_logits=None
    )
    done = calibrate(given)
    tried = {method.name for method in done.methods}
    assert "platt" in tried
    assert "logit_adjustment" not in tried
    plain(done)


def test_huge_and_tiny_logits_stay_finite() -> None:
    for scale in (1e-6, 1e6):
        given = evidence(100)
        done = calibrate(
            replace(given, context=replace(given.context, logits=scale * given.logits))
        )
        plain(done)


def test_chains_are_tried_once_and_as_they_are_named() -> None:
    name = "logit_adjustment+vector:l2=0.1"
    done = calibrate(evidence(300), methods=[name, name])
    assert [method.name for method in done.methods] == ["none", name, "temperature"]
    assert done.chosen.freedom == 1 + 2 * CLASSES
    assert [one["method"] for one in done.chosen.methods()] == ["logit_adjustment", "vector"]
    assert all(isinstance(value, float) for value in done.chosen.per_fold)
