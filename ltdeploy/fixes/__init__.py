"""Post-hoc fixes: maps of the logits that lift the tail after training; see docs/fixes.md."""

from .affine import AffineMap
from .base import BALANCED_LOSSES, Fix, FixContext
from .chain import context_after, fit_chain
from .columns import foreground_columns
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
from .group_odds import GroupOdds, fit_group_odds
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
from .logn import LogN
from .maps import Blend, Chain, LogSoftmax, NewHead, compose, steps_of
from .matrix import Dirichlet, MatrixScaling
from .multipliers import GroupBoost, ScoreMultiplier
from .nearest_class_mean import NearestClassMean
from .norcal import NorCal, effective_number
from .objective_search import Searched, Trial, choose_strength_by
from .odds import Odds
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
    "GroupOdds",
    "LabelShift",
    "LearnableWeightScaling",
    "LogN",
    "LogSoftmax",
    "LogitAdjustment",
    "LogitMap",
    "MappedLogits",
    "MatrixScaling",
    "Member",
    "MethodEntry",
    "NearestClassMean",
    "NewHead",
    "NorCal",
    "Odds",
    "Platt",
    "ScoreMultiplier",
    "Searched",
    "TargetPrior",
    "TauNorm",
    "Temperature",
    "TemperatureFit",
    "Trial",
    "VectorScaling",
    "choose_strength",
    "choose_strength_by",
    "combine",
    "compose",
    "context_after",
    "decode",
    "effective_number",
    "encode",
    "estimate_prior_em",
    "find_temperature",
    "fit_chain",
    "fit_ensemble",
    "fit_fixes",
    "fit_group_odds",
    "fit_per_fold",
    "fit_temperature",
    "foreground_columns",
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
