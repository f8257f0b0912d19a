"""Make the pictures of README and docs from a real quickstart.

    python docs/pictures.py quickstart

Needs the ``dev`` extra and the chromium browser. Reads ``species.png`` and ``report.html`` of the
quickstart's folder and writes ``docs/images/``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

IMAGES = Path(__file__).resolve().parent / "images"
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
WIDTH_PX = 1100


def main() -> None:
    """Write species.png, effect.png and report.png."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "quickstart")
    IMAGES.mkdir(exist_ok=True)
    sheet = Image.open(folder / "species.png").convert("RGB")
    sheet.resize((1008, round(1008 * sheet.height / sheet.width))).save(
        IMAGES / "species.jpg", quality=85
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or "chromium", args=BROWSER
        )
        page = browser.new_page(viewport={"width": WIDTH_PX, "height": 1000})
        page.goto((folder / "report.html").resolve().as_uri())
        page.wait_for_timeout(1500)  # the charts' entrance
        page.screenshot(path=IMAGES / "report.png")
        page.locator("section[aria-labelledby=by-count] .chart").screenshot(
            path=IMAGES / "effect.png"
        )
        browser.close()


if __name__ == "__main__":
    main()
