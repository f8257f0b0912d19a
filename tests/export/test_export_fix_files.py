"""A fix that was fitted and chosen elsewhere goes into the bundle with what is known about it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from fix_samples import fix_file, onnx_model
from samples import draw_photo, write_checkpoint

from ltdeploy.bundle import open_bundle
from ltdeploy.cli.main import main
from ltdeploy.datasets import open_dataset
from ltdeploy.engines import open_engine
from ltdeploy.engines.torch_reference import reference_engine
from ltdeploy.errors import DataError, FixError
from ltdeploy.export import export_bundle
from ltdeploy.fixes import AffineMap, FixSpec, write_fix_file
from ltdeploy.fixes.fix_file import FixSelection
from ltdeploy.images import load_prepared
from ltdeploy.inference import fingerprints
from ltdeploy.models.onnx_classifier import OnnxClassifier
from ltdeploy.verify import verify_bundle

IMAGES = np.random.default_rng(0).integers(0, 256, size=(5, 32, 32, 3), dtype=np.uint8)
DOUBLED = AffineMap(np.full(6, 2.0), np.arange(6.0))
ADJUST = FixSpec("logit_adjustment", {"tau": 1.0})


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> OnnxClassifier:
    return onnx_model(tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two drawn pictures of each of six classes."""
    folder = tmp_path_factory.mktemp("six") / "val"
    for label in range(6):
        (folder / f"species {label}").mkdir(parents=True)
        for number in range(2):
            photo = draw_photo(100 * label + number, 32, 32)
            photo.save(folder / f"species {label}" / f"{number}.png")
    return folder


def selection(hashes: np.ndarray, name: str = "val") -> FixSelection:
    return FixSelection(
        name=name,
        images=len(hashes),
        objective="few",
        balanced_before=30.0,
        balanced_after=41.0,
        notes=("chosen with care",),
        hashes=FixSelection.packed(hashes),
    )


def test_it_is_used_as_it_stands_and_its_images_are_refused(
    model: OnnxClassifier, photos: Path, tmp_path: Path
) -> None:
    data = open_dataset(str(photos))
    ready = load_prepared(data.source(3), model.preprocessing)
    hashes = np.append(fingerprints(ready[None]), np.array([5, 4], dtype=np.uint64))
    file = fix_file(
        DOUBLED,
        checkpoint={"name": "foreign.onnx", "sha256": model.source.sha256},
        selected_on=selection(hashes),
    )
    bundle = export_bundle(model, [file], tmp_path / "a.ltd").bundle
    raw = reference_engine(model).run({"images": IMAGES})["logits"]
    found = open_engine(bundle).run({"images": IMAGES})["logits"]
    np.testing.assert_allclose(found, 2 * raw + np.arange(6), rtol=1e-4, atol=1e-5)
    opened = open_bundle(bundle.path)
    assert [entry.method for entry in opened.manifest.fix.methods] == ["temperature"]
    selected = opened.manifest.fix.selected_on
    assert selected is not None
    assert (selected.name, selected.images, selected.objective) == ("val", 3, "few")
    assert selected.notes == ("chosen with care",)
    np.testing.assert_array_equal(opened.selection_hashes(), np.sort(hashes))
    with pytest.raises(DataError, match=r"chose the fix of a\.ltd \(1 of the 12"):
        verify_bundle(opened, data, reference=model.source.path)


def test_another_checkpoint_is_refused_unless_forced(model: OnnxClassifier, tmp_path: Path) -> None:
    file = fix_file(DOUBLED, checkpoint={"name": "other.pt", "sha256": "ab" * 32})
    ours = model.source.sha256[:12]
    with pytest.raises(
        FixError, match=rf"on other\.pt .*abababababab.* foreign\.onnx .*{ours}.*--force"
    ):
        export_bundle(model, [file], tmp_path / "a.ltd")
    assert list(tmp_path.iterdir()) == []
    bundle = export_bundle(model, [file], tmp_path / "a.ltd", force=True).bundle
    assert bundle.manifest.fix.folded == "weights"


def test_force_does_not_help_where_classes_differ(model: OnnxClassifier, tmp_path: Path) -> None:
    with pytest.raises(FixError, match="6 classes and the fix 3"):
        export_bundle(model, [fix_file(AffineMap.identity(3))], tmp_path / "a.ltd", force=True)


@pytest.mark.parametrize("first", [True, False])
def test_files_and_specs_compose_in_the_order_given(
    model: OnnxClassifier, tmp_path: Path, first: bool
) -> None:
    file = fix_file(DOUBLED)
    order = [file, ADJUST] if first else [ADJUST, file]
    bundle = export_bundle(model, order, tmp_path / "a.ltd").bundle
    methods = [entry.method for entry in bundle.manifest.fix.methods]
    assert methods == (
        ["temperature", "logit_adjustment"] if first else ["logit_adjustment", "temperature"]
    )
    shift = -np.log(model.require_complete().prior())
    fix = bundle.manifest.fix.logit_map()
    assert isinstance(fix, AffineMap)
    expected = np.arange(6) + shift if first else np.arange(6) + 2 * shift
    np.testing.assert_allclose(fix.shift, expected)


def test_a_method_may_not_come_twice(model: OnnxClassifier, tmp_path: Path) -> None:
    cool = FixSpec("temperature", {"t": 2.0})
    for requested in ([fix_file(DOUBLED), cool], [cool, fix_file(DOUBLED)], [cool, cool]):
        with pytest.raises(FixError, match="temperature is asked for more than once"):
            export_bundle(model, requested, tmp_path / "a.ltd")


def test_all_images_that_chose_are_remembered(
    model: OnnxClassifier, photos: Path, tmp_path: Path
) -> None:
    hashes = np.array([7, 9], dtype=np.uint64)
    auto = FixSpec("logit_adjustment", {"tau": "auto"})
    file = fix_file(DOUBLED, selected_on=selection(hashes, "elsewhere"))
    exported = export_bundle(
        model, [file, auto], tmp_path / "a.ltd", validation=open_dataset(str(photos))
    )
    selected = exported.bundle.manifest.fix.selected_on
    assert selected is not None
    assert selected.name.startswith("elsewhere + ")
    assert (selected.images, selected.balanced_after) == (14, None)
    kept = exported.bundle.selection_hashes()
    assert set(hashes) <= set(kept)
    assert len(kept) == 14


def test_the_command_line_takes_it(
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_fix_file(tmp_path / "fix.json", fix_file(DOUBLED, selected_on=selection(np.arange(4))))
    out = str(tmp_path / "a.ltd")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["ltdeploy", *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        told = capsys.readouterr()
        code = stopped.value.code
        return int(code or 0), told.out, told.err

    fix = ["--fix", str(tmp_path / "fix.json")]
    code, told, _ = run("export", str(checkpoint), *fix, "--out", out, "--json", "-")
    assert code == 0
    result = json.loads(told)
    assert result["fix"] == [{"method": "temperature", "parameters": {}}]
    assert result["selected_on"]["objective"] == "few"
    code, told, error = run("inspect", out)
    assert code == 0
    assert "temperature (folded: weights)" in told + error
    other = write_checkpoint(tmp_path / "five.pt", classes=5)
    code, _, error = run("export", str(other), *fix, "--out", str(tmp_path / "b.ltd"))
    assert code == 2
    assert "5 classes and the fix 6" in " ".join(error.split())
