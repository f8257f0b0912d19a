"""Low precision of detectors: what it is measured on, what the gate restores, what is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from box_samples import CANVAS, NAMES, write_boxes, write_detector
from onnx import numpy_helper
from planted_detector import coloured, one_box_graph, planted

import ltdeploy
from ltdeploy.boxes import Detections
from ltdeploy.bundle import Bundle, open_bundle
from ltdeploy.canvas import load_on_canvas
from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_boxes
from ltdeploy.datasets.boxes import BoxDataset
from ltdeploy.errors import BundleError, DataError, ExportError
from ltdeploy.export.detection.detector_export import export_detector
from ltdeploy.export.detection.lowered_gate import DetectorTask
from ltdeploy.export.detection.lowered_tail import (
    balanced_photographs,
    object_logits,
    tail_objects,
)
from ltdeploy.export.precision import BoxPrecisionRequest, graph_opener, lower_for
from ltdeploy.inference import fingerprints
from ltdeploy.metrics.matching import ImageTruth, truth_of
from ltdeploy.models.detectors.detector import Detector
from ltdeploy.models.loading import load_model
from ltdeploy.progress import silent
from ltdeploy.verify.boxes import verify_detector


@pytest.fixture(scope="module")
def folder(module_folder: Path) -> Path:
    made = module_folder
    write_boxes(made, images=24)
    write_detector(made / "det.pt")
    return made


@pytest.fixture(scope="module")
def data(folder: Path) -> BoxDataset:
    return open_boxes(str(folder / "boxes-0.json"))


@pytest.fixture(scope="module")
def model(folder: Path) -> Detector:
    loaded = load_model(folder / "det.pt")
    assert isinstance(loaded, Detector)
    return loaded


def test_photographs_are_balanced_over_the_classes(data: BoxDataset) -> None:
    order = balanced_photographs(data)
    assert sorted(order.tolist()) == list(range(len(data)))
    rare = [2 in data.truth(int(index)).labels for index in order]
    assert sum(rare) == 6  # of 24, and one of the first three photographs asked for is such a one
    assert sum(rare[:3]) >= 1
    assert sum(rare[:12]) >= 4
    np.testing.assert_array_equal(order, balanced_photographs(data))


def truth(boxes: list[list[float]], labels: list[int], **known: Any) -> ImageTruth:
    count = len(labels)
    return ImageTruth(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels),
        np.zeros(count, bool),
        np.full(count, 100.0),
        **known,
    )


def test_an_object_speaks_for_and_against_itself() -> None:
    there = truth([[0, 0, 10, 10], [50, 50, 60, 60], [80, 0, 90, 10]], [0, 0, 1])
    found = Detections(
        np.array(
            [[0, 0, 10, 9], [30, 30, 40, 40], [50, 50, 60, 61], [0, 0, 10, 10], [0, 0, 10, 10]],
            np.float32,
        ),
        np.array([0.9, 0.5, 0.2, 0.1, 0.05], np.float32),
        np.array([0, 0, 0, 0, 1]),
    )
    logits = object_logits(found, there, np.array([0, 1, 2]), 1e-4)
    odds = np.exp(logits)
    np.testing.assert_allclose(odds[0], [9.0, 1.0], rtol=1e-5)
    np.testing.assert_allclose(odds[1], [0.25, 1.0], rtol=1e-5)
    np.testing.assert_allclose(odds[2], [1e-4, 0.05 / 0.95], rtol=1e-3)  # not found at all
    unsure = truth([[0, 0, 10, 10]], [0], negative=np.array([1]), not_exhaustive=np.array([0]))
    np.testing.assert_allclose(
        np.exp(object_logits(found, unsure, np.array([0]), 1e-4)[0, 1]), 1e-4, rtol=1e-3
    )


def test_layers_are_ranked_on_objects_of_rare_classes(data: BoxDataset) -> None:
    known = truth_of(data)
    table = ClassTable(NAMES, (300, 150, 8))
    tail = tail_objects(known, table, 96 * 128)
    labels = [
        int(known[tail.photographs[row]].labels[place])
        for row, place in zip(tail.rows, tail.objects, strict=True)
    ]
    assert labels[:6] == [2] * 6  # all there are, first
    assert set(labels) == {0, 1, 2}
    large = tail_objects(known, table, 1 << 40)
    assert len(large.photographs) == 8
    assert large.rows.max() == 7


def task_of(model: Detector) -> DetectorTask:
    return DetectorTask(model.require_complete(), model.canvas, model.score_rule, model.keep_rule)


@pytest.fixture(scope="module")
def bundle(model: Detector, data: BoxDataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Return an int8 bundle whose gate had the photographs."""
    request = BoxPrecisionRequest(
        "int8", calibration=data, calibration_images=8, gate=data, engine="openvino", margin=90.0
    )
    out = tmp_path_factory.mktemp("low") / "low.ltd"
    done = export_detector(model, [], out, precision=request)
    assert done.lowered is not None
    assert done.lowered.found is not None
    assert len(done.lowered.trade) == 1
    assert done.lowered.trade[0].speed > 0
    assert done.bundle.graph_path.stat().st_size < 0.4 * done.lowered.float32_bytes
    assert (done.golden_from, done.unreadable) == ("boxes-0.json", ())
    return open_bundle(out)


