"""Verification end to end: a bundle against its checkpoint, another bundle, or nothing left."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from samples import write_checkpoint

from ltdeploy.bundle import open_bundle, write_bundle
from ltdeploy.datasets import open_dataset
from ltdeploy.engines.choice import computes
from ltdeploy.errors import CheckpointError, DataError, EngineError
from ltdeploy.export import PrecisionRequest, export_bundle
from ltdeploy.fixes import FixSpec
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.testing import assert_tail_maintained
from ltdeploy.verify import baseline_json, compare_models, report_html, verify_bundle

NAMES = [f"species {label}" for label in range(6)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve drawn pictures of each of the six classes of ``checkpoint``."""
    from samples import draw_photo

    folder = tmp_path_factory.mktemp("six") / "test"
    for label, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        for number in range(12):
            draw_photo(100 * label + number, 32, 32).save(folder / name / f"{number}.png")
    return folder


def zero_rows(bundle: Path, out: Path, labels: list[int]) -> Path:
    """Write a bundle whose graph has the head rows of some classes set to zero."""
    opened = open_bundle(bundle)
    graph = onnx.load(bundle / "model.onnx")
    head = next(n for n in reversed(graph.graph.node) if n.op_type == "Gemm")
    for tensor in graph.graph.initializer:
        if tensor.name in head.input[1:]:
            array = numpy_helper.to_array(tensor).copy()
            array[labels] = 0
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    files = {name: (bundle / name).read_bytes() for name in opened.manifest.files}
    files["model.onnx"] = graph.SerializeToString()
    return write_bundle(out, opened.manifest, files).path


def test_a_faithful_bundle_passes(bundle_path: Path, photos: Path) -> None:
    done = verify_bundle(bundle_path, open_dataset(str(photos)))
    assert done.result.verdict == "pass"
    assert done.result.equivalent
    assert done.result.images == 72
    assert "tau_norm(tau=0.7" in done.provenance["Fix"]
    page = report_html(done, title="ckpt", kind="verification")
    assert "<html" in page
    assert "species 5" in baseline_json(done)


def test_the_unfixed_model_stands_beside(bundle_path: Path, checkpoint: Path, photos: Path) -> None:
    data = open_dataset(str(photos))
    done = verify_bundle(bundle_path, data)
    plain = compare_models(checkpoint, bundle_path, data)
    for group, figures in done.result.groups.items():
        assert figures.unfixed == plain.result.groups[group].reference


