"""The report of a lowered precision in a real browser."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from precision_report_samples import CHOSEN, SEARCH, hostile, page_of, result_of, single
from report_pages import Opener

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("make", [result_of, single])
def test_the_picture_is_drawn_described_and_follows_the_choice(
    open_report: Opener, make: Callable[[], dict[str, Any]]
) -> None:
    result = make()
    page = open_report(page_of(result), wait=False)
    told = page.get_attribute("#picture", "aria-label")
    assert told.startswith("Speed against the difference of few, margin −1.00 points.")
    assert told.count("× as fast") == len(result["lowering"]["trials"])
    assert told.count("chosen") == 1
    pictures = {page.evaluate("document.getElementById('picture').toDataURL()")}
    page.select_option("#picture-group", "many")
    assert "difference of many" in page.get_attribute("#picture", "aria-label")
    pictures.add(page.evaluate("document.getElementById('picture').toDataURL()"))
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(
        "seen => !seen.includes(document.getElementById('picture').toDataURL())",
        arg=list(pictures),
    )
    pictures.add(page.evaluate("document.getElementById('picture').toDataURL()"))
    assert len(pictures) == 3
    assert page.complaints == []


def test_a_collapse_does_not_hide_the_others(open_report: Opener) -> None:
    result = result_of(((0, -41.0), (1, -3.0), (2, -0.9), (4, -0.3)), 4)
    page = open_report(page_of(result), wait=False)
    scale = page.evaluate("(({ min, max }) => [min, max])(Chart.getChart('picture').scales.y)")
    assert -4 < scale[0] < -3
    assert "few −41.00 points" in page.get_attribute("#picture", "aria-label")
    assert page.complaints == []


def test_saves_its_tables(open_report: Opener) -> None:
    result = result_of()
    page = open_report(page_of(result), wait=False)
    saved = {}
    for name in ("result", "trials", "damage"):
        with page.expect_download() as download:
            page.click(f"a[data-download={name}]")
        saved[name] = Path(download.value.path()).read_text(encoding="utf-8")
    assert json.loads(saved["result"]) == result
    trials = list(csv.DictReader(io.StringIO(saved["trials"], newline="")))
    assert [int(row["layers_restored"]) for row in trials] == [count for count, _ in SEARCH]
    assert float(trials[5]["few_difference"]) == -0.6
    assert trials[5]["chosen"] == "true"
    assert trials[5]["restored"].split(" ") == result["lowering"]["restored"]
    layers = list(csv.DictReader(io.StringIO(saved["damage"], newline="")))
    assert len(layers) == 52
    assert sum(row["restored"] == "true" for row in layers) == CHOSEN


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_page_has_no_sideways_scroll(open_report: Opener, width: int) -> None:
    for result in (result_of(), single()):
        page = open_report(page_of(result), width=width, wait=False)
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


def test_bars_and_their_figures_stay_inside(open_report: Opener) -> None:
    page = open_report(page_of(result_of()), width=360, wait=False)
    outside = page.evaluate(
        """() => [...document.querySelectorAll("dd svg text")].filter((text) => {
          const svg = text.ownerSVGElement.getBoundingClientRect();
          return text.getBoundingClientRect().right > svg.right; }).length"""
    )
    assert outside == 0


def test_trials_sort_by_figures(open_report: Opener) -> None:
    page = open_report(page_of(result_of()), wait=False)
    table = "section[aria-labelledby=trials] table"
    page.click(f"{table} th:has-text('Speed') button")
    counts = page.locator(f"{table} tbody th").all_text_contents()
    assert counts[0] == "none"
    page.click(f"{table} th:has-text('few') button")
    assert page.locator(f"{table} tbody th").first.text_content() == "16 layers"


def test_hostile_names_do_nothing_and_printing_works(open_report: Opener) -> None:
    page = open_report(page_of(hostile()), scheme="dark", wait=False)
    page.select_option("#picture-group", "overall")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.pdf(format="A4").startswith(b"%PDF")
    assert page.evaluate("window.hacked") is None
    assert page.complaints == []