def test_a_bundle_tells_its_precision(bundle: Bundle) -> None:
    graph = bundle.manifest.graphs[0]
    assert graph.precision == "int8"
    assert graph.golden_difference > 0
    assert graph.lowering is not None
    assert graph.lowering.low_share > 0.9
    calibration, gate = graph.lowering.calibration, graph.lowering.gate
    assert calibration is not None
    assert (calibration.images, calibration.classes) == (8, 3)
    assert gate is not None
    assert (gate.images, gate.engine) == (24, "openvino-cpu")


def test_golden_samples_allow_for_int8_and_no_more(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_export = bundle.manifest.graphs[0].golden_difference
    with ltdeploy.load_detector(bundle.path, engine="openvino", verify=True) as predictor:
        assert predictor.replay_golden() <= at_export + 1e-3
        run = predictor.engine.run

        def sure(feeds: Any) -> dict[str, Any]:
            outputs = run(feeds)
            outputs["logits"][:, :, 3] += 20.0
            return outputs

        monkeypatch.setattr(predictor.engine, "run", sure)
        with pytest.raises(BundleError, match="away from the golden samples"):
            predictor.replay_golden()


def test_photographs_that_gated_are_known_again(bundle: Bundle, data: BoxDataset) -> None:
    canvases = np.stack([load_on_canvas(data.source(i), CANVAS)[0] for i in range(24)])
    assert set(bundle.selection_hashes().tolist()) == set(fingerprints(canvases).tolist())
    with pytest.raises(DataError, match="chose the fix or the precision"):
        verify_detector(bundle, data, reference=bundle.path)


def test_no_gate_where_the_engine_computes_something_else(model: Detector) -> None:
    request = BoxPrecisionRequest("fp16", gate=coloured(60, 2), engine="onnxruntime")
    opener = graph_opener("onnxruntime", "fp16")
    samples = np.zeros((2, 96, 128, 3), np.uint8)
    lowered = lower_for(task_of(model), planted(), request, opener, samples)
    assert not lowered.checked
    assert lowered.entry.gate is None
    assert lowered.entry.calibration is not None  # its photographs served the range check
    assert len(lowered.seen) == 60


def test_a_gate_without_the_rarest_group_is_refused(model: Detector, data: BoxDataset) -> None:
    common = [i for i in range(len(data)) if 2 not in data.truth(i).labels]
    some = BoxDataset(
        "common",
        data.class_names,
        [data.images[i] for i in common],
        [data.truths[i] for i in common],
    )
    with pytest.raises(DataError, match=r"no object of the few group.*ring"):
        task_of(model).gate(one_box_graph(), some, 1.0, graph_opener("auto", "bf16"), silent)


def test_the_layers_that_int8_destroys_are_restored(model: Detector, tmp_path: Path) -> None:
    task = task_of(model)
    request = BoxPrecisionRequest(
        "int8",
        calibration=coloured(24, 1),
        gate=coloured(60, 2),
        engine="onnxruntime",
        margin=1.0,
        journals=tmp_path,
    )
    samples = np.stack([np.asarray(request.gate.source(i)) for i in range(4)])  # type: ignore[union-attr]
    opener = graph_opener("onnxruntime", "int8")
    lowered = lower_for(task, planted(), request, opener, samples)
    assert lowered.found is not None
    assert lowered.found.trials[0].verdict == "fail"
    assert set(lowered.entry.restored) == {"harmed", "harmed too"}
    damage = lowered.found.damage
    assert damage["harmless"] < 0.1 * min(damage["harmed"], damage["harmed too"])
    assert lowered.entry.gate is not None
    assert lowered.entry.gate.verdict == "pass"
    again = lower_for(task, planted(), request, opener, samples)  # from the journal
    assert again.entry == lowered.entry
    assert list(tmp_path.glob("precision-*.json"))


def test_nothing_is_written_where_no_division_passes(model: Detector) -> None:
    graph = planted()
    for node in graph.graph.node:
        if node.name == "tame":  # the large channel reaches the last layer too
            node.input[1] = "ones"
    graph.graph.initializer.append(
        numpy_helper.from_array(np.ones((1, 4, 1, 1), np.float32), "ones")
    )
    request = BoxPrecisionRequest(
        "int8",
        calibration=coloured(24, 1),
        gate=coloured(60, 2),
        engine="onnxruntime",
    )
    with pytest.raises(ExportError, match=r"No division of the layers.*2 restored: "):
        lower_for(
            task_of(model),
            graph,
            request,
            graph_opener("onnxruntime", "int8"),
            np.zeros((2, 96, 128, 3), np.uint8),
        )
