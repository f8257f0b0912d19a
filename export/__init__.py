"""The export wing: a model and its fix to a checked, executable bundle."""

from __future__ import annotations

from .bundle_export import Exported, export_bundle
from .checks import Checks
from .precision import PrecisionRequest

__all__ = ["Checks", "Exported", "PrecisionRequest", "export_bundle"]
