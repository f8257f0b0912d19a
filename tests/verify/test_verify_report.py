"""The report as a file: its content, escapes, size, and what it does with absent figures."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_pages import HOSTILE_NAMES, Document
from report_samples import details_of, result_of

from ltdeploy.verify.report import render_report
from ltdeploy.verify.report_details import ReportDetails, choose_flips
from ltdeploy.verify.result import Flip


def flip(label: int, reference: int, candidate: int) -> Flip:
    return Flip(0, label, reference, candidate, 0.5, 0.5)


@pytest.fixture(scope="module")
def page() -> str:
    result = result_of()
    return render_report(
        result, details_of(result), title=HOSTILE_NAMES[0], sentence=HOSTILE_NAMES[1]
    )


def test_result_is_embedded_as_it_is(page: str) -> None:
    assert Document(page).json("result-data") == json.loads(json.dumps(result_of()))


def test_hostile_names_make_no_element(page: str) -> None:
    document = Document(page)
    assert len(document.scripts) == 7
    assert not any("hacked" in text for a, text in document.scripts if "type" not in a)
    assert not any(a.get("src") == "x" or "onerror" in a for _, a in document.elements)
    assert HOSTILE_NAMES[0] in document.text
    assert HOSTILE_NAMES[1] in document.text


def test_unescaped_name_would_be_seen(page: str) -> None:
    spoiled = page.replace("\\u003c", "<").replace("\\u003e", ">")
    runs = [text for a, text in Document(spoiled).scripts if "type" not in a]
    assert any("hacked" in text for text in runs)


def test_every_script_is_allowed_by_hash_and_nothing_else(page: str) -> None:
    document = Document(page)
    policy = next(a["content"] for tag, a in document.elements if tag == "meta" and "content" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'")
    allowed = re.search(r"script-src ([^;]*)", policy)
    assert allowed is not None
    runs = [text for a, text in document.scripts if "type" not in a]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in runs]
    assert allowed[1].split() == [f"'sha256-{value}'" for value in hashes]


def test_nothing_is_loaded_from_elsewhere(page: str) -> None:
    for tag, attributes in Document(page).elements:
        for name in ("src", "href", "srcset", "action"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:")), (tag, name, address[:80])
    assert "sourceMappingURL" not in page
    assert "@import" not in page


def test_hundred_classes_with_thumbnails_stay_under_two_megabytes(page: str) -> None:
    assert page.count("data:image/jpeg") == 47
    assert len(page.encode()) < 2_000_000


def test_as_many_classes_as_inaturalist_stay_under_six_megabytes() -> None:
    result = result_of(8142, images_per_class=3)
    page = render_report(result, details_of(result), title="big", sentence="Undecided.")
    assert len(page.encode()) < 6_000_000


def test_licences_of_what_is_inside_are_inside(page: str) -> None:
    text = Document(page).text
    for holder in ("Chart.js Contributors", "Oli Folkerd", "Jukka Kurkela"):
        assert holder in text


@pytest.mark.parametrize("verdict", ["pass", "fail", "inconclusive"])
def test_verdict_is_a_word_not_a_colour(verdict: str) -> None:
    result = {**result_of(), "verdict": verdict}
    text = Document(render_report(result, title="t", sentence="Said plainly.")).text
    word = {"pass": "Pass", "fail": "Fail", "inconclusive": "Undecided"}[verdict]
    assert re.search(rf"{word}\s*Said plainly\.", text)


def test_empty_group_is_no_class_and_never_zero() -> None:
    result = result_of()
    empty = dict.fromkeys(result["overall"])
    for absent in (None, {**empty, "classes": 0, "images": 0}):
        result["groups"]["few"] = absent
        text = Document(render_report(result, title="t", sentence="s")).text
        assert re.search(r"few\s*no class", text)


def test_group_whose_classes_have_no_images_shows_dashes() -> None:
    result = result_of()
    empty = dict.fromkeys(result["overall"])
    result["groups"]["few"] = {
        **empty,
        "classes": 30,
        "classes_without_images": 30,
        "images": 0,
        "flips_lost": 0,
        "flips_won": 0,
        "verdict": "inconclusive",
    }
    text = Document(render_report(result, title="t", sentence="s")).text
    assert re.search(r"few\s*Undecided\s*–\s*–\s*–\s*–\s*no interval\s*0 / 0\s*0 of 30\s*0", text)


@pytest.mark.parametrize("ends", [(-0.1, 0.1), (-40.0, 2.0), (-2.0, 30.0), (-0.9, 0.9)])
def test_margin_is_labelled_whatever_the_intervals(ends: tuple[float, float]) -> None:
    result = result_of()
    result["overall"].update(ci_low=ends[0], ci_high=ends[1])
    assert "−1.0 margin</text>" in render_report(result, title="t", sentence="s")


def test_absent_interval_and_unfixed_model() -> None:
    result = result_of()
    for figures in (result["overall"], *result["groups"].values()):
        figures.update(unfixed=None, ci_low=None, ci_high=None, verdict=None)
    for row in result["classes"]:
        del row["unfixed"]
    page = render_report(result, title="t", sentence="s")
    assert "no interval" in page
    assert "Before the fix</th>" not in page
    assert 'value="unfixed"' not in page


def test_figures_that_are_not_finite_and_numpy_scalars_become_json() -> None:
    result = result_of()
    result["max_abs_logit_diff"] = float("nan")
    result["classes"][0]["p_value"] = np.float32("inf")
    result["classes"][1]["train_count"] = np.int64(7)
    document = Document(render_report(result, title="t", sentence="s"))
    embedded = document.json("result-data")
    assert isinstance(embedded, dict)
    assert embedded["max_abs_logit_diff"] is None
    assert embedded["classes"][0]["p_value"] is None
    assert embedded["classes"][1]["train_count"] == 7


def test_report_without_details_says_so_and_leaves_no_empty_section() -> None:
    text = Document(render_report(result_of(), ReportDetails(), title="t", sentence="s")).text
    assert "gave the same answer to every image" in text
    assert "Can its confidence be trusted?" not in text
    assert "How this was measured" not in text


def test_same_input_gives_the_same_file() -> None:
    result = result_of()
    first, second = (
        render_report(result, details_of(result), title="t", sentence="s") for _ in range(2)
    )
    assert first == second


@given(rows=st.lists(st.tuples(*[st.integers(0, 5)] * 3), max_size=80), limit=st.integers(0, 20))
def test_chosen_flips_are_flips_lost_first_and_as_many_as_fit(
    rows: list[tuple[int, int, int]], limit: int
) -> None:
    flips = [flip(*row) for row in rows if row[1] != row[2]]
    chosen = choose_flips(flips, [9, 8, 7, 3, 2, 1], limit)
    assert len(chosen) == min(limit, len(flips))
    assert not Counter(chosen) - Counter(flips)
    kinds = [("lost", "won", "changed").index(f.kind) for f in chosen]
    assert kinds == sorted(kinds)


def test_one_broken_class_does_not_fill_the_page() -> None:
    flips = [flip(label, label, 3) for label in [0] * 50 + [1, 2]]
    chosen = choose_flips(flips, [3, 500, 20, 9], limit=4)
    assert [f.label for f in chosen] == [0, 2, 1, 0]


def test_lost_images_leave_room_for_won_ones() -> None:
    flips = [flip(0, 0, 1)] * 30 + [flip(0, 1, 0)] * 10
    chosen = choose_flips(flips, [5, 5], limit=12)
    assert Counter(f.kind for f in chosen) == {"lost": 9, "won": 3}


@pytest.mark.parametrize(
    ("images", "kind"), [((7, 7, 2), "lost"), ((7, 2, 7), "won"), ((7, 2, 3), "changed")]
)
def test_kind_of_flip(images: tuple[int, int, int], kind: str) -> None:
    assert flip(*images).kind == kind


def test_flips_without_pictures_are_counted_and_make_no_empty_gallery() -> None:
    result = {**result_of(), "flips": 1234}
    document = Document(render_report(result, title="t", sentence="s"))
    assert "Images that flipped: 1,234. This report shows none of them." in document.text
    assert not any(attributes.get("class") == "flips" for _, attributes in document.elements)


def test_a_pass_with_classes_that_got_worse_is_warned_of() -> None:
    def banner(verdict: str, worse: tuple[int, ...]) -> tuple[str | None, str]:
        result = {**result_of(worse=worse), "verdict": verdict}
        document = Document(render_report(result, title="t", sentence="s"))
        classes = (a.get("class") or "" for tag, a in document.elements if tag == "section")
        return next(c for c in classes if c.startswith("verdict")), document.text

    style, text = banner("pass", (97, 98))
    assert style == "verdict pass warned"
    assert re.search(r"Pass\s*2 classes worse", text)
    assert banner("pass", ())[0] == "verdict pass"
    assert banner("fail", (97, 98))[0] == "verdict fail"


def test_a_pass_that_says_nothing_of_the_precision_is_warned_of() -> None:
    def banner(verdict: str, not_computed: str | None) -> tuple[str, str]:
        result = {**result_of(), "verdict": verdict, "not_computed": not_computed}
        document = Document(render_report(result, title="t", sentence="s"))
        classes = (a.get("class") or "" for tag, a in document.elements if tag == "section")
        return next(c for c in classes if c.startswith("verdict")), document.text

    style, text = banner("pass", "fp16")
    assert style == "verdict pass warned"
    assert re.search(r"Pass\s*not as fp16", text)
    assert banner("pass", None)[0] == "verdict pass"
    assert banner("fail", "fp16")[0] == "verdict fail"


def test_classes_without_images_are_counted_beside_the_figures() -> None:
    text = Document(render_report(result_of(without_images=(98, 99)), title="t", sentence="s")).text
    few = sum(row["group"] == "few" for row in result_of()["classes"])
    assert f"{few - 2} of {few}" in text
    assert "98 of 100" in text
    assert "classes without images" in text
    assert (
        "classes without images"
        not in Document(render_report(result_of(), title="t", sentence="s")).text
    )


def test_limit_that_kept_a_group_from_failing_is_shown_only_where_it_did() -> None:
    result = result_of()
    few = result["groups"]["few"]
    few.update(difference=-2.67, ci_low=-5.58, ci_high=-0.26, fail_high=0.31)
    assert "widened: … +0.31" not in render_report(result, title="t", sentence="s")
    few["verdict"] = "inconclusive"
    assert "widened: … +0.31" in render_report(result, title="t", sentence="s")
