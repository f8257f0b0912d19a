"""Figures of one model on labelled images: accuracies, calibration, and intervals of both."""

from .accuracy import (
    GroupAccuracy,
    average_accuracy,
    harmonic_mean,
    per_class_accuracy,
)
from .calibration import (
    Reliability,
    classwise_error,
    negative_log_likelihood,
    reliability,
    top1_of_logits,
)
from .figures import Figure, Figures, Rows, WorstClass, figures_of
from .intervals import Bootstrap, wilson_interval

__all__ = [
    "Bootstrap",
    "Figure",
    "Figures",
    "GroupAccuracy",
    "Reliability",
    "Rows",
    "WorstClass",
    "average_accuracy",
    "classwise_error",
    "figures_of",
    "harmonic_mean",
    "negative_log_likelihood",
    "per_class_accuracy",
    "reliability",
    "top1_of_logits",
    "wilson_interval",
]
