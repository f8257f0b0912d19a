"""Pictures and checkpoints that tests of several rooms make."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image


def draw_photo(seed: int, height: int = 48, width: int = 64) -> Image.Image:
    """Draw a smooth coloured picture, different for each seed; JPEG keeps it almost as it is."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(4, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def write_checkpoint(path: Path, *, classes: int = 6, seed: int = 0, **record: object) -> Path:
    """Write a real checkpoint in ltdeploy's layout: a CIFAR ResNet-20 with drawn weights."""
    import torch

    from ltdeploy.models.architectures import build, default_preprocessing

    torch.manual_seed(seed)
    module = build("cifar:resnet20", classes)
    counts = np.geomspace(500, 3, classes).astype(int).tolist()
    header = {
        "schema": 1,
        "arch": "cifar:resnet20",
        "class_names": [f"species {label}" for label in range(classes)],
        "train_counts": counts,
        "preprocessing": default_preprocessing("cifar:resnet20").to_dict(),
        "trained_with": "cross_entropy",
        **record,
    }
    torch.save({"ltdeploy": header, "state_dict": module.state_dict()}, path)
    return path
