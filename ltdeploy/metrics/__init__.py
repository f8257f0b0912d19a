"""Figures of one model on labelled images: accuracies per class and group, and calibration."""

from .accuracy import GroupAccuracy, average_accuracy, per_class_accuracy
from .calibration import Reliability, reliability, top1_of_logits

__all__ = [
    "GroupAccuracy",
    "Reliability",
    "average_accuracy",
    "per_class_accuracy",
    "reliability",
    "top1_of_logits",
]
