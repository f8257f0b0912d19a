"""A small detector and photographs with boxes, for tests of several rooms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

from ltdeploy.canvas import Canvas
from ltdeploy.models.detectors.architectures import build_detector

ARCH = "torchvision:fasterrcnn_mobilenet_v3_large_320_fpn"
CANVAS = Canvas(96, 128)
NAMES = ("disc", "bar", "ring")
COLOURS = ((220, 60, 50), (60, 160, 70), (70, 90, 220))


def write_boxes(folder: Path, images: int = 12, seed: int = 0) -> Path:
    """Write photographs of coloured boxes and their COCO json; the last class is rare."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": 10 * label + 7, "name": name} for label, name in enumerate(NAMES)],
    }
    for number in range(images):
        noise = rng.integers(100, 140, (120, 160, 3)).astype(np.uint8)
        picture = Image.fromarray(noise)
        draw = ImageDraw.Draw(picture)
        labels = [0, 0, 1] if number % 4 else [0, 2]
        for label in labels:
            width, height = (int(side) for side in rng.integers(24, 60, 2))
            x, y = int(rng.integers(0, 160 - width)), int(rng.integers(0, 120 - height))
            draw.rectangle((x, y, x + width, y + height), COLOURS[label])
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number + 1,
                    "category_id": 10 * label + 7,
                    "bbox": [x, y, width, height],
                    "area": width * height,
                    "iscrowd": 0,
                }
            )
        name = f"{seed}-{number}.png"
        picture.save(folder / "images" / name)
        content["images"].append({"id": number + 1, "file_name": name, "width": 160, "height": 120})
    path = folder / f"boxes-{seed}.json"
    path.write_text(json.dumps(content))
    return path


def lively_detector(seed: int = 0) -> Any:
    """Return a detector whose random weights find boxes of all classes, with scores that differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = build_detector(ARCH, len(NAMES), CANVAS)
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
        for layer in (module.rpn.head.cls_logits, module.roi_heads.box_predictor.cls_score):
            torch.nn.init.normal_(layer.weight, std=0.2)
        torch.nn.init.normal_(module.rpn.head.bbox_pred.weight, std=0.02)
    return module.eval()


def write_detector(path: Path, seed: int = 0) -> Path:
    """Write a checkpoint in ltdeploy's layout."""
    told = {
        "schema": 1,
        "task": "detection",
        "arch": ARCH,
        "class_names": list(NAMES),
        "train_counts": [300, 150, 8],
        "canvas": CANVAS.to_dict(),
        "trained_with": "cross_entropy",
    }
    torch.save({"ltdeploy": told, "state_dict": lively_detector(seed).state_dict()}, path)
    return path
