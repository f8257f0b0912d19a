"""Benchmarks of detectors: timed on canvases, with average precisions beside."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx_detector_samples as samples
import pytest
from samples import draw_photo

from ltdeploy.bench import BenchOptions, render_report, run_bench
from ltdeploy.bench.boxes import DetectorTask
from ltdeploy.bundle import open_bundle
from ltdeploy.datasets import open_boxes, open_dataset
from ltdeploy.datasets.boxes import BoxDataset
from ltdeploy.datasets.labels import read_class_csv
from ltdeploy.errors import DataError, UsageError
from ltdeploy.export.detection.detector_export import export_detector
from ltdeploy.fixes import FixSpec
from ltdeploy.models.detectors.onnx_detector import OnnxDetector
from ltdeploy.models.detectors.onnx_mapping import read_mapping
from ltdeploy.models.loading import load_model
from ltdeploy.models.options import LoadOptions
from ltdeploy.progress import silent
from ltdeploy.verify.boxes import verify_detector

QUICK = BenchOptions(batches=(1, 2), threads=(1,), seconds=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with photographs, a detector's bundle, and one with another fix."""
    folder = tmp_path_factory.mktemp("bench-boxes")
    samples.write_all(folder, batch="n")
    classes = LoadOptions(classes=read_class_csv(folder / "classes.csv"))
    told = read_mapping(folder / "outputs.json")
    model = load_model(folder / "y.onnx", options=classes, outputs=told)
    assert isinstance(model, OnnxDetector)
    for name, gamma in (("plain", 0.0), ("fixed", 1.0)):
        export_detector(model, [FixSpec("odds", {"gamma": gamma})], folder / f"{name}.ltd")
    return folder


@pytest.fixture(scope="module")
def photos(folder: Path) -> BoxDataset:
    """Return the photographs."""
    return open_boxes(str(folder / "boxes-0.json"))


def test_precisions_are_those_of_verify(folder: Path, photos: BoxDataset) -> None:
    bundles = [folder / "plain.ltd", folder / "fixed.ltd"]
    found = run_bench(bundles, engines=["openvino"], dataset=photos, options=QUICK)
    first, other = found.contestants
    assert found.measure == "average precision"
    assert first.accuracy is not None
    assert other.accuracy is not None
    known = verify_detector(bundles[1], photos, reference=bundles[0], engine="openvino").result
    assert first.accuracy.balanced.value == pytest.approx(known.overall.reference, abs=1e-6)
    assert known.overall.reference > known.overall.candidate > 0.05
    assert other.accuracy.balanced.value == pytest.approx(known.overall.candidate, abs=1e-6)
    change = other.accuracy.change
    assert change is not None
    assert change.balanced is not None
    assert change.balanced.value == pytest.approx(known.overall.difference, abs=1e-6)
    assert change.flips == known.flips > 0
    assert first.accuracy.change is None
    assert {speed.batch for speed in first.speeds} == {1, 2}
    page = render_report(found.to_dict(), title="cells")
    assert "Speed against average precision" in page
    assert "accuracy in per cent" not in page.lower()


def test_without_photographs_golden_canvases_are_timed(folder: Path) -> None:
    found = run_bench([folder / "plain.ltd"], engines=["onnxruntime"], options=QUICK)
    assert found.inputs == "golden samples of the bundle"
    assert found.first.accuracy is None


def test_data_of_the_other_kind_is_refused(
    folder: Path, photos: BoxDataset, bundle_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "species 0").mkdir()
    draw_photo(1, 32, 32).save(tmp_path / "species 0" / "1.png")
    labelled = open_dataset(str(tmp_path))
    with pytest.raises(UsageError, match=r"plain\.ltd is a detector; expected a COCO or LVIS json"):
        run_bench([folder / "plain.ltd"], dataset=labelled, options=QUICK)
    with pytest.raises(UsageError, match="is a classifier; expected labelled images"):
        run_bench([bundle_path], dataset=photos, options=QUICK)


def test_photographs_of_another_size_are_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "images", tmp_path / "images")
    (tmp_path / "boxes-0.json").write_bytes((folder / "boxes-0.json").read_bytes())
    draw_photo(1, 60, 80).save(tmp_path / "images" / "0-0.png")
    task = DetectorTask(open_boxes(str(tmp_path / "boxes-0.json")))
    bundle = open_bundle(folder / "plain.ltd")
    with pytest.raises(DataError, match=r"0-0\.png is .* pixels and boxes-0.* says 160 × 120"):
        task.accuracy(bundle, "onnxruntime", is_first=True, track=silent, label="boxes")
    assert task.images(bundle, 3).shape == (3, 64, 64, 3)
    assert task.images(bundle, 3).dtype == np.uint8