def test_fp16_on_an_engine_that_computes_float32_is_said_everywhere(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    low = export_bundle(
        load_checkpoint(checkpoint),
        [],
        tmp_path / "low.ltd",
        precision=PrecisionRequest("fp16", engine="onnxruntime"),
    ).bundle
    data = open_dataset(str(photos))
    done = verify_bundle(low, data, reference=checkpoint, engine="onnxruntime")
    note = (
        "onnxruntime-cpu computes fp16 in float32 on this processor, so nothing here says what "
        "fp16 costs: verify low.ltd where it will run"
    )
    assert done.result.not_computed == "fp16"
    assert note in done.result.notes
    assert note in done.provenance["Note"]
    assert done.result.to_dict()["sentence"].startswith("As float32 on this processor, which")
    page = report_html(done, title="low", kind="verification")
    assert note in page
    beside = compare_models(low.path, low.path, data)
    assert len(beside.result.notes) == 1

    monkeypatch.setattr("ltdeploy.verify.contenders.computes", lambda engine, precision: True)
    done = verify_bundle(low, data, reference=checkpoint, engine="onnxruntime")
    assert (done.result.not_computed, done.result.notes) == (None, ())


def test_a_damaged_bundle_does_not_pass(bundle_path: Path, photos: Path, tmp_path: Path) -> None:
    damaged = zero_rows(bundle_path, tmp_path / "bad.ltd", [0, 1, 2, 3, 4, 5])
    shutil.copy(bundle_path.parent / "ckpt.pt", tmp_path / "ckpt.pt")
    done = verify_bundle(damaged, open_dataset(str(photos)))
    assert done.result.verdict != "pass"
    assert done.result.flips > 0
    page = report_html(done, title="bad", kind="verification")
    assert "data:image/jpeg;base64," in page
    with pytest.raises(AssertionError, match=r"(?s)many.*few.*flips"):
        assert_tail_maintained(damaged, photos)


def test_the_assertion_passes_where_the_tail_is_maintained(bundle_path: Path, photos: Path) -> None:
    assert assert_tail_maintained(bundle_path, photos).verdict == "pass"


def test_the_assertion_counts_unreadable_images(
    bundle_path: Path, photos: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "test"
    shutil.copytree(photos, folder)
    (folder / NAMES[0] / "0.png").write_bytes(b"no image")
    done = verify_bundle(bundle_path, open_dataset(str(folder)))
    assert (done.result.images, done.result.unreadable) == (71, 1)
    assert "0.png" in done.unreadable[0][0]
    with pytest.raises(AssertionError, match=r"1 images .* could not be read"):
        assert_tail_maintained(bundle_path, folder)


def test_a_reference_that_is_gone_or_changed_is_asked_for(
    bundle_path: Path, photos: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved.ltd"
    shutil.copytree(bundle_path, moved)
    data = open_dataset(str(photos))
    with pytest.raises(CheckpointError, match="--reference FILE"):
        verify_bundle(moved, data)
    write_checkpoint(tmp_path / "ckpt.pt", seed=1)
    with pytest.raises(CheckpointError, match="has changed since"):
        verify_bundle(moved, data)
    done = verify_bundle(moved, data, reference=bundle_path.parent / "ckpt.pt")
    assert done.result.verdict == "pass"
    other = verify_bundle(moved, data, reference=tmp_path / "ckpt.pt")
    assert "not the file" in other.provenance["Note"]
    assert other.result.verdict != "pass"


def test_a_bundle_can_be_the_reference(bundle_path: Path, photos: Path) -> None:
    done = verify_bundle(bundle_path, open_dataset(str(photos)), reference=bundle_path)
    assert done.result.verdict == "pass"


def test_bundles_of_other_classes_are_not_compared(
    bundle_path: Path, photos: Path, tmp_path: Path
) -> None:
    path = write_checkpoint(tmp_path / "five.pt", classes=5)
    other = export_bundle(load_checkpoint(path), [], tmp_path / "five.ltd").bundle.path
    with pytest.raises(DataError, match=r"6 classes and .* 5"):
        verify_bundle(bundle_path, open_dataset(str(photos)), reference=other)
    path = write_checkpoint(tmp_path / "named.pt", class_names=[*NAMES[:5], "other"])
    other = export_bundle(load_checkpoint(path), [], tmp_path / "named.ltd").bundle.path
    with pytest.raises(DataError, match="label 5 is 'species 5' in one and 'other'"):
        verify_bundle(bundle_path, open_dataset(str(photos)), reference=other)


def test_images_that_chose_the_fix_are_refused(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    spec = FixSpec("tau_norm", {"tau": "auto"})
    data = open_dataset(str(photos))
    exported = export_bundle(
        load_checkpoint(checkpoint), [spec], tmp_path / "auto.ltd", validation=data
    )
    with pytest.raises(
        DataError, match=r"chose the fix or the precision of auto.ltd \(72 of the 72"
    ):
        verify_bundle(exported.bundle, data, reference=checkpoint)
    # One shared image is enough, whatever it is called.
    folder = tmp_path / "other"
    for label, name in enumerate(NAMES):
        (folder / name).mkdir(parents=True)
        array = np.full((32, 32, 3), 40 * label, dtype=np.uint8)
        from PIL import Image

        Image.fromarray(array).save(folder / name / "new.png")
    done = verify_bundle(exported.bundle, open_dataset(str(folder)), reference=checkpoint)
    assert done.result.images == 6
    shutil.copy(photos / NAMES[2] / "3.png", folder / NAMES[2] / "again.png")
    with pytest.raises(DataError, match=r"1 of the 7"):
        verify_bundle(exported.bundle, open_dataset(str(folder)), reference=checkpoint)


def test_a_class_without_images_is_named(bundle_path: Path, photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "test"
    shutil.copytree(photos, folder)
    shutil.rmtree(folder / NAMES[5])
    done = verify_bundle(bundle_path, open_dataset(str(folder)))
    assert done.result.without_images == (NAMES[5],)
    assert done.result.classes[5].candidate is None


def test_non_finite_logits_name_the_image_and_the_engine(
    bundle_path: Path, photos: Path, tmp_path: Path
) -> None:
    opened = open_bundle(bundle_path)
    graph = onnx.load(bundle_path / "model.onnx")
    head = next(n for n in reversed(graph.graph.node) if n.op_type == "Gemm")
    for tensor in graph.graph.initializer:
        if tensor.name == head.input[1]:
            array = numpy_helper.to_array(tensor).copy()
            array[3] = np.nan
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    files = {name: (bundle_path / name).read_bytes() for name in opened.manifest.files}
    files["model.onnx"] = graph.SerializeToString()
    write_bundle(tmp_path / "nan.ltd", opened.manifest, files)
    reference = bundle_path.parent / "ckpt.pt"
    with pytest.raises(
        EngineError, match=r"openvino-cpu gave 1 non-finite logits .* test/species 0/0\.png"
    ):
        verify_bundle(tmp_path / "nan.ltd", open_dataset(str(photos)), reference=reference)


@pytest.mark.parametrize("engine", ["onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"])
def test_devices_compute_what_they_are_given(engine: str) -> None:
    assert computes(engine, "fp16")
    assert not computes("onnxruntime-cpu", "fp16")
    assert computes("onnxruntime-cpu", "int8")
