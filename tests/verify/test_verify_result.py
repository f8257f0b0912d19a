"""From logits to a result: figures, verdict, JSON and words."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from ltdeploy.classes import ClassTable, GroupRule
from ltdeploy.errors import DataError, EngineError, UsageError
from ltdeploy.verify.assess import Accumulator, assess
from ltdeploy.verify.result import VerifyResult, name_some
from ltdeploy.verify.summary import WORST_CLASSES, group_rows, summarise, worst_classes

CLASSES = 30
PER_CLASS = 100
COUNTS = tuple([500] * 10 + [50] * 10 + [5] * 10)
TABLE = ClassTable(tuple(f"species {c}" for c in range(CLASSES)), COUNTS)
DEAD = [21, 23, 25, 27, 29]

Logits = np.ndarray


def model(seed: int = 0, per_class: int = PER_CLASS) -> tuple[np.ndarray, Logits]:
    """Labels, and logits of a model that is right about half of the time in every class."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(CLASSES), per_class)
    logits = random.normal(size=(len(labels), CLASSES)).astype(np.float32)
    logits[np.arange(len(labels)), labels] += 2.0
    return labels, logits


def with_dead_rows(logits: Logits, dead: list[int]) -> Logits:
    """What zeroing the head rows of classes does to images these classes were right on."""
    broken = logits.copy()
    broken[:, dead] = 0.0
    return broken


def without_five() -> VerifyResult:
    labels, reference = model()
    return assess(labels, reference, with_dead_rows(reference, DEAD), reference - 0.5, TABLE)


def test_five_dead_classes_fail_and_are_named_while_the_average_hardly_moves() -> None:
    labels, reference = model(1)
    reference[:, 20:] -= 1.4  # a tail at a third of the head's accuracy, as in real life
    candidate = with_dead_rows(reference, DEAD)
    candidate[:, DEAD] = -1e3
    result = assess(labels, reference, candidate, None, TABLE)
    assert result.overall.difference is not None
    assert abs(result.overall.difference) < 5
    assert result.groups["many"].verdict == "pass"
    assert result.verdict == result.groups["few"].verdict == "fail"
    assert sorted(c.label for c in result.regressed) == DEAD
    for label in DEAD:
        assert f"species {label}" in summarise(result).splitlines()[0]


def test_figures_agree_with_plain_ones() -> None:
    result = without_five()
    labels, reference = model()
    candidate = with_dead_rows(reference, DEAD)
    for name, members in (("many", range(10)), ("few", range(20, 30)), ("overall", range(30))):
        group = result.overall if name == "overall" else result.groups[name]
        own = np.isin(labels, list(members))
        right = [(logits.argmax(1) == labels)[own] for logits in (reference, candidate)]
        assert group.reference == pytest.approx(100 * right[0].mean())  # balanced
        assert group.candidate_images == pytest.approx(100 * right[1].mean())
        assert group.difference == pytest.approx(group.candidate - group.reference)
        assert group.flips_lost == (right[0] & ~right[1]).sum()
        assert group.flips_won == (right[1] & ~right[0]).sum()
        assert group.unfixed == pytest.approx(group.reference)
        assert group.ece_reference == pytest.approx(group.ece_unfixed, abs=1e-3)
        assert group.ci_low < group.difference < group.ci_high
    assert result.flips == (reference.argmax(1) != candidate.argmax(1)).sum() == len(result.flipped)
    assert result.max_abs_logit_diff == pytest.approx(np.abs(reference - candidate).max())
    assert {f.kind for f in result.flipped} == {"lost", "won", "changed"}


