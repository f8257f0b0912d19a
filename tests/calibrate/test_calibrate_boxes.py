"""A detector's fix is chosen by average precision, on photographs that did not choose it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from box_samples import CANVAS, NAMES, write_boxes, write_detector
from pydantic import ValidationError

from ltdeploy.calibrate import Aim
from ltdeploy.calibrate.boxes import (
    BoxCalibration,
    BoxEvidence,
    RawBoxes,
    box_candidates,
    calibrate_boxes,
    evidence_of_detector,
    fix_file_of_boxes,
)
from ltdeploy.calibrate.boxes.candidates import largest_rise
from ltdeploy.calibrate.boxes.choice import BoxContestant, compare_boxes, difference
from ltdeploy.calibrate.boxes.evidence import may_be_kept
from ltdeploy.calibrate.boxes.scoring import Scorer, folds_of, strata_of_boxes
from ltdeploy.canvas import Canvas, load_on_canvas
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_boxes
from ltdeploy.engines.detector_reference import DetectorReference
from ltdeploy.errors import DataError, FixError, UsageError
from ltdeploy.export.detection.detector_export import export_detector
from ltdeploy.export.fitting import _require_made_for
from ltdeploy.fixes import AffineMap, FixContext, FixFile, NorCal, read_fix_file
from ltdeploy.fixes import write_fix_file as write_fix
from ltdeploy.metrics.detection import average_precision
from ltdeploy.metrics.matching import ImageTruth
from ltdeploy.models.detectors.detector import Detector, load_detector
from ltdeploy.models.head import Head
from ltdeploy.postprocess import KeepRule, ScoreRule, postprocess
from ltdeploy.verify.boxes import verify_detector

Cli = Callable[..., tuple[int, str, str]]

COUNTS = (800, 400, 150, 40, 8, 4)
SIDE = 200
GAMMA = 0.6


def planted(
    *, lowered: float = GAMMA, images: int = 90, noise: float = 2.0, seed: int = 0
) -> BoxEvidence:
    """Return outputs whose logits lean to frequent classes by ``lowered · log n``, and no more.

    Every photograph holds three objects with a box each, and twelve boxes of background. Which
    class a box shows is known up to noise; the lean alone moves it to frequent ones.
    """
    rng = np.random.default_rng(seed)
    table = ClassTable(tuple(f"c{label}" for label in range(len(COUNTS))), COUNTS)
    lean = lowered * np.log(COUNTS)
    raw, truth = [], []
    for image in range(images):
        labels = (image + np.arange(3)) % len(COUNTS)
        corners = np.array([(10, 10), (80, 60), (140, 130)], np.float32)
        boxes = np.concatenate([corners, corners + 40], axis=1)
        drawn = rng.uniform(0, SIDE - 30, (12, 2)).astype(np.float32)
        other = np.concatenate([drawn, drawn + 25], axis=1)
        logits = rng.normal(0, noise, (15, len(COUNTS) + 1))
        logits[np.arange(3), 1 + labels] += 3.0
        logits[3:, 0] += 4.0
        logits[:, 1:] += lean
        logits[:, 0] += 3.0
        raw.append(
            RawBoxes(
                np.concatenate([boxes, other]),
                logits.astype(np.float32),
                None,
                Canvas(SIDE, SIDE).place(SIDE, SIDE),
                f"{image}.png",
            )
        )
        area = np.full(3, 1600.0)
        truth.append(ImageTruth(boxes, labels.astype(np.int64), np.zeros(3, np.bool_), area))
    head = Head("linear", np.zeros((len(COUNTS) + 1, 2)), background=0)
    return BoxEvidence(
        context=FixContext(head=head, classes=table, trained_with="cross_entropy"),
        raw=raw,
        truth=truth,
        score_rule=ScoreRule("softmax", background=0),
        keep_rule=KeepRule(top_k=20),
        name="planted",
    )


@pytest.fixture(scope="module")
def leaning() -> BoxEvidence:
    return planted()


@pytest.fixture(scope="module")
def chosen(leaning: BoxEvidence) -> BoxCalibration:
    return calibrate_boxes(leaning, methods=["norcal", "logit_adjustment", "group_odds"])


# A planted lean


def test_a_planted_lean_is_found(chosen: BoxCalibration) -> None:
    norcal = next(one for one in chosen.methods if one.name == "norcal")
    assert isinstance(norcal.fix, NorCal)
    assert 0.4 <= norcal.fix.gamma <= 0.8
    gain = norcal.standing.gain
    assert gain.low > 0
    assert norcal.figures.groups["few"] > chosen.before.figures.groups["few"] + 3
    assert chosen.chosen is not chosen.before
    assert "raises mean AP on held-out photographs" in chosen.reason


def test_without_a_lean_no_fix_is_chosen() -> None:
    done = calibrate_boxes(planted(lowered=0.0), methods=["norcal", "group_odds"])
    assert done.chosen is done.before
    assert done.fix.is_identity
    assert done.reason.startswith("No fix:")
    assert fix_file_of_boxes(done, planted(lowered=0.0)).methods == ()


def test_the_lean_is_undone_up_to_the_level(leaning: BoxEvidence) -> None:
    """The right γ gives back the answers that the outputs without the lean would give."""
    straight = planted(lowered=0.0)
    fixed = NorCal(GAMMA).fit(leaning.context)
    fold = folds_of(leaning, 5, 0)
    ours = average_precision(Scorer(leaning, fold).matches([fixed] * 5))
    best = average_precision(Scorer(straight, fold).matches([_identity(straight)] * 5))
    assert np.allclose(ours, best, atol=1e-9)


def test_the_head_is_protected(leaning: BoxEvidence, chosen: BoxCalibration) -> None:
    limited = calibrate_boxes(leaning, methods=["norcal"], aim=Aim(max_head_loss=0.0))
    change = limited.chosen.standing.head_change
    assert change.low >= 0.0
    free = next(one for one in chosen.methods if one.name == "norcal")
    assert limited.chosen.objective <= free.objective + 1e-9


def test_every_figure_comes_from_photographs_that_did_not_choose(leaning: BoxEvidence) -> None:
    """Turn the truth of one fold over: what answers that fold must stay what it was."""
    fold = folds_of(leaning, 5, 0)
    turned = replace(
        leaning,
        truth=[
            replace(one, labels=(one.labels + 1) % len(COUNTS)) if number == 0 else one
            for one, number in zip(leaning.truth, fold.tolist(), strict=True)
        ],
    )
    strata = strata_of_boxes(leaning, Aim())
    for part in range(5):
        values = [
            Scorer(evidence, fold).without_fold(NorCal(0.5).fit(leaning.context), part)
            for evidence in (leaning, turned)
        ]
        same = bool(np.allclose(*(strata.value(value) for value in values)))
        assert same == (part == 0)  # the negative control: other folds do see it


# Parts


def test_each_fold_is_ranked_by_itself() -> None:
    """Lower scores in one fold alone mix one ranking of all up, and change no fold's own."""
    independent = replace(
        planted(lowered=0.0, noise=1.0),
        score_rule=ScoreRule("sigmoid", background=0),
        keep_rule=KeepRule(score_threshold=0.0, top_k=20),
    )
    fold = folds_of(independent, 5, 0)
    scorer, strata = Scorer(independent, fold), strata_of_boxes(independent, Aim())
    identity = _identity(independent)
    faint = AffineMap(identity.scale, identity.shift - 3.0)
    plain, mixed = (scorer.matches(maps) for maps in ([identity] * 5, [faint, *[identity] * 4]))
    apart = [scorer.held_out(one, strata).precision for one in (plain, mixed)]
    assert np.allclose(*apart)
    together = [strata.value(average_precision(one)) for one in (plain, mixed)]
    assert together[0] - together[1] > 2.0


