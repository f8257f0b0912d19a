"""The report of a detector's verification in a real browser: opened from disk, no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from box_report_samples import found, verification_of
from report_pages import HOSTILE_NAMES, Opener

from ltdeploy.verify.boxes.report import render_box_report

pytestmark = pytest.mark.browser

LAYERS = ("truth", "reference", "candidate")


@pytest.fixture(scope="module")
def html() -> str:
    lost = (found((0, 0.9), (8, 0.5)), found((0, 0.8)))
    done = verification_of(
        [lost] * 3, classes=40, truths=[[0, 9]] * 3, unreadable=[("a.jpg", "damaged")]
    )
    return render_box_report(done, HOSTILE_NAMES[2])


def column(page: Any, field: str) -> list[str]:
    cells = page.locator(f".tabulator-row .tabulator-cell[tabulator-field={field}]")
    return [text.strip() for text in cells.all_text_contents()]


def test_opens_without_complaint_and_hostile_names_do_nothing(
    open_report: Opener, html: str
) -> None:
    page = open_report(html)
    assert page.evaluate("window.hacked") is None
    assert page.complaints == []
    assert page.title() == HOSTILE_NAMES[2]
    assert page.evaluate(
        "[...document.querySelectorAll('.photograph img')].every((i) => i.naturalWidth === 64)"
    )


def test_overlay_lies_on_its_photograph(open_report: Opener, html: str) -> None:
    page = open_report(html)
    places = [page.locator(f".photograph {tag}").first.bounding_box() for tag in ("img", "svg")]
    assert places[0] == places[1]
    assert places[0]["width"] / places[0]["height"] == pytest.approx(64 / 48, rel=0.01)


def test_box_under_the_pointer_is_the_smallest_and_tells_its_score(
    open_report: Opener, html: str
) -> None:
    page = open_report(html)
    told = page.evaluate(
        """() => {
          const svg = document.querySelector(".photograph svg");
          svg.scrollIntoView({ behavior: "instant", block: "center" });
          const place = svg.getBoundingClientRect();
          const at = (x, y) => document.elementFromPoint(
            place.left + (x / 64) * place.width, place.top + (y / 48) * place.height);
          return [at(20, 20), at(28, 4)].map((node) => node.querySelector("title").textContent);
        }"""
    )
    assert told[0].endswith("0.50, reference alone")
    assert told[1] == "class 0, truth (a crowd)"


@pytest.mark.parametrize("layer", LAYERS)
def test_switch_hides_one_layer_and_no_other(open_report: Opener, html: str, layer: str) -> None:
    page = open_report(html)
    page.uncheck(f".layers input[value={layer}]")
    for other in LAYERS:
        for style in (f".box.{other}", f".halo.of-{other}", f".target.{other}"):
            shown = page.locator(f".photograph {style}").first.evaluate(
                "node => getComputedStyle(node).display"
            )
            assert (shown == "none") == (other == layer), style
    assert (
        page.evaluate("getComputedStyle(document.querySelector('.layers .box')).display") != "none"
    )


def test_class_table_sorts_and_filters(open_report: Opener, html: str) -> None:
    page = open_report(html)
    drops = [float(text.replace("−", "-")) for text in column(page, "change")]
    assert drops == sorted(drops)
    page.click("#only-worse")
    assert "0.0" not in column(page, "change")
    page.get_by_text("26 of 40 classes shown").wait_for()
    page.click("#clear-filters")
    page.click(".tabulator-col[tabulator-field=train_count] .tabulator-col-title")
    assert column(page, "train_count")[0] == "500"
    assert page.complaints == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_follows_the_colour_scheme(open_report: Opener, html: str, scheme: str) -> None:
    page = open_report(html, scheme=scheme)
    paper, ink = page.evaluate(
        """() => ["backgroundColor", "color"].map((key) => getComputedStyle(document.body)[key]
          .match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0))"""
    )
    assert (paper > ink) == (scheme == "light")


@pytest.mark.parametrize("width", [360, 1280])
def test_page_has_no_sideways_scroll(open_report: Opener, html: str, width: int) -> None:
    page = open_report(html, width=width)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.complaints == []


def test_group_table_fits_on_a_desk(open_report: Opener, html: str) -> None:
    page = open_report(html)
    frame = page.locator(".scroll:has(.box-groups)")
    assert frame.evaluate("node => node.scrollWidth - node.clientWidth") <= 0


def test_prints_classes_and_photographs(open_report: Opener, html: str) -> None:
    page = open_report(html, scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator(".print-table tbody tr").count() == 40
    assert not page.is_visible(".layers input")
    assert page.is_visible(".layers svg >> nth=0")
    page.set_viewport_size({"width": 688, "height": 1000})  # A4 between the margins
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_reads_without_javascript(browser: Any, html: str, tmp_path: Path) -> None:
    path = tmp_path / "plain.html"
    path.write_text(html, encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("table.box-groups tbody tr").count() == 4
    assert page.locator(".photograph").count() == 3
    page.uncheck(".layers input[value=truth]")
    assert page.locator(".photograph .box.truth").first.is_hidden(), "switches need no script"
    context.close()
