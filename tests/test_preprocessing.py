"""Preprocessing options: what is accepted, and that they survive the manifest."""

from __future__ import annotations

import pytest

from ltdeploy.errors import UsageError
from ltdeploy.images import Preprocessing

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def test_preprocessing_survives_json() -> None:
    for options in (
        Preprocessing(32, 48),
        Preprocessing(32, 32, "squash", (36, 40), "lanczos", MEAN, STD),
        Preprocessing(32, 32, "none"),
    ):
        assert Preprocessing.from_dict(options.to_dict()) == options
    assert Preprocessing(8, 8, mean=[0.5, 0.5, 0.5]).mean == (0.5, 0.5, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"height_px": 8, "width_px": 8, "hight": 3}, "Unknown preprocessing key 'hight'"),
        ({"height_px": 8, "width_px": 8, "intrpolation": 3}, "Did you mean 'interpolation'"),
        ({"height_px": 8}, "lacks 'width_px'"),
        ({"height_px": 0, "width_px": 8}, "height_px is 0; expected a whole number"),
        ({"height_px": 8, "width_px": 8.5}, "width_px is 8.5"),
        ({"height_px": True, "width_px": 8}, "height_px is True"),
        ({"height_px": 8, "width_px": 100_000}, "from 1 to 8192"),
        ({"height_px": 8, "width_px": 8, "interpolation": "bicubik"}, "Did you mean 'bicubic'"),
        ({"height_px": 8, "width_px": 8, "resize_mode": "shortest"}, "Did you mean 'shorter'"),
        ({"height_px": 8, "width_px": 8, "resize_mode": "none", "resize_px": 9}, "never scales"),
        ({"height_px": 8, "width_px": 8, "resize_px": [1, 2, 3]}, "resize_px has 3 values"),
        ({"height_px": 8, "width_px": 8, "resize_px": -1}, "resize_px is -1"),
        ({"height_px": 8, "width_px": 8, "mean": [0.5]}, "mean is .* three finite numbers"),
        ({"height_px": 8, "width_px": 8, "mean": ["a", 0, 0]}, "three finite numbers"),
        ({"height_px": 8, "width_px": 8, "std": [float("nan"), 1, 1]}, "three finite numbers"),
        ({"height_px": 8, "width_px": 8, "std": [0.2, 0.0, 0.2]}, "expected three positive"),
    ],
)
def test_wrong_preprocessing_is_refused(values: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Preprocessing.from_dict(values)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"crop_pct": 0.0}, "crop_pct is 0.0; expected a number above 0"),
        ({"crop_pct": float("nan")}, "crop_pct is nan"),
        ({"crop_mode": "border"}, "Unknown crop mode 'border'; known are center, squash"),
    ],
)
def test_wrong_crops_are_refused(options: dict[str, object], text: str) -> None:
    with pytest.raises(UsageError, match=text):
        Preprocessing.from_crop_pct(224, 224, **options)  # type: ignore[arg-type]