def test_folds_spread_the_rare_classes(leaning: BoxEvidence) -> None:
    rng = np.random.default_rng(0)
    order = np.sort(rng.permutation(len(leaning.raw)))
    fold = folds_of(leaning, 5, 0)
    rare = np.array([bool((one.labels == 5).any()) for one in leaning.truth])[order]
    assert np.ptp(np.bincount(fold[rare], minlength=5)) <= 3
    assert np.ptp(np.bincount(fold)) <= 1


def test_a_difference_knows_its_pairs() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(50, 10, 400)
    figure, error = difference(1.0, common + 1 + rng.normal(0, 0.1, 400), common)
    assert 0.05 < error < 0.2
    assert figure.low > 0.5
    assert difference(0.0, common, common)[1] == 0


def test_the_simplest_within_one_standard_error_is_chosen() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(40, 2, 400)

    def of(name: str, freedom: int, value: float, head: float = 50.0) -> BoxContestant:
        spread = rng.normal(0, 0.5, 400)
        return BoxContestant(name, freedom, value, head, base - 40 + value + spread, base + spread)

    none = replace(of("none", 0, 40.0), objective_replicates=base, head_replicates=base)
    status = {
        name: standing.status
        for name, standing in zip(
            ("none", "simple", "rich"),
            compare_boxes([none, of("simple", 1, 43.0), of("rich", 6, 43.2)], None),
            strict=True,
        )
    }
    assert status == {"none": "behind", "simple": "chosen", "rich": "candidate"}
    assert compare_boxes([none, of("worse", 1, 39.0)], None)[0].status == "chosen"
    costly = of("costly", 1, 45.0, head=48.0)
    costly = replace(costly, head_replicates=base - 2)
    standings = compare_boxes([none, costly], 1.0)
    assert [one.status for one in standings] == ["chosen", "too costly for the head"]


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_rows_are_dropped_only_where_nothing_could_lift_them(activation: str) -> None:
    evidence = planted(images=6, noise=3.0)
    background = 0 if activation == "softmax" else None
    head = Head("linear", np.zeros((7, 2)), background=0)
    rule = ScoreRule(activation, background=background)  # type: ignore[arg-type]
    if background is None:
        head = Head("linear", np.zeros((6, 2)), activation="sigmoid")
    method = "norcal" if background == 0 else "odds"
    context = replace(evidence.context, head=head)
    candidates = box_candidates([method, "group_odds"])
    rise = largest_rise(candidates, context)
    assert rise is not None
    threshold, dropped = 0.05, 0
    for one in evidence.raw:
        raw = replace(one, logits=one.logits[:, -head.classes :] - (9 if background is None else 0))
        kept = may_be_kept(raw, rule, threshold, rise)
        dropped += int((~kept).sum())
        for fix in candidates[0].fixes:
            found = [
                postprocess(
                    part.boxes,
                    fix.fit(context).apply(part.logits),
                    None,
                    rule,
                    KeepRule(score_threshold=threshold),
                    part.placement,
                )
                for part in (raw, raw.some(kept))
            ]
            assert np.array_equal(found[0].scores, found[1].scores)
            assert np.array_equal(found[0].boxes, found[1].boxes)
    assert dropped  # else nothing was tested


