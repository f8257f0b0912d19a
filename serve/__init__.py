"""The serving wing: bundles on the network. It imports no torch."""

from __future__ import annotations

from .settings import ServeSettings

__all__ = ["ServeSettings"]
