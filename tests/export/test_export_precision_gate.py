"""What precision is gated on: the same images, decoded in the same way, the tail among them."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image
from precision_samples import DrawnDataset, answers, float32_graph, pictures
from samples import draw_photo

from ltdeploy.classes import ClassTable
from ltdeploy.errors import DataError, ExportError
from ltdeploy.export.precision import PrecisionRequest, graph_opener, judge_scaling, lower
from ltdeploy.export.precision.gate_run import GateRun, float32_logits, on_onnxruntime
from ltdeploy.images import load_prepared
from ltdeploy.inference import fingerprints
from ltdeploy.models.architectures import default_preprocessing

CLASSES = ClassTable.from_counts([500, 200, 90, 40, 10, 5])
SIZE = default_preprocessing("cifar:resnet20")


class Jpegs(DrawnDataset):
    """Grainy JPEG files of 64 pixels; decoded at half their size they are other pictures."""

    def source(self, index: int) -> Any:
        seed = int(self.seeds[index])
        grain = np.random.default_rng(seed).normal(0, 60, (64, 64, 3))
        pixels = np.clip(np.asarray(draw_photo(seed, 64, 64)) + grain, 0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        return file.getvalue()


WHOLE = replace(SIZE, resize_mode="shorter", resize_px=32)
SCALED = replace(WHOLE, jpeg_scaling=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> onnx.ModelProto:
    return float32_graph(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def flipped(plain: onnx.ModelProto) -> Jpegs:
    """Images whose answer scaled decoding changes, with the answer to the whole ones for labels."""
    files = Jpegs(np.zeros(240, dtype=np.int64))
    whole, scaled = (
        answers(plain, np.stack([load_prepared(files.source(i), how) for i in range(240)]))
        for how in (WHOLE, SCALED)
    )
    labels = whole.argmax(axis=1).astype(np.int64)
    other = np.flatnonzero(labels != scaled.argmax(axis=1))
    assert len(other) > 40
    return Jpegs(labels[other], other)


def test_scaled_decoding_that_costs_too_much_is_called_that(
    plain: onnx.ModelProto, flipped: Jpegs
) -> None:
    with pytest.raises(ExportError, match=r"Scaled decoding alone.*few -100\.00.*--jpeg-scaling"):
        judge_scaling(plain, flipped, 1.0, CLASSES, WHOLE)
    shown = judge_scaling(plain, DrawnDataset(flipped.labels), 1.0, CLASSES, WHOLE)
    assert shown.trial.verdict == "pass"  # these are no JPEG files
    assert shown.to_dict()["flips"] == 0


def test_no_layer_is_restored_for_what_decoding_did(plain: onnx.ModelProto, flipped: Jpegs) -> None:
    request = PrecisionRequest(
        "int8",
        DrawnDataset(np.arange(24, dtype=np.int64) % 6),
        gate=flipped,
        engine="onnxruntime",
        margin=20.0,
    )
    opener = graph_opener("onnxruntime", "int8")
    lowered = lower(plain, request, CLASSES, SCALED, opener, pictures(8))
    assert lowered.entry.restored == ()
    assert lowered.found is not None
    assert lowered.found.chosen.flips < len(flipped) / 4


def test_a_gate_compares_the_same_images(plain: onnx.ModelProto) -> None:
    class Flaky(DrawnDataset):
        lost = False

        def source(self, index: int) -> Any:
            return b"no image" if index == 7 and self.lost else super().source(index)

    data = Flaky(np.arange(24, dtype=np.int64) % 6)
    reference = float32_logits(plain, data, data.labels, CLASSES, SIZE)
    gate = GateRun(data, data.labels, CLASSES, SIZE, reference, on_onnxruntime)
    assert gate.judge(plain, "gate").equivalent
    data.lost = True
    with pytest.raises(DataError, match="readable once"):
        gate.judge(plain, "gate")


def test_a_gate_without_an_image_of_the_rarest_group_is_refused(
    plain: onnx.ModelProto, tmp_path: Path
) -> None:
    data = DrawnDataset(np.arange(24, dtype=np.int64) % 4)  # classes 4 and 5 are the few-shot ones
    request = PrecisionRequest("bf16", gate=data)
    with pytest.raises(DataError, match="no image of the few group"):
        lower(plain, request, CLASSES, SIZE, graph_opener("auto", "bf16"), pictures(8))


def test_fp16_looks_for_overflow_on_the_images_of_the_gate(plain: onnx.ModelProto) -> None:
    request = PrecisionRequest("fp16", gate=DrawnDataset(np.arange(24, dtype=np.int64) % 6))
    opener = graph_opener("onnxruntime", "fp16")
    lowered = lower(plain, request, CLASSES, SIZE, opener, pictures(2, 900))
    assert lowered.entry.calibration is not None
    assert lowered.entry.calibration.images == 24
    assert set(lowered.seen.tolist()) == set(fingerprints(pictures(24)).tolist())
    ungated = lower(plain, PrecisionRequest("fp16"), CLASSES, SIZE, opener, pictures(2, 900))
    assert ungated.entry.calibration is None
    assert not len(ungated.seen)
