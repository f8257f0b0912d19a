"""Hugging Face folders of small query detectors, saved by transformers itself."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

from detector_samples import CLASSES, SIZE, detector

__all__ = ["NAMES", "PROCESSOR", "write_folder"]

NAMES = ("disc", "bar", "ring", "star")
PROCESSOR: dict[str, Any] = {
    "image_processor_type": "RTDetrImageProcessor",
    "do_resize": True,
    "size": {"height": SIZE[0], "width": SIZE[1]},
    "resample": 2,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.45, 0.4],
    "image_std": [0.25, 0.25, 0.25],
    "do_pad": False,
}


def write_folder(folder: Path, family: str, **processor: Any) -> Any:
    """Save a detector whose scores spread, and return it."""
    assert len(NAMES) == CLASSES
    module: Any = copy.deepcopy(detector(family))
    module.config.id2label = dict(enumerate(NAMES))
    module.config.label2id = {name: label for label, name in enumerate(NAMES)}
    module.save_pretrained(folder)
    told = json.dumps(PROCESSOR | processor)
    (folder / "preprocessor_config.json").write_text(told)
    return module
