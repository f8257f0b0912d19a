"""The report of a detector's choice in a real browser: opened from disk, without a network."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from box_calibration_samples import HOSTILE_METHOD, calibration_of
from report_pages import HOSTILE_NAMES, Opener

from ltdeploy.calibrate.boxes import render_box_report

pytestmark = pytest.mark.browser

METHODS = "section[aria-labelledby=methods]"


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    return calibration_of()


@pytest.fixture(scope="module")
def html(result: dict[str, Any]) -> str:
    return render_box_report(result, title=HOSTILE_NAMES[2])


def cells_of(page: Any, field: str) -> list[str]:
    cells = f".tabulator-row .tabulator-cell[tabulator-field={field}]"
    return [text.strip() for text in page.locator(cells).all_text_contents()]


def test_opens_without_complaint_and_hostile_names_do_nothing(
    open_report: Opener, html: str
) -> None:
    page = open_report(html)
    assert page.evaluate("window.hacked") is None
    assert page.complaints == []
    assert page.title() == HOSTILE_NAMES[2]
    assert page.text_content("#verdict") == HOSTILE_NAMES[1]


@pytest.mark.parametrize("classes", [6, 60, 1203])
def test_shifts_are_drawn_and_described(open_report: Opener, classes: int) -> None:
    page = open_report(render_box_report(calibration_of(classes), title="t"))
    drawn = page.evaluate(
        """() => { const chart = Chart.getChart("shift-chart"), { x, y } = chart.scales;
          return { points: chart.data.datasets.flatMap((d) => d.data.map((p) => [p.x, p.y])),
            type: x.type, ticks: x.ticks.filter((t) => t.label).length,
            inside: chart.data.datasets.every((d) => d.data.every((p) =>
              p.x >= x.min && p.x <= x.max && p.y >= y.min && p.y <= y.max)) }; }"""
    )
    assert len(drawn["points"]) == classes
    assert drawn["type"] == "logarithmic"
    assert drawn["ticks"] >= 4
    assert drawn["inside"]
    words = page.get_attribute("#shift-chart", "aria-label")
    assert ("thing" in words or "hacked" in words) == (classes <= 12)
    assert page.complaints == []


def test_a_class_never_seen_in_training_is_drawn(open_report: Opener) -> None:
    result = calibration_of()
    result["classes"][-1]["train_count"] = 0
    page = open_report(render_box_report(result, title="t"))
    assert (
        page.evaluate(
            "Math.min(...Chart.getChart('shift-chart').data.datasets[2].data.map((p) => p.x))"
        )
        == 0.5
    )
    assert page.complaints == []


def test_methods_sort_with_no_figure_last(open_report: Opener, html: str) -> None:
    page = open_report(html)
    names = page.locator(f"{METHODS} tbody th")
    page.click(f"{METHODS} th:has-text('Gain') button")
    found = [text.split("\n")[0] for text in names.all_inner_texts()]
    assert [found[0], found[-1]] == ["logn", "none"]
    page.click(f"{METHODS} th:has-text('Learns') button")
    assert names.first.inner_text().startswith("none")
    page.click(f"{METHODS} th:has-text('Method') button")
    assert names.first.inner_text().replace("\n", "").startswith(HOSTILE_METHOD[:4])


def test_class_table_begins_with_losses_sorts_and_filters(
    open_report: Opener, html: str, result: dict[str, Any]
) -> None:
    page = open_report(html)
    worse = sum(one["after"] < one["before"] for one in result["classes"] if one["objects"])
    assert cells_of(page, "change")[0] == "−2.0"
    page.click("#only-worse")
    page.get_by_text(f"{worse} of 60 classes shown").wait_for()
    page.click("#clear-filters")
    page.click("#only-rare")
    assert set(cells_of(page, "group")) == {"rare"}
    page.click("#clear-filters")
    page.locator(".tabulator-col[tabulator-field=shift]").click(position={"x": 20, "y": 8})
    assert cells_of(page, "shift")[0] == "+2.76"
    page.fill("input[aria-label='Filter by Class']", "thing 7")
    page.get_by_text("1 of 60 classes shown").wait_for()
    assert cells_of(page, "after") == ["–"]


def test_without_a_fix_the_classes_stand_alone(open_report: Opener) -> None:
    page = open_report(render_box_report(calibration_of(chosen="none"), title="t"))
    assert page.complaints == []
    assert page.locator("canvas").count() == 0
    assert page.locator("#only-worse").count() == 0
    heads = page.locator(".tabulator-col-title").all_text_contents()
    assert heads[-2:] == ["AP", "AP50"]


def test_a_factor_of_each_class_has_its_column(open_report: Opener) -> None:
    result = calibration_of()
    for one in result["classes"]:
        one["scale"] = 0.5
    page = open_report(render_box_report(result, title="t"))
    assert "0.50" in cells_of(page, "scale")


def test_saves_every_table(open_report: Opener, html: str, result: dict[str, Any]) -> None:
    page = open_report(html)
    names = page.eval_on_selector_all("a[data-download]", "l => l.map(a => a.dataset.download)")
    saved = {}
    for name in names:
        with page.expect_download() as download:
            page.click(f"a[data-download={name}]")
        saved[name] = Path(download.value.path()).read_text(encoding="utf-8")
    assert json.loads(saved.pop("result")) == json.loads(json.dumps(result))
    rows = {
        name: list(csv.DictReader(io.StringIO(text, newline=""))) for name, text in saved.items()
    }
    assert {name: len(found) for name, found in rows.items()} == {
        "methods": 5,
        "classes": 60,
        "skipped": 1,
    }
    assert [row["name"] for row in rows["methods"]] == [m["name"] for m in result["methods"]]
    norcal = rows["methods"][2]
    assert (float(norcal["gain_low"]), float(norcal["ap_rare"])) == pytest.approx((1.8, 17.1))
    assert float(rows["classes"][3]["shift"]) == result["classes"][3]["shift"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_follows_the_colour_scheme(open_report: Opener, html: str, scheme: str) -> None:
    page = open_report(html, scheme=scheme)
    for selector in ("body", ".tabulator-row", "table.pinned th"):
        paper, ink = page.evaluate(
            """selector => ["backgroundColor", "color"].map((key) => getComputedStyle(
              document.querySelector(selector))[key].match(/\\d+/g).slice(0, 3)
              .reduce((sum, part) => sum + Number(part), 0))""",
            selector,
        )
        assert (paper > ink) == (scheme == "light"), selector
    before = page.evaluate("document.getElementById('shift-chart').toDataURL()")
    page.emulate_media(color_scheme="dark" if scheme == "light" else "light")
    page.wait_for_function(  # fails after half a minute
        "before => document.getElementById('shift-chart').toDataURL() !== before", arg=before
    )


@pytest.mark.parametrize("width", [360, 768, 1280])
def test_page_has_no_sideways_scroll(open_report: Opener, html: str, width: int) -> None:
    page = open_report(html, width=width)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    assert page.complaints == []


@pytest.mark.parametrize("width", [360, 390])
@pytest.mark.parametrize("limit", [None, 1.0])
def test_choice_is_read_on_a_phone_without_scrolling(
    open_report: Opener, width: int, limit: float | None
) -> None:
    result = calibration_of()
    result["max_head_loss"] = limit
    for method in result["methods"]:
        method["status"] = method["status"].replace("too costly for the head", "behind")
        if limit is None:
            del method["figures"]["groups"]["common"], method["figures"]["groups"]["rare"]
    page = open_report(render_box_report(result, title="t"), width=width)
    outside = page.evaluate(
        """section => [...document.querySelectorAll(`${section} :is(th, td, small, svg.interval)`)]
          .filter((cell) => { const range = document.createRange(); range.selectNodeContents(cell);
            return range.getBoundingClientRect().right > innerWidth - 18; })
          .map((cell) => cell.textContent)""",
        METHODS,
    )
    assert outside == []


def test_prints_tables_and_classes(open_report: Opener, html: str) -> None:
    page = open_report(html, scheme="dark")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print")
    assert page.locator(".print-table tbody tr").count() == 60
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.complaints == []


def test_reads_without_javascript(browser: Any, html: str, tmp_path: Path) -> None:
    path = tmp_path / "plain.html"
    path.write_text(html, encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("noscript p").first.is_visible()
    assert page.locator(f"{METHODS} tbody tr").count() == 5
    context.close()
