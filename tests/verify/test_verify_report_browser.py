"""The report in a real browser: opened from disk, without a network."""

from __future__ import annotations

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from report_pages import HOSTILE_NAMES, Opener
from report_samples import details_of, result_of

from ltdeploy.verify.report import render_report

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return result_of(worse=(97, 98), without_images=(40,))


@pytest.fixture(scope="module")
def html(result: dict[str, Any]) -> str:
    return render_report(
        result, details_of(result), title=HOSTILE_NAMES[2], sentence=HOSTILE_NAMES[1]
    )


def column(page: Any, field: str) -> list[str]:
    cells = page.locator(f".tabulator-row .tabulator-cell[tabulator-field={field}]")
    return [text.strip() for text in cells.all_text_contents()]


def sort(page: Any, field: str) -> None:
    page.click(f".tabulator-col[tabulator-field={field}] .tabulator-col-title")


def test_opens_without_complaint_and_hostile_names_do_nothing(
    open_report: Opener, html: str
) -> None:
    page = open_report(html)
    assert page.evaluate("window.hacked") is None
    assert page.complaints == []
    assert page.title() == HOSTILE_NAMES[2]
    assert page.text_content("#verdict") == HOSTILE_NAMES[1]
    page.fill("input[aria-label='Filter by Class']", "script>")
    page.get_by_text("2 of 100 classes shown").wait_for()
    assert sorted(column(page, "name")) == sorted(HOSTILE_NAMES[:2])
    assert page.evaluate("window.hacked") is None


def test_policy_stops_a_script_and_an_address_that_slipped_in(
    open_report: Opener, html: str
) -> None:
    slipped = "<main><script>window.hacked = 1</script><img src='http://127.0.0.1:9/spy.png'>"
    page = open_report(html.replace("<main", slipped + "<main", 1))
    assert page.evaluate("window.hacked") is None
    assert len([text for text in page.complaints if "Content Security Policy" in text]) == 2


def test_charts_are_drawn_and_described(open_report: Opener, html: str) -> None:
    page = open_report(html)
    painted = page.evaluate(
        """() => [...document.querySelectorAll("canvas")].map((canvas) => {
          const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
          let n = 0; for (let i = 3; i < data.length; i += 4) n += data[i] > 0; return n; })"""
    )
    assert len(painted) == 4
    assert min(painted) > 2000
    assert page.locator("canvas:not([aria-label])").count() == 0
    before = page.evaluate("document.getElementById('scatter').toDataURL()")
    page.check("input[name=before][value=reference]")
    assert page.evaluate("document.getElementById('scatter').toDataURL()") != before


def test_sorts_and_keeps_classes_without_images_last(open_report: Opener, html: str) -> None:
    page = open_report(html)
    assert column(page, "regressed")[:3] == ["worse", "worse", ""]
    sort(page, "train_count")
    assert column(page, "train_count")[0] == "500"
    sort(page, "train_count")
    assert column(page, "train_count")[0] == "5"
    for _ in range(2):
        sort(page, "candidate")
        shown = [float(text) for text in column(page, "candidate")]
        assert shown in (sorted(shown), sorted(shown, reverse=True))
        page.evaluate("document.querySelector('.tabulator-tableholder').scrollTop = 1e6")
        page.wait_for_timeout(500)
        assert column(page, "candidate")[-1] == "–"
        page.evaluate("document.querySelector('.tabulator-tableholder').scrollTop = 0")
        page.wait_for_timeout(500)


@pytest.mark.parametrize(
    ("label", "typed", "keep"),
    [
        ("Training images", "<20", lambda c: c["train_count"] < 20),
        ("Training images", ">= 100", lambda c: c["train_count"] >= 100),
        ("Training images", "20-100", lambda c: 20 <= c["train_count"] <= 100),
        ("Test images", "0", lambda c: c["images"] == 0),
        ("Δ", "<0", lambda c: c["images"] and c["candidate"] < c["reference"]),
        ("Training images", "nonsense", lambda c: False),
    ],
)
def test_filters_by_number(
    open_report: Opener, html: str, result: dict[str, Any], label: str, typed: str, keep: Any
) -> None:
    page = open_report(html)
    page.fill(f"input[aria-label^='Filter by {label},']", typed)
    expected = sum(1 for row in result["classes"] if keep(row))
    page.get_by_text(f"{expected} of 100 classes shown", exact=True).wait_for()


def test_filters_by_group_and_verdict(
    open_report: Opener, html: str, result: dict[str, Any]
) -> None:
    page = open_report(html)
    page.click("#only-worse")
    assert sorted(column(page, "name")) == sorted(result["classes"][k]["name"] for k in (97, 98))
    page.click("#clear-filters")
    page.select_option("select[aria-label='Filter by Group']", "medium")
    assert set(column(page, "group")) == {"medium"}
    page.click("#clear-filters")
    assert page.text_content("#class-count") == "100 of 100 classes shown"


