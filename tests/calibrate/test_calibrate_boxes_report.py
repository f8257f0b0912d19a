"""The report of a detector's choice is made from the machine-readable result alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from box_calibration_samples import HOSTILE_METHOD, calibration_of
from box_samples import NAMES, write_boxes, write_detector
from report_pages import HOSTILE_NAMES, Document

from ltdeploy.calibrate.boxes import (
    calibrate_boxes,
    evidence_of_detector,
    outputs,
    render_box_report,
)
from ltdeploy.datasets import open_boxes
from ltdeploy.engines.onnx_detector_reference import detector_reference
from ltdeploy.fixes import NorCal
from ltdeploy.models.detectors.detector import load_detector

Cli = Callable[..., tuple[int, str, str]]


def page_of(result: dict[str, Any], title: str = "det.pt") -> Document:
    return Document(render_box_report(result, title=title))


def section_of(result: dict[str, Any], name: str) -> str:
    """Return the HTML of a section, empty where the page has none."""
    html = render_box_report(result, title="det.pt")
    begin = html.find(f'<section aria-labelledby="{name}"')
    return "" if begin < 0 else html[begin : html.index("</section>", begin)]


def test_the_result_is_in_the_page_as_it_is() -> None:
    result = calibration_of()
    assert page_of(result).json("result-data") == json.loads(json.dumps(result))
    result["methods"][1]["gain"]["low"] = float("nan")
    found: Any = page_of(result).json("result-data")
    assert found["methods"][1]["gain"]["low"] is None


def test_hostile_names_are_text() -> None:
    page = page_of(calibration_of(), HOSTILE_NAMES[2])
    assert "img" not in {tag for tag, _ in page.elements}
    assert HOSTILE_NAMES[1] in page.text
    assert HOSTILE_METHOD in page.text
    assert sum("hacked" in text for told, text in page.scripts if "id" not in told) == 0


def test_the_choice_and_its_rivals_are_told() -> None:
    page = page_of(calibration_of())
    for text in (
        "Chosen: norcal",
        "The fix file holds norcal gamma 0.6, beta 1.",
        "20.0 → 23.1 %",
        "AP of rare",
        "14.0 → 17.1 %",
        "folds chose gamma 0.4 to 0.8",
        "factors frequent × 0.25, common × 1, rare × 4",
        "within one standard error of the best; as simple as the chosen one, and lower",
        "behind the best by more than one standard error",
        "may cost frequent 3.2 points, 1.0 are allowed",
        "photographs unreadable",
        "What the fix adds to each class",
        "Kept",
    ):
        assert text in page.text, text


def test_a_richer_rival_learns_more() -> None:
    result = calibration_of()
    result["methods"][1]["freedom"] = 3
    assert "learns 3 numbers, the chosen one 2" in page_of(result).text


def test_no_fix_has_no_picture_of_its_shifts() -> None:
    assert section_of(calibration_of(), "shifts")
    result = calibration_of(chosen="none")
    assert not section_of(result, "shifts")
    text = page_of(result).text
    assert "No fix chosen" in text
    assert "The fix file holds" not in text


def test_one_group_has_no_column_that_repeats_the_gain() -> None:
    result = calibration_of()
    assert "Change of frequent" in section_of(result, "methods")
    result["max_head_loss"] = None
    for method in result["methods"]:
        method["status"] = method["status"].replace("too costly for the head", "behind")
        groups = method["figures"]["groups"]
        method["figures"]["groups"] = {"frequent": groups["frequent"]}
    methods = section_of(result, "methods")
    assert "Change of" not in methods
    assert "Against the best<" in methods
    assert not section_of(result, "precisions")  # many classes in one group: nothing to add


@pytest.mark.parametrize(("classes", "listed"), [(6, True), (60, False)])
def test_few_classes_stand_beside_the_groups(classes: int, listed: bool) -> None:
    result = calibration_of(classes)
    name = escape(result["classes"][0]["name"])
    assert (name in section_of(result, "precisions")) == listed


def test_a_fix_that_multiplies_says_so() -> None:
    result = calibration_of()
    assert "multiplies each logit" not in section_of(result, "shifts")
    result["classes"][3]["scale"] = 0.5
    assert "multiplies each logit" in section_of(result, "shifts")


@pytest.fixture(scope="module")
def folder(module_folder: Path) -> Path:
    folder = module_folder
    write_detector(folder / "det.pt")
    write_boxes(folder, images=8, seed=1)
    return folder


def test_the_command_writes_the_page_and_runs_the_network_once(
    cli: Cli, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = []

    def counted(model: Any) -> Any:
        runs.append("run")
        return detector_reference(model)

    monkeypatch.setattr(outputs, "detector_reference", counted)
    told = ["calibrate", folder / "det.pt", "--val", folder / "boxes-1.json"]
    told += ["--method", "norcal:gamma=0.3", "--json", "result.json"]
    code, said, error = cli(*told)
    assert code == 0, error
    assert "Report   fix.html" in said
    result = json.loads((tmp_path / "result.json").read_text())
    page = Document((tmp_path / "fix.html").read_text(encoding="utf-8"))
    assert page.json("result-data") == result
    assert [one["name"] for one in result["classes"]] == list(NAMES)
    assert (len(runs), (tmp_path / "kept").is_dir()) == (1, True)
    assert cli(*told, "--html", "page.html", "-q")[0] == 0
    assert (tmp_path / "page.html").is_file()
    assert len(runs) == 1
    assert cli(*told, "--no-cache", "-q")[0] == 0
    assert len(runs) == 2
    assert_alike(calibration_of(), result)


def assert_alike(sample: Any, real: Any, path: str = "result") -> None:
    """Raise unless the samples of these tests have the keys that the command writes."""
    if not isinstance(real, dict) or path.endswith((".groups", ".provenance", ".parameters")):
        if isinstance(real, list) and real and sample and isinstance(real[0], dict):
            assert_alike(sample[0], real[0], f"{path}[0]")
        return
    assert set(sample) == set(real), path
    for key, value in real.items():
        assert_alike(sample[key], value, f"{path}.{key}")


def test_the_shift_is_the_maps(folder: Path) -> None:
    model = load_detector(folder / "det.pt")
    evidence = evidence_of_detector(
        model, open_boxes(str(folder / "boxes-1.json")), methods=["norcal"]
    )
    done = calibrate_boxes(evidence, methods=["norcal:gamma=0.3"])
    fitted = NorCal(0.3).fit(evidence.context)
    classes = replace(done, fix=fitted).to_dict()["classes"]
    logits = np.zeros((1, 4), np.float32)
    added = fitted.apply(logits)[0, done.columns]
    assert np.allclose([one["shift"] for one in classes], added)
    assert len(set(added.tolist())) == 3
    assert {one["scale"] for one in classes} == {1.0}
