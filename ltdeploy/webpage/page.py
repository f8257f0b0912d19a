"""One HTML file that needs no network, server or second file: shell, policy, data, scripts."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import Any

from .. import __version__

__all__ = ["Download", "asset", "plain", "render_page"]

_SCRIPTS = ("chart.umd.min.js", "tabulator.min.js", "page.js", "charts.js")
_STYLES = ("tabulator_simple.min.css", "page.css")


@dataclass(frozen=True)
class Download:
    """A link that saves figures as a file, made from what the page holds.

    Parameters
    ----------
    name : what a script of the page gave to ``report.offer``; ``"result"`` and ``"classes"`` are
        there without.
    file : name of the file to save, ending in ``.json`` or ``.csv``.
    text : what the link says.
    """

    name: str
    file: str
    text: str


def render_page(
    *,
    title: str,
    kind: str,
    body: Sequence[str],
    data: Mapping[str, Any],
    scripts: Sequence[str] = (),
    downloads: Sequence[Download] = (),
) -> str:
    """Return a page as one HTML document.

    Nothing is loaded from elsewhere, and only the scripts given here run: their hashes stand in
    the page's security policy, so that text which slips in from data cannot.

    Parameters
    ----------
    title : the heading.
    kind : what sort of report it is, shown above the title.
    body : the sections as HTML, with everything that comes from data escaped.
    data : what the scripts read, embedded as JSON in elements ``NAME-data``; ``"result"`` and
        ``"view"`` must be there, the latter with ``"groups"``, the group names in order, and
        perhaps ``"images"``, what kind of images was measured; ``"test"`` without.
    scripts : texts of the page's own scripts, which run after the shared ones, as `asset` reads
        them.
    downloads : the links beneath the heading.
    """
    texts = [*(asset(__package__, name) for name in _SCRIPTS), *scripts]
    hashes = " ".join(f"'sha256-{_sha256_base64(text)}'" for text in texts)
    return _fill(
        asset(__package__, "page.html"),
        {
            "csp": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
            f"script-src {hashes}; base-uri 'none'; form-action 'none'",
            "title": escape(title),
            "kind": escape(kind),
            "version": escape(__version__),
            "styles": "\n".join(asset(__package__, name) for name in _STYLES),
            "downloads": "".join(_link(download) for download in downloads),
            "body": "\n".join(body),
            "licences": escape(asset(__package__, "LICENSES.txt")),
            "data": "\n".join(
                f'<script type="application/json" id="{name}-data">{_json_for_html(plain(value))}'
                "</script>"
                for name, value in data.items()
            ),
            "scripts": "\n".join(f"<script>{text}</script>" for text in texts),
        },
    )


def asset(package: str, name: str) -> str:
    """Return a file of a package's ``assets/`` as text that can stand inside an element."""
    text = (resources.files(package) / "assets" / name).read_text(encoding="utf-8")
    if name.endswith(".js"):
        # The maps are not shipped, and an end tag inside a string would end the element.
        text = re.sub(r"^//# sourceMappingURL=.*$", "", text, flags=re.MULTILINE)
        text = text.replace("</script", r"<\/script")
    elif name.endswith(".css"):
        text = re.sub(r"/\*# sourceMappingURL=.*?\*/", "", text)
    return text.strip()


def plain(value: Any) -> Any:
    """Return ``value`` as JSON knows it: NumPy scalars as numbers, NaN and infinity as None."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _link(download: Download) -> str:
    return (
        f'<a href="#result-data" data-download="{download.name}" download="{download.file}">'
        f"{download.text}</a>"
    )


def _sha256_base64(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _fill(template: str, values: Mapping[str, str]) -> str:
    """Put values into ``{{name}}`` places in one pass, so that no value is read as a template."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _json_for_html(value: Any) -> str:
    """Return JSON in which no ``<`` stands, so that ``</script>`` in a class name ends nothing."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text