def test_logn_looks_at_all_boxes(leaning: BoxEvidence) -> None:
    assert largest_rise(box_candidates(["norcal", "logn"]), leaning.context) is None
    with pytest.raises(FixError, match="all candidate boxes"):
        calibrate_boxes(replace(leaning, complete=False), methods=["logn"])
    done = calibrate_boxes(leaning, methods=["logn"])
    assert done.methods[1].freedom == 2 * len(COUNTS)


# What is refused


def test_what_does_not_apply_is_said(leaning: BoxEvidence) -> None:
    small = replace(leaning, raw=leaning.raw[:12], truth=leaning.truth[:12])
    done = calibrate_boxes(small)
    assert {one.method for one in done.skipped} == {"odds", "odds:gamma=1,beta=auto"}
    with pytest.raises(FixError, match="share one softmax"):
        calibrate_boxes(small, methods=["odds"])
    with pytest.raises(FixError, match="not chosen for detectors"):
        calibrate_boxes(small, methods=["vector"])
    with pytest.raises(FixError, match=r"20\.98"):
        calibrate_boxes(small, methods=["tau_norm"])
    with pytest.raises(UsageError, match="for classifiers"):
        calibrate_boxes(small, aim=Aim("harmonic"))
    with pytest.raises(UsageError, match="2 or more"):
        calibrate_boxes(small, folds=1)
    balanced = replace(small.context, trained_with="seesaw")
    with pytest.raises(FixError, match="correct"):
        calibrate_boxes(replace(small, context=balanced), methods=["norcal"])


