"""A small random Mask R-CNN, and drawn photographs whose boxes have outlines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from box_samples import CANVAS, NAMES, write_boxes

from ltdeploy.models.detectors.architectures import build_detector

__all__ = ["MASK_ARCH", "lively_mask_rcnn", "write_mask_rcnn", "write_outlines"]

MASK_ARCH = "torchvision:maskrcnn_mobilenet_v3_small_320_fpn"


def lively_mask_rcnn(seed: int = 0) -> Any:
    """Return a Mask R-CNN whose random weights find boxes and masks that differ."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module: Any = build_detector(MASK_ARCH, len(NAMES), CANVAS)
        for layer in module.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.5, 1.5)
        roi = module.roi_heads
        for layer in (module.rpn.head.cls_logits, roi.box_predictor.cls_score):
            torch.nn.init.normal_(layer.weight, std=0.2)
        torch.nn.init.normal_(module.rpn.head.bbox_pred.weight, std=0.02)
        torch.nn.init.normal_(roi.mask_predictor.mask_fcn_logits.weight, std=0.5)
        torch.nn.init.normal_(roi.mask_predictor.mask_fcn_logits.bias, std=0.5)
    return module.eval()


def write_mask_rcnn(path: Path, seed: int = 0) -> Path:
    """Write a checkpoint in ltdeploy's layout."""
    told = {
        "schema": 1,
        "task": "detection",
        "arch": MASK_ARCH,
        "class_names": list(NAMES),
        "train_counts": [300, 150, 8],
        "canvas": CANVAS.to_dict(),
        "trained_with": "cross_entropy",
    }
    torch.save({"ltdeploy": told, "state_dict": lively_mask_rcnn(seed).state_dict()}, path)
    return path


def write_outlines(folder: Path, seed: int = 0) -> Path:
    """Write photographs with boxes as `write_boxes` does, each with the polygon of its box."""
    path = write_boxes(folder, seed=seed)
    content = json.loads(path.read_text())
    for one in content["annotations"]:
        x, y, width, height = one["bbox"]
        right, low = x + width, y + height
        one["segmentation"] = [[x, y, right, y, right, low, x, low]]
    path.write_text(json.dumps(content))
    return path
