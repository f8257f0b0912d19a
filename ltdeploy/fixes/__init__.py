"""Post-hoc fixes: affine maps of the logits that lift the tail after training."""

from .affine import AffineMap
from .base import BALANCED_LOSSES, Fix, FixContext
from .logit_adjustment import LogitAdjustment
from .selection import Choice, FittedFix, choose_strength, fit_fixes
from .spec import FIXES, FixSpec, parse_fix, read_fix_file
from .tau_norm import TauNorm
from .temperature import Temperature, fit_temperature

__all__ = [
    "BALANCED_LOSSES",
    "FIXES",
    "AffineMap",
    "Choice",
    "FittedFix",
    "Fix",
    "FixContext",
    "FixSpec",
    "LogitAdjustment",
    "TauNorm",
    "Temperature",
    "choose_strength",
    "fit_fixes",
    "fit_temperature",
    "parse_fix",
    "read_fix_file",
]
