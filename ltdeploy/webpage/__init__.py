"""Pages that are complete in one HTML file: what every report has around its own sections."""

from __future__ import annotations

from .page import Download, asset, plain, render_page

__all__ = ["Download", "asset", "plain", "render_page"]
