"""The report of a verification: one HTML file that needs no network, server or second file."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from html import escape
from importlib import resources
from typing import Any

from .. import __version__
from ..metrics.calibration import Reliability
from . import report_sections as sections
from .report_details import ReportDetails

__all__ = ["render_report"]

_SCRIPTS = ("chart.umd.min.js", "tabulator.min.js", "report.js", "verify.js")
_STYLES = ("tabulator_simple.min.css", "report.css")


def render_report(
    result: Mapping[str, Any],
    details: ReportDetails | None = None,
    *,
    title: str,
    sentence: str,
    kind: str = "verification",
) -> str:
    """Return the report as one HTML document.

    Parameters
    ----------
    result : the machine-readable result of ``verify`` or ``compare``; it is embedded as it is,
        with figures that are not finite as null.
    details : reliability diagrams, flipped images, provenance; what is absent is left out.
    title : the heading, ``"cifar100.ltd"``.
    sentence : the verdict in words, shown as it is.
    kind : what sort of report it is, shown above the title.
    """
    details = details or ReportDetails()
    result = _plain(dict(result))
    groups = list(result["groups"])
    view = {
        "groups": groups,
        "names": dict(details.names),
        "crowded": sections.is_crowded(result),
        "reliability": {
            group: {model: _diagram(value) for model, value in models.items()}
            for group, models in details.reliability.items()
        },
    }
    body = [
        sections.verdict(result, sentence),
        sections.group_table(result, details.names),
        sections.scatter(result, details.names),
        sections.reliability(groups, details),
        sections.class_table(),
        sections.flips(result, groups, details),
        sections.provenance(details.provenance),
    ]
    scripts = [_asset(name) for name in _SCRIPTS]
    hashes = " ".join(f"'sha256-{_sha256_base64(text)}'" for text in scripts)
    return _fill(
        _asset("report.html"),
        {
            # Only the scripts of this package run: text that slips in from data cannot.
            "csp": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
            f"script-src {hashes}; base-uri 'none'; form-action 'none'",
            "title": escape(title),
            "kind": escape(kind),
            "version": escape(__version__),
            "styles": "\n".join(_asset(name) for name in _STYLES),
            "downloads": sections.downloads(details),
            "body": "\n".join(body),
            "licences": escape(_asset("LICENSES.txt")),
            "result": _json_for_html(result),
            "view": _json_for_html(_plain(view)),
            "scripts": "\n".join(f"<script>{text}</script>" for text in scripts),
        },
    )


def _diagram(diagram: Reliability) -> dict[str, Any]:
    """Return a reliability diagram as the scripts read it and as the reader may save it."""
    rows = zip(diagram.confidence, diagram.accuracy, diagram.counts, strict=True)
    bins = [{"confidence": c, "accuracy": a, "count": n} for c, a, n in rows]
    return {"bins": bins, "ece": diagram.error}


def _asset(name: str) -> str:
    """Return a file of ``assets/`` as text that can stand inside a style or script element."""
    text = (resources.files(__package__) / "assets" / name).read_text(encoding="utf-8")
    if name.endswith(".js"):
        # The maps are not shipped, and an end tag inside a string would end the element.
        text = re.sub(r"^//# sourceMappingURL=.*$", "", text, flags=re.MULTILINE)
        text = text.replace("</script", r"<\/script")
    elif name.endswith(".css"):
        text = re.sub(r"/\*# sourceMappingURL=.*?\*/", "", text)
    return text.strip()


def _sha256_base64(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Put values into ``{{name}}`` places in one pass, so that no value is read as a template."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _plain(value: Any) -> Any:
    """Return ``value`` as JSON knows it: NumPy scalars as numbers, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_for_html(value: Any) -> str:
    """Return JSON in which no ``<`` stands, so that ``</script>`` in a class name ends nothing."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
