"""The report as a file: its content, escapes, and what it does with absent figures."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from typing import Any

import numpy as np
import pytest
from calibration_samples import HOSTILE_METHOD, calibration_of
from report_pages import HOSTILE_NAMES, Document

from ltdeploy.calibrate.report import render_report
from ltdeploy.calibrate.report_methods import steps


def text_of(result: dict[str, Any]) -> str:
    return re.sub(r"\s+", " ", Document(render_report(result, title="t")).text)


@pytest.fixture(scope="module")
def page() -> str:
    return render_report(calibration_of(), title=HOSTILE_NAMES[0])


def test_result_is_embedded_as_it_is(page: str) -> None:
    assert Document(page).json("result-data") == json.loads(json.dumps(calibration_of()))


def test_hostile_names_make_no_element(page: str) -> None:
    document = Document(page)
    assert len(document.scripts) == 7
    assert not any("hacked" in text for a, text in document.scripts if "type" not in a)
    assert not any(a.get("src") == "x" or "onerror" in a for _, a in document.elements)
    for name in (HOSTILE_NAMES[0], HOSTILE_NAMES[1]):
        assert name in document.text
    assert HOSTILE_METHOD in document.text


def test_unescaped_name_would_be_seen(page: str) -> None:
    spoiled = page.replace("\\u003c", "<").replace("\\u003e", ">")
    runs = [text for a, text in Document(spoiled).scripts if "type" not in a]
    assert any("hacked" in text for text in runs)


def test_every_script_is_allowed_by_hash_and_nothing_is_loaded(page: str) -> None:
    document = Document(page)
    policy = next(a["content"] for tag, a in document.elements if tag == "meta" and "content" in a)
    assert policy is not None
    allowed = re.search(r"script-src ([^;]*)", policy)
    assert allowed is not None
    runs = [text for a, text in document.scripts if "type" not in a]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in runs]
    assert allowed[1].split() == [f"'sha256-{value}'" for value in hashes]
    for tag, attributes in document.elements:
        for name in ("src", "href", "srcset", "action"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:")), (tag, name, address[:80])


def test_same_result_gives_the_same_file(page: str) -> None:
    assert render_report(calibration_of(), title=HOSTILE_NAMES[0]) == page


def test_banner_names_the_choice_and_what_it_does_to_each_group() -> None:
    result = calibration_of()
    text = text_of(result)
    assert "Chosen: tau_norm" in text
    assert "2 warnings" in text
    assert "Applied in this order: tau_norm tau 0.85, bias scale, then temperature t 1.466." in text
    assert "Balanced accuracy28.0 → 30.9 %" in text
    assert "few3.0 → 8.8 %" in text
    assert "many may lose8.0 points" in text
    for warning in result["warnings"]:
        assert warning in text


def test_without_warnings_limit_or_sweeps_nothing_empty_is_left() -> None:
    result = {**calibration_of(), "warnings": [], "max_head_loss": None, "sweeps": []}
    result["skipped"] = []
    page = render_report(result, title="t")
    assert "many may lose</dt><dd>no limit" in page
    for absent in ('class="notes"', 'id="sweep', "Not tried", 'data-download="sweeps"'):
        assert absent not in page
    assert 'id="sweep' in render_report(calibration_of(), title="t")


def test_no_fix_is_not_announced_as_a_fix() -> None:
    result = calibration_of()
    for method in result["methods"]:
        if method["status"] == "chosen":
            method["status"] = "candidate"
    result["methods"][4].update(status="chosen", freedom=0)
    result["chosen"] = {"name": "temperature", "methods": [], "reason": "Nothing reaches more."}
    banner = text_of(result).partition("Which method")[0]
    assert "No fix chosen" in banner
    assert "Chosen: temperature" not in banner
    assert "Applied in this order" not in banner

    result["chosen"]["methods"] = [{"method": "temperature", "parameters": {"t": 1.84}}]
    banner = text_of(result).partition("Which method")[0]
    assert "Only the confidence changes" in banner
    assert "The fix file holds temperature t 1.84, for honest confidence" in banner
    for contradiction in ("No fix chosen", "Chosen: temperature", "Applied in this order"):
        assert contradiction not in banner


def test_given_fix_that_learns_nothing_is_announced_as_a_fix() -> None:
    result = calibration_of()
    result["methods"][3]["freedom"] = 0
    assert "Chosen: tau_norm" in text_of(result)


@pytest.mark.parametrize(
    ("status", "word"),
    [
        ("before", "No fix"),
        ("chosen", "Chosen"),
        ("candidate", "As good"),
        ("too costly for the head", "Too costly"),
        ("behind", "Behind"),
    ],
)
def test_standing_is_a_word_not_a_colour(status: str, word: str) -> None:
    result = calibration_of()
    assert any(method["status"] == status for method in result["methods"])
    assert re.search(
        rf'data-value="{word}"><span class="mark \w+">.*?</svg>{word}</span>', page_of(result)
    )


def page_of(result: dict[str, Any]) -> str:
    return render_report(result, title="t")


def test_best_is_what_is_not_behind_and_too_costly_ones_may_be_ahead() -> None:
    text = text_of(calibration_of())
    assert "+2.90± 0.25" in text  # vector, too costly
    assert "30.3 … 31.9best" in text
    assert "−3.10–0" in text  # no fix: no standard error, no change of its own


def test_loss_beyond_the_limit_is_marked() -> None:
    result = calibration_of()
    assert len(re.findall(r'class="num past"', page_of(result))) == 1
    result["max_head_loss"] = None
    assert 'class="num past"' not in page_of(result)


def test_best_is_called_the_best_allowed_where_there_is_a_limit() -> None:
    result = calibration_of()
    assert "Against the best allowed" in text_of(result)
    result["max_head_loss"] = None
    text = text_of(result)
    assert "Against the best" in text
    assert "Against the best allowed" not in text


def test_no_loss_at_all_is_not_a_negative_zero() -> None:
    result = calibration_of()
    result["max_head_loss"] = 0.0
    text = text_of(result)
    assert "−0.0" not in text
    assert "many may losenothing" in text
    assert "methods that may cost it anything are too costly" in text


def test_plots_have_a_scale_with_round_figures() -> None:
    axis = re.search(r'<svg class="interval axis".*?</svg>', page_of(calibration_of()))
    assert axis is not None
    labels = re.findall(r'text-anchor="middle">([^<]+)</text>', axis[0])
    assert labels == ["28", "30", "32", "34", "no fix"]


def test_images_are_called_validation_images() -> None:
    page = page_of(calibration_of())
    assert Document(page).json("view-data")["images"] == "validation"  # type: ignore[call-overload]
    assert "few validation images" in re.sub(r"\s+", " ", page)
    assert "test images" not in Document(page).text.lower()


def test_long_method_names_can_break_and_options_cannot() -> None:
    result = calibration_of()
    name = "bias_corrected_temperature+label_shift:source=validation"
    result["skipped"] = [{"method": name, "reason": "needs (calibrate --target DATA)"}]
    page = page_of(result)
    assert "temperature+<wbr>label_<wbr>shift:<wbr>source=<wbr>validation</th>" in page
    assert 'calibrate <span class="whole">--target</span> DATA' in page


def test_worst_class_is_named() -> None:
    assert '0.1 … 1.9</small><small class="name">species 7</small>' in page_of(calibration_of())


def test_many_values_are_counted_and_not_listed() -> None:
    methods = calibration_of(30)["methods"]
    assert steps(methods[1]["methods"], "vector") == "w (30 values), b (30 values)"
    assert steps(methods[2]["methods"]).endswith("w (30 × 30 values)")
    assert steps([]) == ""
    lone = [{"method": "platt", "parameters": {"a": [1.0], "k": None, "on": "head"}}]
    assert steps(lone) == "platt a (1 value), k –, on head"


def test_folds_that_agree_and_differ_are_told() -> None:
    result = calibration_of()
    assert "folds chose 0.8 to 0.9" in text_of(result)
    result["methods"][3]["per_fold"] = [0.85] * 5
    assert "every fold chose 0.85" in text_of(result)
    result["methods"][3]["per_fold"] = []
    assert not re.search(r"folds? chose", text_of(result))


def test_absent_figures_are_dashes_and_never_zero() -> None:
    result = calibration_of()
    for method in result["methods"]:
        method["figures"]["groups"]["few"] = method["figures"]["group_ece"]["few"] = None
        method["figures"]["nll"] = {"value": 2.5, "low": None, "high": None}
        method["head_change"] = dict.fromkeys(("value", "low", "high"))
    empty = {"bins": [], "ece": None, "accuracy": None, "confidence": None}
    result["confidence"]["before"]["few"] = result["confidence"]["after"]["few"] = empty
    page = page_of(result)
    assert page.count('data-value="">–</td>') == 2 * len(result["methods"]) + 1
    assert "2.500<small>no interval</small>" in page
    assert 'data-reliability="few"' not in page
    assert 'data-reliability="medium"' in page


def test_method_without_any_figure_still_makes_a_page() -> None:
    result = calibration_of()
    for method in result["methods"]:
        method["objective"] = dict.fromkeys(("value", "low", "high"))
        method["behind"] = {"value": None, "standard_error": None}
    assert ">no fix</text>" in page_of(result)


def test_figures_that_are_not_finite_and_numpy_scalars_become_json() -> None:
    result = calibration_of()
    result["classes"][0]["after"] = float("nan")
    result["methods"][1]["figures"]["nll"]["value"] = np.float32("inf")
    result["images"] = np.int64(7)
    embedded = Document(page_of(result)).json("result-data")
    assert isinstance(embedded, dict)
    assert embedded["classes"][0]["after"] is None
    assert embedded["methods"][1]["figures"]["nll"]["value"] is None
    assert embedded["images"] == 7


@pytest.mark.parametrize("objective", ["balanced", "few", "harmonic", "overall"])
@pytest.mark.parametrize("prior", ["uniform", "validation", "given"])
def test_every_objective_and_prior_is_explained(objective: str, prior: str) -> None:
    text = text_of({**calibration_of(30), "objective": objective, "target_prior": prior})
    assert "What the choice maximises: " in text
    assert "in use" in text.partition("What the choice maximises: ")[2].partition("Standing")[0]


def test_as_many_classes_as_inaturalist_stay_under_six_megabytes() -> None:
    result = calibration_of(8142, images_per_class=3)
    result["methods"][2]["methods"] = []  # nobody fits 66 million numbers to them
    assert len(page_of(result).encode()) < 6_000_000
