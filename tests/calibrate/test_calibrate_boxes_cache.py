"""A detector's raw outputs are kept: the second choice on the same photographs runs no network."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_detector_samples
import pytest
from box_samples import NAMES, write_boxes, write_detector
from PIL import Image

from ltdeploy import cache as cache_module
from ltdeploy.cache import CacheForm, cached
from ltdeploy.calibrate.boxes import BoxEvidence, calibrate_boxes, evidence_of_detector, outputs
from ltdeploy.calibrate.boxes.outputs import RawBoxes, RawOutputs, _packed, _unpacked
from ltdeploy.canvas import Canvas
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_boxes
from ltdeploy.engines.onnx_detector_reference import detector_reference
from ltdeploy.errors import DataError, UsageError
from ltdeploy.models.detectors.detector import Detector, load_detector
from ltdeploy.models.detectors.onnx_detector import OnnxDetector, load_onnx_detector
from ltdeploy.models.detectors.onnx_mapping import OutputMapping
from ltdeploy.models.options import LoadOptions
from ltdeploy.postprocess import KeepRule

IMAGES = 3


@pytest.fixture(scope="module")
def model(module_folder: Path) -> Detector:
    return load_detector(write_detector(module_folder / "det.pt"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_boxes(tmp_path_factory.mktemp("boxes"), images=IMAGES, seed=1)


@pytest.fixture
def val(written: Path, tmp_path: Path) -> Path:
    """Return a copy of the photographs that may be changed."""
    return Path(shutil.copytree(written.parent, tmp_path / "photographs")) / written.name


@pytest.fixture(scope="module")
def first(
    model: Detector, written: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[BoxEvidence, Path]:
    """Return what a first run gave, and the cache that it left. Read only."""
    cache = tmp_path_factory.mktemp("first") / "cache"
    return look(model, written, cache), cache


@pytest.fixture
def cache(first: tuple[BoxEvidence, Path], tmp_path: Path) -> Path:
    """Return a copy of that cache that may be changed."""
    return Path(shutil.copytree(first[1], tmp_path / "cache"))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of the sizes of all batches that a network is given."""
    sizes: list[int] = []

    def counted(model: Any) -> Any:
        engine = detector_reference(model)
        run = engine.run

        def look(feeds: Any) -> Any:
            sizes.append(len(feeds["images"]))
            return run(feeds)

        monkeypatch.setattr(engine, "run", look, raising=False)
        return engine

    monkeypatch.setattr(outputs, "detector_reference", counted)
    return sizes


def refuse(text: str) -> None:
    raise AssertionError(text)


def look(
    model: Any,
    val: Path,
    cache: Path | None,
    *,
    methods: list[str] | None = None,
    warn: Callable[[str], None] = refuse,
) -> BoxEvidence:
    return evidence_of_detector(
        model, open_boxes(str(val)), methods=methods, cache=cache, warn=warn
    )


def assert_same(one: BoxEvidence, other: BoxEvidence) -> None:
    assert one.provenance == other.provenance
    assert (one.complete, one.unreadable) == (other.complete, other.unreadable)
    assert np.array_equal(one.hashes, other.hashes)  # type: ignore[arg-type]
    for ours, theirs in zip(one.raw, other.raw, strict=True):
        assert (ours.placement, ours.name) == (theirs.placement, theirs.name)
        pairs = [(ours.boxes, theirs.boxes), (ours.logits, theirs.logits)]
        pairs += [(np.asarray(ours.quality), np.asarray(theirs.quality))]
        for mine, yours in pairs:
            assert mine.dtype == yours.dtype
            np.testing.assert_array_equal(mine, yours)


def test_the_second_choice_runs_no_network(
    model: Detector,
    val: Path,
    tmp_path: Path,
    first: tuple[BoxEvidence, Path],
    cache: Path,
    seen: list[int],
) -> None:
    assert_same(first[0], look(model, val, None))
    assert sum(seen) == IMAGES  # the negative control: it is counted
    again = look(model, val, cache)
    assert_same(first[0], again)
    method = ["norcal:gamma=0.5"]
    chosen = [calibrate_boxes(one, methods=method).to_dict() for one in (first[0], again)]
    for one in chosen:
        del one["provenance"]["Date"]
    assert chosen[0] == chosen[1]
    moved = val.parent.rename(tmp_path / "elsewhere") / val.name
    assert_same(first[0], look(model, moved, cache))
    assert sum(seen) == IMAGES


