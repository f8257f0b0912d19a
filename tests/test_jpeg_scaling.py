"""Scaled JPEG decoding: only where it was asked for, never in a reference, and measured."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from samples import draw_photo

import ltdeploy
from ltdeploy.bundle import Bundle, open_bundle, write_bundle
from ltdeploy.datasets import open_dataset
from ltdeploy.errors import DataError, ImageError, UsageError
from ltdeploy.images import Preprocessing, load_image, load_prepared
from ltdeploy.inference import fingerprints
from ltdeploy.verify import verify_bundle
from ltdeploy.verify.contenders import bundle_contender, reference_of

FULL = Preprocessing(32, 32, resize_px=36)
SCALED = Preprocessing(32, 32, resize_px=36, jpeg_scaling=True)


def jpeg(image: Image.Image, orientation: int = 1) -> bytes:
    """Return a JPEG of an image as it is to be seen, stored as a camera held otherwise would."""
    stored = image.transpose(Image.Transpose.ROTATE_90) if orientation == 6 else image
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    stored.save(buffer, "JPEG", quality=95, exif=exif)
    return buffer.getvalue()


@pytest.fixture
def large() -> Image.Image:
    """Return a picture of 320 x 160 with a grain that scaling treats in its own way."""
    rng = np.random.default_rng(0)
    smooth = np.asarray(draw_photo(3, 160, 320)).astype(int)
    return Image.fromarray(np.clip(smooth + rng.normal(0, 20, smooth.shape), 0, 255).astype("u1"))


def test_off_unless_asked_for() -> None:
    assert not FULL.jpeg_scaling
    assert "jpeg_scaling" not in FULL.to_dict()
    assert SCALED.to_dict()["jpeg_scaling"] is True
    for preprocessing in (FULL, SCALED):
        assert Preprocessing.from_dict(preprocessing.to_dict()) == preprocessing
    with pytest.raises(UsageError, match="expected true or false"):
        Preprocessing.from_dict(FULL.to_dict() | {"jpeg_scaling": "yes"})


def test_refused_where_nothing_is_resized() -> None:
    with pytest.raises(UsageError, match=r"nothing to do where images are not resized.*--resize"):
        Preprocessing(32, 32, resize_mode="none", jpeg_scaling=True)


@pytest.mark.parametrize(
    ("to", "expected"),
    [((36, 72), (80, 40)), ((40, 80), (80, 40)), ((41, 80), (160, 80)), ((161, 320), (320, 160))],
    ids=["quarter", "just a quarter", "half", "never enlarged"],
)
def test_the_smallest_that_is_not_too_small(
    large: Image.Image, to: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert load_image(jpeg(large), resized=lambda height, width: to).size == expected
    assert load_image(jpeg(large)).size == (320, 160)


def test_scaled_pixels_are_near_and_others(large: Image.Image) -> None:
    full, scaled = (load_prepared(jpeg(large), p).astype(int) for p in (FULL, SCALED))
    assert 0 < np.abs(full - scaled).mean() < 4


def test_the_orientation_turns_the_sides(large: Image.Image) -> None:
    tall = large.rotate(90, expand=True)
    assert load_image(jpeg(tall, 6)).size == (160, 320)
    box = Preprocessing(60, 24, resize_mode="squash", jpeg_scaling=True)
    upright, turned = (load_prepared(jpeg(tall, o), box).astype(int) for o in (1, 6))
    assert np.abs(upright - turned).mean() < 2
    # 60 of 320 rows and 24 of 160 columns: a quarter, whichever way the camera was held.
    assert load_image(jpeg(tall, 6), resized=lambda height, width: (60, 24)).size == (40, 80)


def test_other_formats_small_images_and_pil_images_stay(large: Image.Image) -> None:
    buffer = io.BytesIO()
    large.save(buffer, "PNG")
    opened = Image.open(io.BytesIO(jpeg(large)))
    for source in (buffer.getvalue(), jpeg(draw_photo(1, 40, 60)), np.asarray(large), opened):
        np.testing.assert_array_equal(load_prepared(source, FULL), load_prepared(source, SCALED))
    assert opened.size == (320, 160)


def test_a_cut_file_is_refused_as_ever(large: Image.Image) -> None:
    for preprocessing in (FULL, SCALED):
        with pytest.raises(ImageError, match="cannot be decoded"):
            load_prepared(jpeg(large)[:-2000], preprocessing)


@pytest.fixture
def scaled_bundle(bundle_path: Path, tmp_path: Path) -> Bundle:
    """Return the bundle of ``checkpoint`` with scaled decoding declared."""
    opened = open_bundle(bundle_path)
    preprocessing = Preprocessing(32, 32, resize_px=32, jpeg_scaling=True).to_dict()
    manifest = opened.manifest.model_copy(update={"preprocessing": preprocessing})
    files = {name: (bundle_path / name).read_bytes() for name in opened.manifest.files}
    return write_bundle(tmp_path / "scaled.ltd", manifest, files)


def test_the_gate_holds_it_against_full_decoding(
    scaled_bundle: Bundle, checkpoint: Path, large: Image.Image, tmp_path: Path
) -> None:
    assert bundle_contender(scaled_bundle, "onnxruntime").preprocessing.jpeg_scaling
    assert not reference_of(scaled_bundle, checkpoint).preprocessing.jpeg_scaling
    for label in range(6):
        folder = tmp_path / "val" / f"species {label}"
        folder.mkdir(parents=True)
        turned = large.rotate(30 * label)
        for name in ("a", "b"):
            (folder / f"{name}.jpg").write_bytes(jpeg(turned))
    dataset = open_dataset(str(tmp_path / "val"))
    done = verify_bundle(scaled_bundle, dataset, reference=checkpoint, engine="onnxruntime")
    assert done.result.images == 12
    assert done.result.max_abs_logit_diff > 1e-2  # other pixels: seen
    with ltdeploy.load(scaled_bundle.path, engine="onnxruntime") as model:
        assert model.preprocessing.jpeg_scaling


def test_images_that_chose_the_fix_are_known_again(
    scaled_bundle: Bundle, checkpoint: Path, large: Image.Image, tmp_path: Path
) -> None:
    # They were fingerprinted decoded in full, and the candidate never sees them so.
    (tmp_path / "val" / "species 0").mkdir(parents=True)
    (tmp_path / "val" / "species 0" / "a.jpg").write_bytes(jpeg(large))
    prepared = load_prepared(jpeg(large), Preprocessing(32, 32, resize_px=32))
    selection = io.BytesIO()
    np.savez(selection, hashes=fingerprints(prepared[None]))
    files = {
        name: (scaled_bundle.path / name).read_bytes() for name in scaled_bundle.manifest.files
    }
    files["selection.npz"] = selection.getvalue()
    chosen = write_bundle(tmp_path / "chosen.ltd", scaled_bundle.manifest, files)
    with pytest.raises(DataError, match="images that chose the fix"):
        verify_bundle(
            chosen, open_dataset(str(tmp_path / "val")), reference=checkpoint, engine="onnxruntime"
        )