def test_json_has_the_documented_keys_and_no_nan() -> None:
    table = ClassTable((*TABLE.names, "unseen"), (*COUNTS, 3))
    labels, reference = model()
    wide = np.pad(reference, ((0, 0), (0, 1)), constant_values=-9.0)
    result = assess(labels, wide, with_dead_rows(wide, DEAD), None, table, unreadable=2)

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    content = json.loads(result.to_json(), parse_constant=refuse)
    assert {
        "schema", "verdict", "margin", "images", "unreadable", "max_abs_logit_diff", "flips",
        "overall", "groups", "classes",
    } <= content.keys()  # fmt: skip
    assert list(content["groups"]) == ["many", "medium", "few"]
    for group in (content["overall"], *content["groups"].values()):
        assert {
            "classes", "images", "unfixed", "reference", "candidate", "difference", "ci_low",
            "ci_high", "flips_lost", "flips_won", "verdict",
        } <= group.keys()  # fmt: skip
        assert group["unfixed"] is None
    assert {
        "name", "label", "group", "train_count", "images", "reference", "candidate", "p_value",
        "q_value", "regressed",
    } <= content["classes"][0].keys()  # fmt: skip
    unseen = content["classes"][-1]
    assert (unseen["name"], unseen["images"], unseen["reference"]) == ("unseen", 0, None)
    assert (unseen["p_value"], unseen["regressed"]) == (None, False)
    assert content["groups"]["few"]["classes_without_images"] == 1
    assert content["unreadable"] == 2
    assert result.without_images == ("unseen",)
    assert "Without images, and so in no figure: unseen." in summarise(result)


def test_batches_give_what_the_whole_gives() -> None:
    labels, reference = model()
    candidate = with_dead_rows(reference, DEAD)
    order = np.random.default_rng(3).permutation(len(labels))
    accumulator = Accumulator(TABLE)
    for rows in np.array_split(order, 17):
        accumulator.update(
            labels[rows], reference[rows], candidate[rows], reference[rows] - 0.5, rows
        )
    batched, whole = accumulator.result(), without_five()
    assert batched.classes == whole.classes
    assert batched.max_abs_logit_diff == whole.max_abs_logit_diff
    for one, other in zip(batched.groups.values(), whole.groups.values(), strict=True):
        for key, value in asdict(other).items():
            assert getattr(one, key) == (
                pytest.approx(value) if isinstance(value, float) else value
            ), key
    assert {f.index for f in batched.flipped} == {f.index for f in whole.flipped}


def test_the_order_of_classes_does_not_matter() -> None:
    labels, reference = model()
    candidate = with_dead_rows(reference, DEAD)
    order = np.random.default_rng(4).permutation(CLASSES)
    place = np.argsort(order)
    table = ClassTable(tuple(TABLE.names[c] for c in order), tuple(TABLE.counts[c] for c in order))
    moved = assess(place[labels], reference[:, order], candidate[:, order], None, table)
    plain = assess(labels, reference, candidate, None, TABLE)
    assert moved.verdict == plain.verdict
    assert {c.name for c in moved.regressed} == {c.name for c in plain.regressed}
    assert moved.groups["few"].ci_low == pytest.approx(plain.groups["few"].ci_low)


def test_equivalent_models_pass_on_an_image_per_class_and_different_ones_do_not() -> None:
    labels, reference = model()
    few = labels[::PER_CLASS], reference[::PER_CLASS]
    same = assess(*few, few[1] * (1 + 1e-6), None, TABLE)
    assert (same.verdict, same.equivalent) == ("pass", True)
    assert "numerically the same" in summarise(same)
    # The same top-1 labels, yet logits that moved: 30 images prove nothing.
    scaled = assess(*few, few[1] * 1.01, None, TABLE)
    assert (scaled.verdict, scaled.equivalent, scaled.flips) == ("inconclusive", False, 0)
    assert scaled.groups["few"].images_to_decide == pytest.approx(381, abs=1)
    assert "Too little data to decide" in summarise(scaled)
    assert "381 images of few (now 10)" in summarise(scaled)


