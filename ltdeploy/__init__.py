"""ltdeploy ships long-tailed vision models without losing the tail."""

from __future__ import annotations

__version__ = "0.1.0"
