"""Post-hoc fixes: maps of the logits that lift the tail after training; see docs/fixes.md."""

from .affine import AffineMap
from .base import BALANCED_LOSSES, Fix, FixContext
from .chain import context_after, fit_chain
from .disalign import DisAlign
from .encoding import MethodEntry, decode, encode
from .ensemble import Ensemble, Member, combine, fit_ensemble
from .fix_file import (
    CheckpointEntry,
    FixFile,
    FixSelection,
    parse_fix,
    read_fix_file,
    write_fix_file,
)
from .held_out import (
    MappedLogits,
    fit_per_fold,
    mapped_blocks,
    part_of,
    stratified_folds,
    top1_per_fold,
)
from .label_shift import LabelShift
from .logit_adjustment import LogitAdjustment
from .logit_map import LogitMap
from .maps import Blend, Chain, LogSoftmax, NewHead, compose, steps_of
from .matrix import Dirichlet, MatrixScaling
from .multipliers import GroupBoost, ScoreMultiplier
from .nearest_class_mean import NearestClassMean
from .platt import Platt
from .retraining import ClassifierRetraining
from .scaling import BiasCorrectedTemperature, LearnableWeightScaling, VectorScaling
from .selection import Choice, FittedFix, choose_strength, fit_fixes
from .shift_em import estimate_prior_em
from .spec import FIXES, FixSpec, parse_spec
from .sweep import sweep_maps
from .target_prior import TargetPrior
from .tau_norm import TauNorm
from .temperature import Temperature, TemperatureFit, find_temperature, fit_temperature

__all__ = [
    "BALANCED_LOSSES",
    "FIXES",
    "AffineMap",
    "BiasCorrectedTemperature",
    "Blend",
    "Chain",
    "CheckpointEntry",
    "Choice",
    "ClassifierRetraining",
    "Dirichlet",
    "DisAlign",
    "Ensemble",
    "FittedFix",
    "Fix",
    "FixContext",
    "FixFile",
    "FixSelection",
    "FixSpec",
    "GroupBoost",
    "LabelShift",
    "LearnableWeightScaling",
    "LogSoftmax",
    "LogitAdjustment",
    "LogitMap",
    "MappedLogits",
    "MatrixScaling",
    "Member",
    "MethodEntry",
    "NearestClassMean",
    "NewHead",
    "Platt",
    "ScoreMultiplier",
    "TargetPrior",
    "TauNorm",
    "Temperature",
    "TemperatureFit",
    "VectorScaling",
    "choose_strength",
    "combine",
    "compose",
    "context_after",
    "decode",
    "encode",
    "estimate_prior_em",
    "find_temperature",
    "fit_chain",
    "fit_ensemble",
    "fit_fixes",
    "fit_per_fold",
    "fit_temperature",
    "mapped_blocks",
    "parse_fix",
    "parse_spec",
    "part_of",
    "read_fix_file",
    "steps_of",
    "stratified_folds",
    "sweep_maps",
    "top1_per_fold",
    "write_fix_file",
]