def test_sorts_by_keyboard(open_report: Opener, html: str) -> None:
    page = open_report(html)
    page.focus("input[aria-label^='Filter by Training images']")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.getAttribute('tabulator-field')") == "train_count"
    page.keyboard.press("Enter")
    assert column(page, "train_count")[0] == "500"
    page.keyboard.press("Space")
    assert column(page, "train_count")[0] == "5"


def test_saves_json_and_csv(open_report: Opener, html: str, result: dict[str, Any]) -> None:
    page = open_report(html)
    saved = {}
    for what in ("result", "classes"):
        with page.expect_download() as download:
            page.click(f"a[data-download={what}]")
        saved[what] = Path(download.value.path()).read_text(encoding="utf-8")
    assert json.loads(saved["result"]) == json.loads(json.dumps(result))
    rows = list(csv.DictReader(io.StringIO(saved["classes"], newline="")))
    assert [row["name"] for row in rows] == [row["name"] for row in result["classes"]]
    assert rows[40]["candidate"] == ""
    assert page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_follows_the_colour_scheme(open_report: Opener, html: str, scheme: str) -> None:
    page = open_report(html, scheme=scheme)
    # Light text on dark paper, in the table too, which brings colours of its own.
    for selector in ("body", ".tabulator-row", ".tabulator-header"):
        paper, ink = page.evaluate(
            """selector => ["backgroundColor", "color"].map((key) => getComputedStyle(
              document.querySelector(selector))[key].match(/\\d+/g).slice(0, 3)
              .reduce((sum, part) => sum + Number(part), 0))""",
            selector,
        )
        assert (paper > ink) == (scheme == "light"), selector


def test_charts_change_with_the_theme(open_report: Opener, html: str) -> None:
    page = open_report(html)
    light = page.evaluate("document.getElementById('scatter').toDataURL()")
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(  # fails after half a minute
        "light => document.getElementById('scatter').toDataURL() !== light", arg=light
    )


def test_phone_has_no_sideways_scroll(open_report: Opener, html: str) -> None:
    page = open_report(html, width=360)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.complaints == []


def test_prints_every_class_as_sorted(open_report: Opener, html: str) -> None:
    page = open_report(html, scheme="dark")
    sort(page, "train_count")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator(".print-table tbody tr").count() == 100
    assert page.locator(".print-table tbody tr").first.locator("td").nth(2).text_content() == "500"
    assert not page.is_visible("#class-table")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.complaints == []


def test_pictures_carry_texts(open_report: Opener, html: str) -> None:
    page = open_report(html)
    assert page.locator(".flips li").count() == 48
    assert page.locator(".flips img").count() == 47
    assert page.evaluate(
        "[...document.querySelectorAll('.flips img')].every((i) => i.alt && i.naturalWidth === 96)"
    )
    assert page.locator("svg.interval:not([aria-label])").count() == 0


def test_reads_without_javascript(browser: Any, html: str, tmp_path: Path) -> None:
    path = tmp_path / "plain.html"
    path.write_text(html, encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("noscript p").first.is_visible()
    assert page.locator("table.plain tbody tr").count() == 4
    context.close()


def test_result_without_fix_groups_or_flips(open_report: Opener) -> None:
    result = result_of(20)
    for row in result["classes"]:
        row["unfixed"] = row["p_value"] = row["q_value"] = None
    for group in result["groups"]:
        result["groups"][group] = None
    result["overall"]["unfixed"] = None
    page = open_report(render_report(result, title="compare", sentence="As good."))
    assert page.complaints == []
    assert page.locator(".tabulator-col[tabulator-field=unfixed]").count() == 0
    assert page.get_by_text("no class").count() == 3


def test_eight_thousand_classes_open_and_sort_at_once(open_report: Opener) -> None:
    result = result_of(8142, images_per_class=3)
    page = open_report(render_report(result, details_of(result), title="big", sentence="Big."))
    ready_ms = page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd")
    times_ms = page.evaluate(
        """async () => {
          const frame = () => new Promise(
            (done) => requestAnimationFrame(() => requestAnimationFrame(done)));
          const times = {};
          for (const head of document.querySelectorAll(".tabulator-col.tabulator-sortable")) {
            const field = head.getAttribute("tabulator-field");
            times[field] = Infinity;
            // The best of four: other programs share this machine.
            for (let k = 0; k < 4; k += 1) {
              const start = performance.now();
              head.click();
              await frame();
              times[field] = Math.min(times[field], performance.now() - start);
            }
          }
          return times;
        }"""
    )
    print(f"opens in {ready_ms:.0f} ms; sorts in {max(times_ms.values()):.0f} ms ({times_ms})")
    assert ready_ms <= 2000
    assert len(times_ms) == 12
    assert max(times_ms.values()) <= 200
    assert page.locator(".tabulator-row").count() < 100, "only the rows in sight may be in the page"
    assert page.complaints == []
    if folder := os.environ.get("LTDEPLOY_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / "report_8142.png", full_page=True)
