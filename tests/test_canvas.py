"""A photograph comes onto the canvas whole, and its boxes come back to where they were."""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ltdeploy.canvas import Canvas, Fit, Placement, load_on_canvas
from ltdeploy.errors import ImageError, UsageError
from ltdeploy.images import Preprocessing, prepare

FITS: tuple[Fit, ...] = ("top_left", "centre", "squash")
sides = st.integers(1, 6000)
shares = st.floats(0, 1, width=32)


def photo(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return noise: any wrong pixel shows."""
    return np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)


@given(
    height=sides,
    width=sides,
    fit=st.sampled_from(FITS),
    mirrored=st.booleans(),
    may_enlarge=st.booleans(),
    corners=st.tuples(shares, shares, shares, shares),
)
@settings(max_examples=200, deadline=None)
def test_boxes_come_back(
    height: int,
    width: int,
    fit: Fit,
    mirrored: bool,
    may_enlarge: bool,
    corners: tuple[float, float, float, float],
) -> None:
    canvas = Canvas(480, 640, fit=fit, may_enlarge=may_enlarge or fit == "squash")
    placement = canvas.place(height, width, mirrored=mirrored)
    across, down = np.sort(np.array(corners).reshape(2, 2), axis=1)
    box = np.array([[across[0], down[0], across[1], down[1]]])
    boxes = (box * [width, height, width, height]).astype(np.float32)
    placed = placement.to_canvas(boxes)
    assert placed.dtype == np.float32
    assert (placed >= -1e-3).all()
    assert (placed <= np.array([640, 480, 640, 480]) + 1e-3).all()
    np.testing.assert_allclose(placement.to_original(placed), boxes, atol=0.01)


@given(height=sides, width=sides, fit=st.sampled_from(FITS))
@settings(max_examples=100, deadline=None)
def test_the_photograph_fills_one_side_and_stays_inside(height: int, width: int, fit: Fit) -> None:
    placement = Canvas(480, 640, fit=fit).place(height, width)
    across, down = width * placement.scale_x, height * placement.scale_y
    assert round(across) == 640 or round(down) == 480
    assert placement.left_px + across <= 640.001
    assert placement.top_px + down <= 480.001
    assert min(across, down) > 0.999


def test_what_the_network_finds_outside_is_clipped() -> None:
    placement = Canvas(100, 100, fit="centre").place(50, 100)
    everything = placement.to_original(np.array([[-10.0, -10, 500, 500]], np.float32))
    np.testing.assert_array_equal(everything, [[0, 0, 100, 50]])
    padding = placement.to_original(np.array([[0.0, 0, 100, 20]], np.float32))
    np.testing.assert_array_equal(padding, [[0, 0, 100, 0]])


def test_mirrored_boxes_are_mirrored() -> None:
    placement = Placement(2, 2, 0, 0, width_px=10, height_px=4, mirrored=True)
    boxes = np.array([[1.0, 0, 3, 4]], np.float32)
    np.testing.assert_array_equal(placement.to_canvas(boxes), [[14, 0, 18, 8]])
    np.testing.assert_array_equal(boxes, [[1, 0, 3, 4]])  # the caller's stay


def test_pixels_are_those_of_the_classifiers_resizing() -> None:
    image = photo(37, 61)
    squashed, _ = Canvas(20, 30, fit="squash").prepare(image)
    expected = prepare(
        Image.fromarray(image), Preprocessing(20, 30, "squash", interpolation="bilinear")
    )
    np.testing.assert_array_equal(squashed, expected)


@pytest.mark.parametrize(("fit", "top", "left"), [("top_left", 0, 0), ("centre", 10, 0)])
def test_padding_is_the_fill_and_the_rest_the_photograph(fit: Fit, top: int, left: int) -> None:
    image = photo(20, 40)
    pixels, placement = Canvas(40, 40, fit=fit, fill=(1, 2, 3)).prepare(image)
    assert (placement.top_px, placement.left_px) == (top, left)
    np.testing.assert_array_equal(pixels[top : top + 20, left : left + 40], image)
    outside = np.ones((40, 40), dtype=bool)
    outside[top : top + 20, left : left + 40] = False
    assert (pixels[outside] == (1, 2, 3)).all()


def test_a_mirrored_photograph_stays_in_its_corner() -> None:
    image = photo(20, 10)
    pixels, _ = Canvas(20, 20).prepare(image, mirrored=True)
    np.testing.assert_array_equal(pixels[:, :10], image[:, ::-1])
    assert not pixels[:, 10:].any()


def test_a_small_photograph_is_enlarged_only_where_it_may_be() -> None:
    assert Canvas(400, 400).place(100, 200).scale_x == 2
    assert Canvas(400, 400, may_enlarge=False).place(100, 200).scale_x == 1
    assert Canvas(400, 400, may_enlarge=False).place(1600, 200).scale_y == 0.25


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(1, 5000), (5000, 1), (1, 1)])
def test_hostile_sizes(fit: Fit, size: tuple[int, int]) -> None:
    pixels, placement = Canvas(64, 96, fit=fit).prepare(photo(*size))
    assert pixels.shape == (64, 96, 3)
    whole = np.array([[0, 0, size[1], size[0]]], np.float32)
    np.testing.assert_allclose(placement.to_original(placement.to_canvas(whole)), whole, rtol=1e-5)


def test_files_are_decoded_as_for_classifiers() -> None:
    upright = photo(8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter
    file = io.BytesIO()
    Image.fromarray(upright).save(file, "PNG", exif=exif)
    pixels, placement = load_on_canvas(file.getvalue(), Canvas(8, 8))
    assert (placement.height_px, placement.width_px) == (4, 8)
    np.testing.assert_array_equal(pixels[:4], np.rot90(upright, -1))
    with pytest.raises(ImageError, match=r"a\.jpg is not an image"):
        load_on_canvas(b"no image", Canvas(8, 8), name="a.jpg")


def test_a_canvas_is_written_and_read() -> None:
    canvas = Canvas(320, 640, "centre", "bicubic", (114, 114, 114), (0, 0, 0), (1, 1, 1), False)
    assert Canvas.from_dict(canvas.to_dict()) == canvas
    assert canvas.to_dict()["fill"] == [114, 114, 114]
    assert canvas.as_preprocessing().resize_mode == "none"


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"height_px": 0}, "height_px is 0"),
        ({"fit": "center"}, "Did you mean 'centre'"),
        ({"interpolation": "cubic"}, "Unknown interpolation"),
        ({"fill": (0, 0, 256)}, "three whole numbers"),
        ({"fill": (0, 0)}, "three whole numbers"),
        ({"fill": 7}, "three whole numbers"),
        ({"std": (0, 1, 1)}, "positive"),
        ({"may_enlarge": 1}, "may_enlarge is 1"),
        ({"fit": "squash", "may_enlarge": False}, "fills the canvas"),
        ({"fitt": "squash"}, "Did you mean 'fit'"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Canvas.from_dict({"height_px": 8, "width_px": 8, **values})


def test_a_canvas_needs_its_size() -> None:
    with pytest.raises(UsageError, match="lacks 'width_px'"):
        Canvas.from_dict({"height_px": 8})