def test_without_a_cache_nothing_is_kept(
    model: Detector, val: Path, tmp_path: Path, seen: list[int]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    look(model, val, None)
    assert sum(seen) == IMAGES
    assert sorted(tmp_path.rglob("*")) == before


def test_what_outputs_follow_from_makes_another_entry(
    model: Detector, val: Path, cache: Path, seen: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = 0
    look(model, val, cache)
    assert not seen

    def assert_run(other: Detector) -> None:
        nonlocal runs
        runs += 1
        look(other, val, cache)
        assert sum(seen) == runs * IMAGES
        assert len(list(cache.iterdir())) == 1 + runs

    assert_run(replace(model, canvas=replace(model.canvas, fit="centre")))
    assert_run(replace(model, canvas=replace(model.canvas, fill=(9, 9, 9))))
    assert_run(replace(model, source=replace(model.source, sha256="0" * 64)))
    path = val.parent / "images" / "1-0.png"
    with Image.open(path) as photograph:
        changed = photograph.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    changed.save(path)
    assert_run(model)
    known = cache_module.installed_version
    monkeypatch.setattr(
        cache_module,
        "installed_version",
        lambda name: "9.9" if name == "torchvision" else known(name),
    )
    assert_run(model)


def test_somebodys_onnx_file_is_kept_by_its_mapping(
    val: Path, tmp_path: Path, seen: list[int]
) -> None:
    path = onnx_detector_samples.write(onnx_detector_samples.yolov5(), tmp_path / "d.onnx")
    table = ClassTable((*NAMES, "other"), (300, 150, 8, 4))

    def of(**changes: Any) -> OnnxDetector:
        told = json.dumps({**onnx_detector_samples.MAPPINGS["yolov5"], **changes})
        mapping = OutputMapping.model_validate_json(told)
        return load_onnx_detector(path, mapping, LoadOptions(classes=table))

    cache = tmp_path / "cache"
    made = look(of(), val, cache)
    assert made.raw[0].quality is not None
    assert_same(made, look(of(), val, cache))
    assert sum(seen) == IMAGES
    look(of(box_format="xyxy"), val, cache)
    assert sum(seen) == 2 * IMAGES


def test_rows_are_dropped_as_methods_allow(
    model: Detector,
    val: Path,
    tmp_path: Path,
    first: tuple[BoxEvidence, Path],
    cache: Path,
    seen: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From an entry of all rows, or in an entry of its own, which serves its own rise alone."""
    # The rows of random weights are all hopeful at the usual threshold.
    monkeypatch.setattr(Detector, "keep_rule", property(lambda self: KeepRule(0.9)))
    own = tmp_path / "own"
    reduced = look(model, val, own, methods=["norcal"])
    assert first[0].complete
    assert not reduced.complete
    left, every = (sum(len(one.logits) for one in of.raw) for of in (reduced, first[0]))
    assert left < every  # else nothing was tested
    assert sum(seen) == IMAGES
    assert_same(reduced, look(model, val, own, methods=["norcal"]))
    assert_same(reduced, look(model, val, cache, methods=["norcal"]))
    assert sum(seen) == IMAGES
    look(model, val, own, methods=["group_odds"])
    assert sum(seen) == 2 * IMAGES


def test_boxes_are_those_of_now(
    model: Detector, val: Path, first: tuple[BoxEvidence, Path], cache: Path, seen: list[int]
) -> None:
    content = json.loads(val.read_text())
    content["annotations"] = content["annotations"][:-1]
    val.write_text(json.dumps(content))
    objects = [sum(len(one.labels) for one in e.truth) for e in (first[0], look(model, val, cache))]
    assert objects[1] == objects[0] - 1
    assert not seen


def test_a_wrong_size_is_said_from_the_cache_too(model: Detector, val: Path, cache: Path) -> None:
    content = json.loads(val.read_text())
    content["images"][2]["width"] = 320
    val.write_text(json.dumps(content))
    with pytest.raises(DataError, match="160 × 120 pixels"):
        look(model, val, cache)


def test_unreadable_photographs_are_named_from_the_cache_too(
    model: Detector, val: Path, tmp_path: Path, seen: list[int]
) -> None:
    (val.parent / "images" / "1-2.png").write_bytes(b"no photograph")
    made = look(model, val, tmp_path / "cache")
    assert len(made.unreadable) == 1
    assert_same(made, look(model, val, tmp_path / "cache"))
    assert sum(seen) == IMAGES - 1


def truncate(entry: Path) -> None:
    path = entry / "logits.npy"
    path.write_bytes(path.read_bytes()[:-7])


def lose(entry: Path) -> None:
    (entry / "rows.npy").unlink()


def rewrite(name: str, change: Callable[[Any], Any]) -> Callable[[Path], None]:
    """Exchange an array and its digest: as whole as an entry can be made by hand."""

    def damage(entry: Path) -> None:
        path = entry / f"{name}.npy"
        np.save(path, change(np.load(path)))
        content = json.loads((entry / "entry.json").read_text())
        content["files"][name] = cache_module._file_digest(path)
        (entry / "entry.json").write_text(json.dumps(content))

    return damage


DAMAGES = {
    "truncated": truncate,
    "lost file": lose,
    "a row less": rewrite("boxes", lambda boxes: boxes[1:]),
    "rows that are floats": rewrite("rows", lambda rows: rows + 0.5),
    "rows below zero": rewrite("rows", lambda rows: rows * -1),
    "a photograph less": rewrite("indices", lambda indices: indices[1:]),
    "indices too large": rewrite("indices", lambda indices: indices + 100),
    "indices below zero": rewrite("indices", lambda indices: indices - 3),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_entries_are_noticed_and_made_anew(
    damage: Callable[[Path], None],
    model: Detector,
    val: Path,
    first: tuple[BoxEvidence, Path],
    cache: Path,
    seen: list[int],
) -> None:
    (entry,) = cache.iterdir()
    damage(entry)
    heard: list[str] = []
    assert_same(first[0], look(model, val, cache, warn=heard.append))
    assert sum(seen) == IMAGES
    (text,) = heard
    assert f"the cached outputs in {entry} are damaged" in text
    assert_same(first[0], look(model, val, cache))
    assert sum(seen) == IMAGES


def test_what_cannot_be_kept_is_said(model: Detector, val: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="a file; expected a folder, or --no-cache"):
        look(model, val, tmp_path / "file")
    heard: list[str] = []
    look(model, val, tmp_path / "file" / "cache", warn=heard.append)
    (text,) = heard
    assert text.startswith("the outputs could not be kept in")


def test_outputs_with_quality_and_boxes_by_class_come_back(
    model: Detector, val: Path, tmp_path: Path
) -> None:
    """Also of photographs without a row, written part after part."""
    rng = np.random.default_rng(0)
    data, placement = open_boxes(str(val)), Canvas(96, 128).place(120, 160)

    def some(rows: int, name: str) -> RawBoxes:
        boxes = rng.normal(size=(rows, 3, 4)).astype(np.float32)
        logits = rng.normal(size=(rows, 4)).astype(np.float32)
        return RawBoxes(boxes, logits, logits[:, 0].copy(), placement, name)

    raw = [some(rows, data.identifier(at)) for at, rows in enumerate((3, 0, 5))]
    candidates = np.array([3, 2, 9])
    made = RawOutputs(raw, candidates, np.arange(3), np.arange(3, dtype=np.uint64), ())
    form = CacheForm(
        "outputs", outputs._ARRAYS, _packed, lambda kept: _unpacked(kept, model, data, None)
    )

    def never() -> RawOutputs:
        raise AssertionError("it stands in the cache")

    cached(form, lambda: made, lambda: ["entry"], cache=tmp_path)
    found = cached(form, never, lambda: ["entry"], cache=tmp_path)
    assert found.candidates.tolist() == [3, 2, 9]
    for ours, theirs in zip(made.raw, found.raw, strict=True):
        assert theirs.placement == placement
        np.testing.assert_array_equal(ours.boxes, theirs.boxes)
        np.testing.assert_array_equal(ours.quality, theirs.quality)
