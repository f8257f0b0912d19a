"""A fix that was fitted and chosen elsewhere goes into the bundle with what is known about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fix_samples import fix_file, onnx_model
from samples import draw_photo, write_checkpoint

from ltdeploy.bundle import open_bundle
from ltdeploy.classes import ClassTable
from ltdeploy.cli.main import main
from ltdeploy.datasets import open_dataset
from ltdeploy.engines import open_engine
from ltdeploy.engines.torch_reference import reference_engine
from ltdeploy.errors import DataError, FixError
from ltdeploy.export import export_bundle
from ltdeploy.fixes import AffineMap, FixFile, FixSpec, MethodEntry, write_fix_file
from ltdeploy.fixes.fix_file import FixSelection
from ltdeploy.images import load_prepared
from ltdeploy.inference import fingerprints
from ltdeploy.models.onnx_classifier import OnnxClassifier
from ltdeploy.verify import report_html, verify_bundle

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


def unknown_images(count: int) -> FixSelection:
    """Return images that were only ever seen as rows of an array."""
    return selection(np.empty(0, dtype=np.uint64)).model_copy(update={"images": count})


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
    with pytest.raises(DataError, match=r"chose the fix or the precision of a\.ltd \(1 of the 12"):
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


def corrected() -> FixFile:
    shift = AffineMap(np.ones(6), np.arange(6.0))
    return fix_file(shift, "logit_adjustment").model_copy(
        update={"methods": (MethodEntry(method="logit_adjustment", parameters={"tau": 1.0}),)}
    )


@pytest.mark.parametrize("first", [True, False])
def test_the_training_prior_is_taken_off_once(
    model: OnnxClassifier, tmp_path: Path, first: bool
) -> None:
    prior = FixSpec("target_prior", {})
    for other in (corrected(), ADJUST):
        requested = [other, prior] if first else [prior, other]
        with pytest.raises(FixError, match="each take the training prior off"):
            export_bundle(model, requested, tmp_path / "a.ltd")
        export_bundle(model, requested, tmp_path / "forced.ltd", force=True)
    export_bundle(model, [FixSpec("tau_norm", {"tau": 0.5}), corrected()], tmp_path / "a.ltd")


def test_a_file_that_corrects_for_itself_is_refused_too(
    model: OnnxClassifier, tmp_path: Path
) -> None:
    both = tuple(
        MethodEntry(method=method, parameters=parameters)
        for method, parameters in (("logit_adjustment", {"tau": 0.5}), ("target_prior", {}))
    )
    with pytest.raises(FixError, match="logit_adjustment and target_prior each take"):
        export_bundle(model, [corrected().model_copy(update={"methods": both})], tmp_path / "a.ltd")


def test_a_balanced_model_takes_no_correction_from_a_file_either(
    model: OnnxClassifier, tmp_path: Path
) -> None:
    balanced = replace(model, trained_with="balanced_softmax")
    texts = []
    for one in (corrected(), ADJUST):
        with pytest.raises(FixError, match=r"trained with balanced_softmax.*--force") as caught:
            export_bundle(balanced, [one], tmp_path / "a.ltd")
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    export_bundle(balanced, [corrected()], tmp_path / "a.ltd", force=True)
    plain = replace(model, trained_with="cross_entropy")
    export_bundle(plain, [corrected()], tmp_path / "b.ltd")
    export_bundle(balanced, [fix_file(DOUBLED)], tmp_path / "c.ltd")  # a temperature is none


def test_a_fix_of_arrays_says_what_cannot_be_checked(
    model: OnnxClassifier, photos: Path, tmp_path: Path
) -> None:
    chosen = fix_file(DOUBLED, selected_on=unknown_images(9))
    notes = export_bundle(model, [chosen], tmp_path / "a.ltd").bundle.manifest.fix.notes
    assert "fitted on arrays" in notes[0]
    assert "verify will show" in notes[0]
    assert "left no fingerprints" in notes[1]
    data = open_dataset(str(photos))
    done = verify_bundle(tmp_path / "a.ltd", data, reference=model.source.path)
    assert "chosen on 9 images without fingerprints" in done.provenance["Note"]
    assert "without fingerprints" in report_html(done, title="a", kind="verification")

    known = {"name": "foreign.onnx", "sha256": model.source.sha256}
    hashes = np.array([7, 9], dtype=np.uint64)
    bound = fix_file(DOUBLED, checkpoint=known, selected_on=selection(hashes))
    bundle = export_bundle(model, [bound], tmp_path / "b.ltd").bundle
    assert bundle.manifest.fix.notes == ()
    assert "Note" not in verify_bundle(bundle, data, reference=model.source.path).provenance
    unfixed = export_bundle(model, [], tmp_path / "c.ltd").bundle
    assert "Note" not in verify_bundle(unfixed, data, reference=model.source.path).provenance


NAMES = ("moth", "beetle", "ant", "bee", "wasp", "whale")


def test_a_model_without_names_gets_those_of_the_file(
    model: OnnxClassifier, tmp_path: Path
) -> None:
    counts = model.require_complete().counts
    nameless = replace(model, classes=ClassTable.from_counts(counts))
    file = fix_file(DOUBLED, class_names=NAMES, train_counts=counts)
    bundle = export_bundle(nameless, [file, ADJUST], tmp_path / "a.ltd").bundle
    assert bundle.classes.names == NAMES
    assert bundle.classes.counts == counts
    plain = export_bundle(nameless, [fix_file(DOUBLED)], tmp_path / "b.ltd").bundle
    assert plain.classes.names == ("0", "1", "2", "3", "4", "5")


def test_classes_in_another_order_are_refused_unless_forced(
    model: OnnxClassifier, tmp_path: Path
) -> None:
    table = model.require_complete()
    swapped = (*table.names[:2], table.names[3], table.names[2], *table.names[4:])
    cases = [
        ({"class_names": swapped}, "another order: label 2 is called 'species 3' in it and"),
        ({"class_names": NAMES}, "other classes, or in another order: label 0 is called 'moth'"),
        (
            {"train_counts": table.counts[::-1]},
            "another order: label 0 has the training count 2 in it and 200 in foreign.onnx",
        ),
        ({"train_counts": (201, *table.counts[1:])}, "label 0 has the training count 201"),
    ]
    for told, text in cases:
        with pytest.raises(FixError, match=f"{text}.*") as caught:
            export_bundle(model, [fix_file(DOUBLED, **told)], tmp_path / "a.ltd")
        assert "--force" in str(caught.value)
        forced = export_bundle(
            model, [fix_file(DOUBLED, **told)], tmp_path / "forced.ltd", force=True
        )
        assert forced.bundle.classes.names == table.names  # the model's own count
    same = fix_file(DOUBLED, class_names=table.names, train_counts=table.counts)
    export_bundle(model, [same], tmp_path / "a.ltd")


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
    assert any("fitted on arrays" in note for note in result["notes"])
    code, told, error = run("inspect", out)
    assert code == 0
    assert "temperature (folded: weights)" in told + error
    twice = ["--logit-adjust", "1.0", "--fix", "target_prior", "--out", str(tmp_path / "c.ltd")]
    code, _, error = run("export", str(checkpoint), *twice)
    assert code == 2
    assert "each take the training prior off" in " ".join(error.split())
    assert not (tmp_path / "c.ltd").exists()
    other = write_checkpoint(tmp_path / "five.pt", classes=5)
    code, _, error = run("export", str(other), *fix, "--out", str(tmp_path / "b.ltd"))
    assert code == 2
    assert "5 classes and the fix 6" in " ".join(error.split())
