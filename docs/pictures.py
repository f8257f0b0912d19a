"""Make the pictures of README and docs from a real quickstart and a real report of calibrate.

    python docs/pictures.py --quickstart quickstart --calibrate fix.html

Either may be left out. Needs the ``dev`` extra and the chromium browser. Reads ``species.png`` and
``report.html`` of the quickstart's folder and the page that ``ltdeploy calibrate`` wrote; writes
``docs/images/``. The pictures of the fixes are made by ``docs/fix_pictures.py``.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).resolve().parent / "images"
BROWSER = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
WIDTH_PX = 1100


def main() -> None:
    """Write the pictures of what was given."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quickstart", type=Path, metavar="DIR")
    parser.add_argument("--calibrate", type=Path, metavar="HTML")
    given = parser.parse_args()
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium") or "chromium", args=BROWSER
        )
        page = browser.new_page(viewport={"width": WIDTH_PX, "height": 1000})
        if given.quickstart is not None:
            picture_quickstart(page, given.quickstart)
        if given.calibrate is not None:
            picture_calibrate(page, given.calibrate)
        browser.close()


def picture_quickstart(page: Page, folder: Path) -> None:
    """Write species.jpg, effect.png and report.png."""
    sheet = Image.open(folder / "species.png").convert("RGB")
    sheet.resize((1008, round(1008 * sheet.height / sheet.width))).save(
        IMAGES / "species.jpg", quality=85
    )
    open_report(page, folder / "report.html")
    page.screenshot(path=IMAGES / "report.png")
    page.locator("section[aria-labelledby=by-count] .chart").screenshot(path=IMAGES / "effect.png")


def picture_calibrate(page: Page, report: Path) -> None:
    """Write calibrate.png: the top of the report."""
    open_report(page, report)
    path = IMAGES / "calibrate.png"
    page.screenshot(path=path)
    Image.open(path).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(path, optimize=True)


def open_report(page: Page, path: Path) -> None:
    """Show a report and wait until its charts stand still."""
    page.goto(path.resolve().as_uri())
    page.wait_for_timeout(1500)


if __name__ == "__main__":
    main()