def test_a_group_without_objects_cannot_be_maximised(leaning: BoxEvidence) -> None:
    chosen = [at for at, one in enumerate(leaning.truth) if not (one.labels >= 4).any()]
    small = replace(
        leaning,
        raw=[leaning.raw[at] for at in chosen],
        truth=[leaning.truth[at] for at in chosen],
    )
    with pytest.raises(UsageError, match="few group"):
        calibrate_boxes(small, aim=Aim("few"))
    empty = [replace(one, crowd=np.ones(3, np.bool_)) for one in leaning.truth]
    with pytest.raises(DataError, match="hold an object"):
        calibrate_boxes(replace(leaning, truth=empty))


def test_a_fix_file_lists_the_foreground_alone(chosen: BoxCalibration) -> None:
    content = fix_file_of_boxes(chosen, planted())
    told = content.model_dump(by_alias=True, mode="json")
    assert content.steps is not None
    assert (len(told["class_names"]), len(told["steps"][0]["shift"])) == (6, 7)
    for key in ("class_names", "train_counts"):
        with pytest.raises(ValidationError, match="entries"):
            FixFile.model_validate({**told, key: told[key][:4]})
    short = {key: told[key][:4] for key in ("class_names", "train_counts")}
    with pytest.raises(ValidationError, match="4 entries and 'steps' 7 classes"):
        FixFile.model_validate({**told, **short})


# From a checkpoint to a bundle


@pytest.fixture(scope="module")
def folder(module_folder: Path) -> Path:
    return module_folder


@pytest.fixture(scope="module")
def model(folder: Path) -> Detector:
    return load_detector(write_detector(folder / "det.pt"))


@pytest.fixture(scope="module")
def val(folder: Path) -> Path:
    return write_boxes(folder, images=12, seed=1)


@pytest.fixture(scope="module")
def evidence(model: Detector, val: Path) -> BoxEvidence:
    return evidence_of_detector(model, open_boxes(str(val)))


@pytest.mark.slow
def test_the_fix_goes_into_the_bundle_and_its_photographs_are_known_again(
    folder: Path, model: Detector, val: Path, evidence: BoxEvidence
) -> None:
    data = open_boxes(str(val))
    done = calibrate_boxes(evidence, methods=["norcal:gamma=0.4"])
    # Random weights: the fix is taken whatever it is worth.
    forced = replace(done.methods[1], standing=replace(done.methods[1].standing, status="chosen"))
    fitted = NorCal(0.4).fit(evidence.context)
    before = replace(done.before, standing=replace(done.before.standing, status="behind"))
    done = replace(done, methods=(before, replace(forced, fix=NorCal(0.4))), fix=fitted)
    write_fix(folder / "fix.json", fix_file_of_boxes(done, evidence))
    file = read_fix_file(folder / "fix.json")
    assert file.class_names == NAMES
    assert len(file.hashes()) == 12
    exported = export_detector(model, [file], folder / "fixed.ltd", images=data)
    manifest = exported.bundle.manifest
    assert manifest.fix.folded == "weights"
    assert [one.method for one in manifest.fix.methods] == ["norcal"]
    assert manifest.fix.selected_on is not None
    assert manifest.fix.selected_on.name == data.name
    with pytest.raises(DataError, match="chose the fix"):
        verify_detector(exported.bundle, data)
    others = open_boxes(str(write_boxes(folder, images=4, seed=2)))
    result = verify_detector(exported.bundle, others).result
    assert result.equivalent