def test_a_pass_names_the_class_that_got_worse_all_the_same() -> None:
    labels, reference = model(per_class=400)
    candidate = reference.copy()
    lost = np.flatnonzero((labels == 3) & (reference.argmax(1) == 3))[:20]
    candidate[lost, 3] = -9.0
    result = assess(labels, reference, candidate, None, TABLE)
    assert result.verdict == "pass"
    first = summarise(result).splitlines()[0]
    assert first.startswith(
        "Every group survived at the margin of 1 point, but this class got worse: species 3; "
    )
    assert "tail survived" not in first


def test_missing_group_is_inconclusive_and_said() -> None:
    labels, reference = model(per_class=400)
    seen = labels < 20
    result = assess(labels[seen], reference[seen], reference[seen] * 1.5, None, TABLE)
    assert result.verdict == result.groups["few"].verdict == "inconclusive"
    assert "No class of few has images, too few to speak for the group: add" in summarise(result)
    assert result.groups["few"].reference is None


@pytest.mark.parametrize(("measured", "verdict"), [(1, "inconclusive"), (5, "pass")])
def test_classes_without_images_are_counted_and_most_of_them_keep_a_group_undecided(
    measured: int, verdict: str
) -> None:
    labels, reference = model(per_class=400)
    seen = labels < 20 + measured
    result = assess(labels[seen], reference[seen], reference[seen] * 1.5, None, TABLE)
    first = summarise(result).splitlines()[0]
    few = result.groups["few"]
    assert (few.verdict, few.images_to_decide, few.classes_without_images) == (
        verdict, None, 10 - measured,
    )  # fmt: skip
    have = "has" if measured == 1 else "have"
    assert f"nly {measured} of the 10 few classes {have} images" in first
    assert ("add images of species 21, species 22" in first) == (verdict == "inconclusive")
    assert [row[1] for row in group_rows(result)][3:] == [
        f"{measured} of 10", f"{20 + measured} of 30",
    ]  # fmt: skip
    same = assess(labels[seen], reference[seen], reference[seen], None, TABLE)
    assert same.verdict == "pass"
    assert f"Only {measured} of the 10 few classes {have} images." in summarise(same)


def test_a_group_with_nothing_to_lose_is_said_so() -> None:
    labels, reference = model(per_class=400)
    candidate = reference * 1.5
    said = "The reference gets no image of few right: nothing to lose there."
    assert said not in summarise(assess(labels, reference, candidate, None, TABLE))
    reference[:, 20:] = candidate[:, 20:] = -9.0
    for other in (candidate, reference):  # numerically the same, or not
        result = assess(labels, reference, other, None, TABLE)
        assert (result.verdict, result.groups["few"].candidate) == ("pass", 0.0)
        assert said in summarise(result).splitlines()[0]


def test_what_was_not_computed_is_not_passed_without_a_word() -> None:
    labels, reference = model(per_class=400)
    plain = assess(labels, reference, reference, None, TABLE)
    assert "float32" not in summarise(plain)
    assert (plain.to_dict()["notes"], plain.to_dict()["not_computed"]) == ([], None)
    for result in (plain, without_five()):
        told = replace(result, notes=("a note",), not_computed="fp16")
        assert (
            summarise(told)
            .splitlines()[0]
            .startswith("As float32 on this processor, which says nothing of fp16, the tail ")
        )
        content = json.loads(told.to_json())
        assert (content["notes"], content["not_computed"]) == (["a note"], "fp16")
        assert content["sentence"] in summarise(told)


def test_one_of_a_thing_is_not_in_the_plural() -> None:
    labels, reference = model()
    one = assess(labels[:1], reference[:1], reference[:1], None, TABLE)
    assert "changed on 1 image, largest" in summarise(one)
    flipped = assess(labels[:1], reference[:1], -reference[:1], None, TABLE)
    assert "1 flip, 1 shown:" in summarise(flipped)


