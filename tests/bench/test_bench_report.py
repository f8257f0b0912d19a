"""The report of a benchmark: as HTML, and in a real browser."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import astuple, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from bench_samples import accuracy, contestant, result
from report_pages import HOSTILE_NAMES, Document, Opener

from ltdeploy.bench import BenchResult, render_report
from ltdeploy.bench.clipped import ClippedScale
from ltdeploy.bench.speed import Spread
from ltdeploy.cli.output import Output


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


def test_minus_signs_are_true_ones(capsys: pytest.CaptureFixture[str]) -> None:
    import_module("ltdeploy.cli.bench")._show_accuracies(Output(), result())
    said = capsys.readouterr().out
    assert "29.1 (−1.90)" in said
    assert "−2.30 … −1.50" in said
    assert "-" not in said.replace("onnxruntime-cpu", "").replace("openvino-cpu", "")


def shaken() -> BenchResult:
    """Return figures that need room, and one whose range goes over all others."""
    made = []
    for one in result().contestants:
        speeds = [
            replace(
                speed,
                peak_bytes=12_345 << 20,
                load_s=123.4,
                p50_ms=Spread(*(30 * value for value in astuple(speed.p50_ms))),
                images_per_s=Spread(*(10 * value for value in astuple(speed.images_per_s))),
            )
            for speed in one.speeds
        ]
        if one.engine == "openvino" and one.precision == "fp32":
            wild = {"ratio": Spread(1.38, 0.29, 16.29), "images_per_s": Spread(3000, 900, 99_000)}
            speeds[-1] = replace(speeds[-1], **wild)
        made.append(replace(one, speeds=tuple(speeds)))
    return result(*made)


def test_one_wide_interval_does_not_stretch_the_scale() -> None:
    spreads = [{"value": 2.0 + n, "low": 1.5 + n, "high": 2.5 + n} for n in range(3)]
    wide = [*spreads, {"value": 1.4, "low": -30.0, "high": 99.0}]
    scale = ClippedScale(wide, line=(1.0, "the first"))
    assert (scale.low, scale.high) == (-2.0, 7.0)
    cut = scale.plot(1.4, -30.0, 99.0, label="wide")
    assert cut.count('class="dot" d="M') == 2
    assert f"M{scale.x(-2.0)} 15H{scale.x(7.0)}" in cut
    assert 'class="dot" d="M' not in scale.plot(2.0, 1.5, 2.5, label="narrow")
    whole = ClippedScale(spreads, line=(1.0, "the first"))
    assert (whole.low, whole.high) == (1.0, 4.5)
    assert ClippedScale([], line=(1.0, "the first")).plot(None, None, None, label="none")
    assert page_of(shaken()).count('class="dot" d="M') == 1


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
    page.wait_for_function(
        "seen => !seen.includes(document.getElementById('picture').toDataURL())",
        arg=list(pictures),
    )
    pictures.add(page.evaluate("document.getElementById('picture').toDataURL()"))
    assert len(pictures) == 4
    # A group without images cannot be chosen.
    assert page.locator("#picture-group option").all_text_contents() == ["many", "few", "balanced"]
    assert page.complaints == []


@pytest.mark.browser
def test_nothing_is_cut_on_a_small_screen(open_report: Opener) -> None:
    page = open_report(page_of(shaken()), width=1100, wait=False)
    cut = "[...document.querySelectorAll('.scroll')].map((e) => e.scrollWidth - e.clientWidth)"
    assert page.evaluate(cut) == [0, 0, 0]


@pytest.mark.browser
def test_one_wide_range_does_not_stretch_the_picture(open_report: Opener) -> None:
    page = open_report(page_of(shaken()), wait=False)
    most = page.evaluate("Chart.getChart('picture').scales.x.max")
    assert 4122 < most < 2 * 4122
    calm = open_report(page_of(), wait=False)
    fastest = result().contestants[5].speed_at(8, 2)
    assert fastest is not None
    shown = calm.evaluate("Chart.getChart('picture').scales.x.max")
    assert shown == pytest.approx(1.06 * fastest.images_per_s.high)


@pytest.mark.browser
def test_sorts_and_saves(open_report: Opener) -> None:
    shown = result()
    page = open_report(page_of(shown), wait=False)
    column = page.locator("table.sortable tbody tr td:nth-child(5) b")
    page.click("table.sortable th:nth-child(5) button")
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