def test_a_fix_of_another_detector_is_refused(
    folder: Path, model: Detector, evidence: BoxEvidence
) -> None:
    done = calibrate_boxes(evidence, methods=["norcal"])
    file = fix_file_of_boxes(done, evidence)
    other = load_detector(write_detector(folder / "other.pt", seed=5))
    with pytest.raises(FixError, match="fitted on det"):
        export_detector(other, [file], folder / "x.ltd")
    more = ClassTable((*NAMES, "more"), (300, 150, 8, 1))
    with pytest.raises(FixError, match=r"3 classes, and det\.pt has 4"):
        _require_made_for(file, model, more, force=False)
    assert not (folder / "x.ltd").exists()


def test_training_photographs_are_no_validation(
    model: Detector, val: Path, evidence: BoxEvidence
) -> None:
    data, seen = open_boxes(str(val)), evidence.hashes
    assert seen is not None
    knows = replace(model, train_hashes=seen[:5])
    with pytest.raises(DataError, match="knows them by heart"):
        evidence_of_detector(knows, data, methods=["norcal"])
    assert (
        evidence_of_detector(
            replace(model, train_hashes=seen[:5] + np.uint64(1)), data, methods=["norcal"]
        ).hashes
        is not None
    )


def test_outputs_are_the_references(model: Detector, val: Path, evidence: BoxEvidence) -> None:
    data = open_boxes(str(val))
    assert evidence.complete
    assert evidence.provenance is not None
    assert "KiB per image" in evidence.provenance["Kept"]
    canvas, _ = load_on_canvas(data.source(3), CANVAS)
    raw = DetectorReference(model).run({"images": canvas[None]})
    kept = evidence.raw[3]
    assert np.allclose(kept.logits, raw["logits"][0][: len(kept.logits)], atol=1e-4)


def test_the_command_chooses_and_says_what_comes_next(
    cli: Cli, folder: Path, model: Detector, val: Path, tmp_path: Path
) -> None:
    arguments = ("calibrate", folder / "det.pt", "--val", val, "--method", "norcal")
    code, said, told = cli(*arguments, "--method", "group_odds", "--json", "result.json")
    assert (code, told) == (0, "") or "few group" in told
    assert "Platelets" not in said
    assert "ring" in said
    assert "export --fix fix.json" in said
    result: Any = json.loads((tmp_path / "result.json").read_text())
    assert result["task"] == "detection"
    assert {one["name"] for one in result["methods"]} == {"none", "norcal", "group_odds"}
    assert [one["name"] for one in result["classes"]] == list(NAMES)
    assert read_fix_file(tmp_path / "fix.json").selected_on is not None


def test_the_command_refuses_what_detectors_do_not_have(
    cli: Cli, folder: Path, model: Detector, val: Path
) -> None:
    code, _, told = cli("calibrate", folder / "det.pt", "--val", val, "--image-size", "64")
    assert code == 2
    assert "is a detector, and --image-size is for classifiers" in told
    code, _, told = cli("calibrate", folder / "det.pt", "--val", folder)
    assert code == 2
    assert "COCO or LVIS .json" in told
    weights = torch.load(folder / "det.pt", weights_only=True)["state_dict"]
    torch.save(weights, folder / "bare.pth")
    code, _, told = cli("calibrate", folder / "bare.pth", "--val", val)
    assert code == 2
    assert "--classes FILE" in told


def _identity(evidence: BoxEvidence) -> AffineMap:
    assert evidence.context.head is not None
    return AffineMap.identity(evidence.context.head.classes)