def test_limit_that_kept_a_group_from_failing_is_said() -> None:
    labels, reference = model(per_class=20)
    candidate = reference.copy()
    candidate[np.flatnonzero((labels == 25) & (reference.argmax(1) == 25))[:5], 25] = -9.0
    result = assess(labels, reference, candidate, None, TABLE)
    few = result.groups["few"]
    assert (few.verdict, few.ci_high < 0.0 <= few.fail_high) == ("inconclusive", True)
    assert "when corrected for several groups)" in summarise(result).splitlines()[0]
    assert json.loads(result.to_json())["groups"]["few"]["fail_high"] == few.fail_high


def test_groups_follow_the_tables_rule() -> None:
    rule = GroupRule(names=("frequent", "common", "rare"), above=(100, 10))
    labels, reference = model()
    table = ClassTable(TABLE.names, TABLE.counts, rule)
    result = assess(labels, reference, reference, None, table)
    assert list(result.groups) == ["frequent", "common", "rare"]
    assert [row[0] for row in group_rows(result)] == ["", "frequent", "common", "rare", "overall"]


def test_an_empty_group_has_no_figures_and_spoils_nothing() -> None:
    table = ClassTable(TABLE.names, tuple([500] * 20 + [5] * 10))
    labels, reference = model()
    result = assess(labels, reference, reference, None, table)
    medium = result.groups["medium"]
    assert (medium.classes, medium.reference, medium.verdict) == (0, None, None)
    assert result.verdict == "pass"


@pytest.mark.parametrize("side", ["reference", "candidate", "unfixed"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_logits_name_the_model_and_the_image(side: str, value: float) -> None:
    labels, logits = model()
    given = {name: logits.copy() for name in ("reference", "candidate", "unfixed")}
    given[side][7, 4] = value
    with pytest.raises(EngineError, match=rf"{side} gave (nan|inf) .* class 4 for image 7"):
        assess(labels=labels, classes=TABLE, **given)


def test_refusals() -> None:
    labels, logits = model()
    with pytest.raises(EngineError, match=r"candidate gave logits of shape \(3000, 29\)"):
        assess(labels, logits, logits[:, :29], None, TABLE)
    with pytest.raises(DataError, match=r"label outside 0\.\.29, for example 30"):
        assess(labels + 1, logits, logits, None, TABLE)
    with pytest.raises(UsageError, match="The margin is 0"):
        assess(labels, logits, logits, None, TABLE, margin=0.0)
    empty = Accumulator(TABLE)
    with pytest.raises(DataError, match="no image was read \\(3 unreadable\\)"):
        empty.result(unreadable=3)
    mixed = Accumulator(TABLE)
    mixed.update(labels[:5], logits[:5], logits[:5], logits[:5])
    with pytest.raises(UsageError, match="some batches only"):
        mixed.update(labels[:5], logits[:5], logits[:5])


def test_summary_is_short_and_shows_the_worst_and_the_flips() -> None:
    result = without_five()
    text = summarise(result, most=3, identifier=lambda index: f"val/{index}.jpg")
    lines = text.splitlines()
    assert lines[0].startswith("The tail did not survive: few −")
    assert "Worse for these 5 classes: " in lines[0]
    assert len(lines) < 25
    assert lines[lines.index(WORST_CLASSES) + 1].startswith("class")
    assert sum("(worse)" in line for line in lines) == 3
    assert "val/" in text
    assert f"{result.flips:,} flips, 3 shown:" in text
    assert [c.label for c in worst_classes(result, 5)] == [c.label for c in result.regressed]


def test_name_some() -> None:
    assert name_some(["a"]) == "a"
    assert name_some([str(n) for n in range(12)]).endswith("8, 9 and 2 more")


def test_report_material() -> None:
    result = without_five()
    assert set(result.reliability) == {"overall", "many", "medium", "few"}
    assert set(result.reliability["few"]) == {"unfixed", "reference", "candidate"}
    diagram = result.reliability["few"]["candidate"]
    assert diagram.counts.sum() == result.groups["few"].images
    error = result.groups["few"].ece_candidate
    assert error is not None
    assert math.isclose(error, 100 * (diagram.error or 0.0))
