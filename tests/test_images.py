"""Pixels: the same as torchvision's and timm's, and the same for every way an image is stored."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from ltdeploy import images
from ltdeploy.errors import ImageError, UsageError
from ltdeploy.images import (
    ImageLimits,
    Preprocessing,
    load_image,
    load_prepared,
    normalise,
    prepare,
)

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def gradient() -> Image.Image:
    y, x = np.mgrid[0:24, 0:36]
    return Image.fromarray(np.stack([x * 7, y * 10, 255 - x * 3 - y * 2], -1).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(data_dir: Path) -> list[Image.Image]:
    paths = sorted((data_dir / "photos").glob("*.jpg"))
    assert len(paths) == 34
    return [load_image(path) for path in paths]


TIMM_CONFIGS = [
    (224, 224, 0.875, "center", "bicubic"),
    (224, 224, 0.95, "center", "bicubic"),
    (224, 224, 1.0, "center", "bilinear"),
    (288, 288, 0.96, "center", "bicubic"),
    (299, 299, 0.875, "center", "bilinear"),
    (336, 336, 1.0, "squash", "bicubic"),
    (224, 224, 0.9, "squash", "bicubic"),
    (160, 160, 0.875, "center", "lanczos"),
    (96, 96, 0.875, "center", "nearest"),
    (192, 320, 0.9, "center", "bicubic"),
    (320, 192, 1.0, "center", "bilinear"),
    (224, 192, 0.8, "squash", "bilinear"),
]


@pytest.mark.parametrize(
    ("height", "width", "crop_pct", "crop_mode", "interpolation"), TIMM_CONFIGS
)
def test_pixels_are_timms(
    photos: list[Image.Image],
    height: int,
    width: int,
    crop_pct: float,
    crop_mode: str,
    interpolation: images.Interpolation,
) -> None:
    data = pytest.importorskip("timm.data")
    transform = data.create_transform(
        (3, height, width),
        interpolation=interpolation,
        crop_pct=crop_pct,
        crop_mode=crop_mode,
        use_prefetcher=True,
    )
    ours = Preprocessing.from_crop_pct(
        height, width, crop_pct=crop_pct, crop_mode=crop_mode, interpolation=interpolation
    )
    for photo in photos:
        theirs = np.asarray(transform(photo)).transpose(1, 2, 0)
        np.testing.assert_array_equal(prepare(photo, ours), theirs)


@pytest.mark.parametrize(
    ("resize_px", "crop_px", "interpolation"),
    [(256, 224, "bilinear"), (232, 224, "bilinear"), (235, 224, "bicubic"), (64, 224, "bicubic")],
)
def test_pixels_are_torchvisions(
    photos: list[Image.Image], resize_px: int, crop_px: int, interpolation: images.Interpolation
) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    resize = transforms.Resize(resize_px, transforms.InterpolationMode(interpolation))
    crop = transforms.CenterCrop(crop_px)
    ours = Preprocessing(
        crop_px, crop_px, resize_px=resize_px, interpolation=interpolation, mean=MEAN, std=STD
    )
    for photo in photos:
        np.testing.assert_array_equal(prepare(photo, ours), np.asarray(crop(resize(photo))))


def test_normalised_values_are_torchvisions(photos: list[Image.Image]) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    theirs = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    ours = Preprocessing(64, 48, resize_mode="squash", mean=MEAN, std=STD)
    batch = np.stack([prepare(photo, ours) for photo in photos])
    expected = np.stack([theirs(Image.fromarray(image)).numpy() for image in batch])
    got = normalise(batch, ours)
    assert got.dtype == np.float32
    assert got.flags.c_contiguous
    np.testing.assert_allclose(got, expected, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    resize_px=st.integers(1, 40),
    crop=st.tuples(st.integers(1, 45), st.integers(1, 45)),
)
def test_any_size_is_torchvisions(
    height: int, width: int, resize_px: int, crop: tuple[int, int]
) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    pixels = np.random.default_rng(height * 61 + width).integers(0, 256, (height, width, 3))
    image = Image.fromarray(pixels.astype(np.uint8))
    theirs = transforms.CenterCrop(crop)(
        transforms.Resize(resize_px, transforms.InterpolationMode.BICUBIC)(image)
    )
    # A pair of equal sides is what timm calls square, which torchvision's rule scales.
    for sides in (resize_px, (resize_px, resize_px)):
        ours = prepare(image, Preprocessing(*crop, resize_px=sides))
        np.testing.assert_array_equal(ours, np.asarray(theirs))
    cropped = prepare(image, Preprocessing(*crop, resize_mode="none"))
    np.testing.assert_array_equal(cropped, np.asarray(transforms.CenterCrop(crop)(image)))


@pytest.mark.parametrize("size", [(900, 7), (7, 900)])
def test_a_strip_is_computed_in_part_and_alike(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3)).astype(np.uint8)
    options = Preprocessing(224, 224, resize_px=256)
    whole = prepare(Image.fromarray(pixels), options).astype(int)
    monkeypatch.setattr(images, "_LARGEST_RESIZED_PIXELS", 1000)
    part = prepare(Image.fromarray(pixels), options)
    assert np.abs(part - whole).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(gradient: Image.Image, kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(gradient, kind, exif=exif, **options)
    stored = Image.open(io.BytesIO(data))
    expected = np.asarray(ImageOps.exif_transpose(stored))
    assert expected.shape[:2] == ((24, 36) if orientation < 5 else (36, 24))
    np.testing.assert_array_equal(load_image(data), expected)
    # An image that Pillow has opened already carries the same tag.
    np.testing.assert_array_equal(load_image(Image.open(io.BytesIO(data))), expected)


def test_an_upright_image_is_not_turned_twice(gradient: Image.Image) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(gradient, "PNG", exif=exif))))
    np.testing.assert_array_equal(load_image(upright), np.asarray(upright))


@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0",
        b"nonsense",
    ],
)
def test_a_damaged_exif_block_leaves_the_image_upright(gradient: Image.Image, block: bytes) -> None:
    image = gradient.copy()
    image.info["exif"] = block
    np.testing.assert_array_equal(load_image(image), np.asarray(gradient))


def test_alpha_is_dropped_and_the_colours_stay(gradient: Image.Image) -> None:
    rgba = gradient.convert("RGBA")
    rgba.putalpha(0)
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(load_image(encoded(rgba, kind)), np.asarray(gradient))
    gray = np.asarray(gradient.convert("L"))
    la = load_image(encoded(gradient.convert("LA"), "PNG"))
    np.testing.assert_array_equal(np.asarray(la), np.stack([gray] * 3, -1))


@pytest.mark.parametrize("transparency", [None, 3, bytes([0, 128, 255])])
def test_a_palette_gives_its_colours(
    gradient: Image.Image, transparency: int | bytes | None
) -> None:
    palette = gradient.quantize(16)
    options = {} if transparency is None else {"transparency": transparency}
    got = load_image(encoded(palette, "PNG", **options))
    np.testing.assert_array_equal(got, np.asarray(palette.convert("RGB")))


def test_sixteen_bits_become_eight_by_scaling() -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65407, 65535]], dtype=np.uint16)
    expected = np.round(values / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF"):
        got = np.asarray(load_image(encoded(Image.fromarray(values), kind)))
        np.testing.assert_array_equal(got, np.stack([expected] * 3, -1))
    as_int32 = Image.fromarray(values.astype(np.int32))
    np.testing.assert_array_equal(np.asarray(load_image(as_int32))[..., 0], expected)


@pytest.mark.parametrize("mode", ["1", "L", "CMYK", "YCbCr", "HSV", "RGBX", "LA", "RGBA", "P"])
def test_every_ordinary_mode_becomes_rgb(gradient: Image.Image, mode: str) -> None:
    image = gradient.convert(mode)
    np.testing.assert_array_equal(load_image(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(
    "image",
    [
        Image.new("F", (4, 4)),
        Image.fromarray(np.array([[-1, 5]], dtype=np.int32)),
        Image.fromarray(np.array([[0, 70000]], dtype=np.int32)),
        Image.new("LAB", (4, 4)),
    ],
)
def test_a_mode_of_unknown_range_is_refused(image: Image.Image) -> None:
    with pytest.raises(ImageError, match=r"value range is not known; expected 8-bit RGB"):
        load_image(image)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_an_animation_the_first_frame_counts(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "lime")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert (np.asarray(load_image(data)) == (255, 0, 0)).all()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "WEBP"])
def test_lossless_formats_give_the_same_pixels_by_every_way_in(
    gradient: Image.Image, kind: str, tmp_path: Path
) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(gradient, kind, **options)
    path = tmp_path / "the name says nothing.dat"
    path.write_bytes(data)
    expected = np.asarray(gradient)
    for source in (path, str(path), data, expected, gradient):
        np.testing.assert_array_equal(load_image(source), expected)


def test_arrays_are_rgb_or_gray_and_not_kept() -> None:
    gray = np.arange(12, dtype=np.uint8).reshape(3, 4)
    got = np.asarray(load_image(gray))
    np.testing.assert_array_equal(got, np.stack([gray] * 3, -1))
    colour = np.random.default_rng(0).integers(0, 256, (6, 4, 3)).astype(np.uint8)
    flipped = load_image(colour[::-1, ::-1])
    colour[:] = 0
    assert np.asarray(flipped).any(), "the image changed with the caller's array"


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 1), np.uint8),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match=r"has shape .* expected uint8 of shape \(H, W, 3\)"):
        load_image(array)


def test_an_array_without_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="0 x 5 pixels; expected at least 1 x 1"):
        load_image(np.zeros((5, 0, 3), np.uint8))


def test_what_is_no_image_source_is_refused() -> None:
    with pytest.raises(ImageError, match="cannot be made from int; expected a path, bytes"):
        load_image(3)  # type: ignore[arg-type]


def test_limits_hold_for_every_source(gradient: Image.Image, tmp_path: Path) -> None:
    data = encoded(gradient, "PNG")
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    few_pixels = ImageLimits(max_pixels=24 * 36 - 1)
    for source in (path, data, np.asarray(gradient), gradient):
        load_image(source, ImageLimits(max_pixels=24 * 36))
        with pytest.raises(ImageError, match="is 36 x 24 pixels"):
            load_image(source, few_pixels)
    with pytest.raises(ImageError, match="at most 35 are accepted per side"):
        load_image(data, ImageLimits(max_side_px=35))
    few_bytes = ImageLimits(max_bytes=len(data) - 1)
    for source in (path, data):
        load_image(source, ImageLimits(max_bytes=len(data)))
        with pytest.raises(ImageError, match=f"{len(data):,} bytes; at most"):
            load_image(source, few_bytes)


@pytest.mark.parametrize("limits", [{"max_bytes": 0}, {"max_pixels": -1}, {"max_side_px": 0}])
def test_limits_must_be_positive(limits: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="must be positive"):
        ImageLimits(**limits)


def test_pillows_globals_stay_and_its_limit_is_not_ours(
    gradient: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    data = encoded(gradient, "PNG")
    with pytest.raises(Image.DecompressionBombError):  # negative control: Pillow would refuse
        Image.open(io.BytesIO(data))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert load_image(data).size == gradient.size
    assert not caught
    assert Image.MAX_IMAGE_PIXELS == 100
    assert truncated is ImageFile.LOAD_TRUNCATED_IMAGES


def test_load_prepared_is_load_then_prepare(gradient: Image.Image) -> None:
    options = Preprocessing(10, 12, resize_px=14)
    data = encoded(gradient, "JPEG")
    got = load_prepared(data, options)
    assert got.shape == (10, 12, 3)
    assert got.dtype == np.uint8
    np.testing.assert_array_equal(got, prepare(load_image(data), options))
