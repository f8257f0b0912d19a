"""The report of a benchmark: as HTML, and in a real browser."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_samples import accuracy, contestant, result
from report_pages import HOSTILE_NAMES, Document, Opener

from ltdeploy.bench import render_report


def page_of(shown: Any = None, title: str = "moths.ltd") -> str:
    return render_report((shown or result()).to_dict(), title=title)


def test_holds_its_data_and_every_figure() -> None:
    shown = result()
    document = Document(page_of(shown))
    assert document.json("result-data") == json.loads(json.dumps(shown.to_dict()))
    rows = re.findall(r"<tr><th scope=\"row\">(.*?)</tr>", page_of(shown), re.DOTALL)
    assert len(rows) == 5 + 5 * 4 + 2  # accuracies, speeds, failures
    assert "No <Conv> in bf16." in document.text
    assert "Something <b>was</b> busy." in document.text
    assert "Some CPU <3 GHz>" in document.text


def test_loads_nothing_and_runs_only_its_own_scripts() -> None:
    elements = Document(page_of()).elements
    assert not [a for _, a in elements if (a.get("src") or "").startswith(("http", "//"))]
    policy = next(a["content"] for _, a in elements if a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy


def test_pictures_carry_texts() -> None:
    elements = Document(page_of()).elements
    for tag, attributes in elements:
        if tag == "canvas" or "interval" in (attributes.get("class") or ""):
            assert attributes.get("aria-label"), (tag, attributes)


def test_without_accuracies_there_is_no_picture_of_them() -> None:
    bare = result(contestant(first=True), contestant(engine="openvino"))
    page = page_of(bare)
    assert "<canvas" not in page
    assert 'id="accuracies"' not in page
    assert 'id="speeds"' in page


def test_one_engine_is_compared_with_nothing() -> None:
    page = page_of(result(contestant(first=True, measured=accuracy(31.0, None))))
    assert "× the first</th>" not in page
    assert "Difference<span>" not in page
    assert page.count("<canvas") == 1


def test_an_interrupted_run_says_so() -> None:
    assert "Interrupted: what was measured until then" in page_of(result(interrupted=True))
    assert "Interrupted" not in page_of()


def hostile() -> Any:
    names = HOSTILE_NAMES
    made = [
        replace(
            contestant(first=place == 0, measured=accuracy(30.0, 0.0 if place else None)),
            model=name,
            bundle=name,
        )
        for place, name in enumerate(names)
    ]
    return result(*made, contestant(engine=names[0], failure=names[1]))


@pytest.mark.browser
def test_opens_without_complaint_and_hostile_names_do_nothing(open_report: Opener) -> None:
    page = open_report(page_of(hostile(), title=HOSTILE_NAMES[2]), wait=False)
    assert page.evaluate("window.hacked") is None
    assert page.complaints == []
    assert page.title() == HOSTILE_NAMES[2]
    assert HOSTILE_NAMES[0] in page.get_attribute("#picture", "aria-label")


@pytest.mark.browser
def test_the_picture_is_drawn_described_and_follows_choices(open_report: Opener) -> None:
    page = open_report(page_of(), wait=False)
    painted = page.evaluate(
        """() => { const canvas = document.getElementById("picture");
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let n = 0; for (let i = 3; i < data.length; i += 4) n += data[i] > 0; return n; }"""
    )
    assert painted > 5000
    told = page.get_attribute("#picture", "aria-label")
    assert told.startswith("Speed against accuracy at batch 8, 2 threads.")
    assert told.count("images/s") == 5
    assert "int8 · openvino-cpu" in told
    pictures = {page.evaluate("document.getElementById('picture').toDataURL()")}
    page.select_option("#picture-cell", "1,1")
    assert "at batch 1, 1 thread." in page.get_attribute("#picture", "aria-label")
    pictures.add(page.evaluate("document.getElementById('picture').toDataURL()"))
    page.select_option("#picture-group", "many")
    assert "many: 60.0" in page.get_attribute("#picture", "aria-label")
    pictures.add(page.evaluate("document.getElementById('picture').toDataURL()"))
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(100)
    pictures.add(page.evaluate("document.getElementById('picture').toDataURL()"))
    assert len(pictures) == 4
    # A group without images cannot be chosen.
    assert page.locator("#picture-group option").all_text_contents() == ["many", "few", "balanced"]
    assert page.complaints == []


@pytest.mark.browser
def test_sorts_and_saves(open_report: Opener) -> None:
    shown = result()
    page = open_report(page_of(shown), wait=False)
    column = page.locator("table.sortable tbody tr td:nth-child(6) b")
    page.click("table.sortable th:nth-child(6) button")
    figures = [float(text.replace(",", "")) for text in column.all_text_contents()]
    assert figures == sorted(figures, reverse=True)
    saved = {}
    for what in ("result", "speeds"):
        with page.expect_download() as download:
            page.click(f"a[data-download={what}]")
        saved[what] = Path(download.value.path()).read_text(encoding="utf-8")
    assert json.loads(saved["result"]) == json.loads(json.dumps(shown.to_dict()))
    rows = list(csv.DictReader(io.StringIO(saved["speeds"], newline="")))
    assert len(rows) == 20
    speed = shown.contestants[1].speeds[0]
    assert speed.ratio is not None
    row = rows[4]
    assert (row["engine"], row["batch"], row["threads"]) == ("openvino", "1", "1")
    assert float(row["p50_ms"]) == speed.p50_ms.value
    assert float(row["ratio_high"]) == speed.ratio.high
    assert page.complaints == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_has_no_sideways_scroll(open_report: Opener, scheme: str) -> None:
    page = open_report(page_of(hostile()), width=360, scheme=scheme, wait=False)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    paper, ink = page.evaluate(
        """["backgroundColor", "color"].map((key) => getComputedStyle(document.body)[key]
          .match(/\\d+/g).slice(0, 3).reduce((sum, part) => sum + Number(part), 0))"""
    )
    assert (paper > ink) == (scheme == "light")
    assert page.complaints == []


@pytest.mark.browser
def test_reads_without_javascript(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "plain.html"
    path.write_text(page_of(), encoding="utf-8")
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("noscript p").first.is_visible()
    assert page.locator("table.plain tbody tr").count() == 27
    context.close()
