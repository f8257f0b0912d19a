"""What a user may import, frozen: a change here is a change of the public interface."""

from __future__ import annotations

import importlib

import pytest

import ltdeploy

PUBLIC = {
    "ltdeploy": [
        "Bundle",
        "ClassScore",
        "ClassTable",
        "DetectionPredictor",
        "DetectionResult",
        "Detections",
        "FoundBox",
        "GroupRule",
        "LtdeployError",
        "Prediction",
        "Predictor",
        "Preprocessing",
        "load",
        "load_detector",
        "open_bundle",
    ],
    "ltdeploy.errors": [
        "BundleError",
        "CheckpointError",
        "DataError",
        "EngineError",
        "ExportError",
        "FixError",
        "ImageError",
        "ImageTooLargeError",
        "LtdeployError",
        "MissingExtraError",
        "UnknownFormatError",
        "UnsafeCheckpointError",
        "UsageError",
        "did_you_mean",
        "numbered",
    ],
    "ltdeploy.export": ["Checks", "Exported", "PrecisionRequest", "export_bundle"],
    "ltdeploy.testing": ["assert_tail_maintained"],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_these(module: str) -> None:
    found = importlib.import_module(module)
    assert sorted(found.__all__) == PUBLIC[module]
    for name in found.__all__:
        assert getattr(found, name) is not None


def test_lazy_names_can_be_listed_and_typed() -> None:
    assert set(ltdeploy.__all__) <= set(dir(ltdeploy))
    # What type checkers see must be what is there.
    assert ltdeploy.load.__module__ == "ltdeploy.predictor"


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'laod'"):
        ltdeploy.laod  # noqa: B018
    with pytest.raises(ImportError):
        from ltdeploy import laod  # noqa: F401


def test_every_error_is_a_ltdeploy_error() -> None:
    from ltdeploy import errors

    for name in errors.__all__:
        thing = getattr(errors, name)
        assert not isinstance(thing, type) or issubclass(thing, ltdeploy.LtdeployError)
