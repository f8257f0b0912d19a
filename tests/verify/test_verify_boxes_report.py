"""The report of a detector's verification as a file: content, escapes, choice, size."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from box_report_samples import found, verification_of
from hypothesis import given
from hypothesis import strategies as st
from report_pages import HOSTILE_NAMES, Document

from ltdeploy.boxes import Detections
from ltdeploy.datasets.coco_json import read_boxes
from ltdeploy.verify.boxes.report import render_box_report
from ltdeploy.verify.boxes.report_images import choose_photographs, sides_of, thumbnail
from ltdeploy.verify.boxes.run import BoxVerification
from ltdeploy.webpage import plain

NOTHING = Detections.empty()
SAME = (found((0, 0.9)), found((0, 0.9)))
LOST = (found((0, 0.9), (8, 0.5)), found((0, 0.8)))
TWO_NEW = (found((0, 0.9)), found((0, 0.9), (1, 0.3), (2, 0.2)))


def main_of(page: str) -> str:
    """Return a page without its scripts and data."""
    return page[page.index("<main") : page.index("</main>")]


def text_of(done: BoxVerification, **options: str) -> str:
    """Return what stands on the page, words parted by one space."""
    page = render_box_report(done, "t", **options)
    body = re.sub(r"<(style|svg)\b.*?</\1>", " ", main_of(page), flags=re.DOTALL)
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", body)).split())


def targets(page: str) -> list[str]:
    """Return what the pointer reads from the boxes, layer first."""
    return [
        f"{layer}: {unescape(text)}"
        for layer, text in re.findall(r'class="target (\w+)"[^>]*><title>([^<]*)<', page)
    ]


def test_result_is_embedded_as_it_is() -> None:
    done = verification_of([SAME, LOST])
    document = Document(render_box_report(done, "t"))
    expected = json.loads(json.dumps(plain(done.result.to_dict())))
    assert document.json("result-data") == expected


def test_hostile_names_make_no_element_and_nothing_is_loaded() -> None:
    done = verification_of(
        [LOST, TWO_NEW],
        classes=12,
        truths=[[0, 1, 2], [8]],
        unreadable=[(HOSTILE_NAMES[0], HOSTILE_NAMES[1])],
    )
    page = render_box_report(done, HOSTILE_NAMES[0])
    document = Document(page)
    assert not any("hacked" in text for a, text in document.scripts if "type" not in a)
    assert not any("onerror" in a for _, a in document.elements)
    for tag, attributes in document.elements:
        for name in ("src", "href", "srcset", "action"):
            address = attributes.get(name) or "#"
            assert address.startswith(("#", "data:")), (tag, name, address[:80])
    assert "url(" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    spoiled = page.replace("\\u003c", "<").replace("\\u003e", ">")
    runs = [text for a, text in Document(spoiled).scripts if "type" not in a]
    assert any("hacked" in text for text in runs), "an unescaped name would be seen"


@pytest.mark.parametrize(
    ("verdict", "word"), [("pass", "Pass"), ("fail", "Fail"), ("inconclusive", "Undecided")]
)
def test_verdict_comes_first_as_a_word_with_its_sentence(verdict: str, word: str) -> None:
    done = verification_of([SAME], verdict=verdict)  # type: ignore[arg-type]
    text = text_of(done)
    assert f"{word} {done.result.to_dict()['sentence']}" in text
    assert text.index(word) < text.index("Groups")


def test_group_table_holds_every_figure() -> None:
    text = text_of(verification_of([SAME]))
    row = "54.0 57.0 56.0 −1.00 −1.50 … −0.50 80.0 → 79.0 58.0 → 57.0 4 / 0"
    assert f"overall 9, 12 Fail {row}" in text


def test_model_without_a_fix_is_not_shown_twice() -> None:
    done = verification_of([SAME])
    assert "Before the fix" in text_of(done)
    bare = [replace(one, unfixed=one.reference) for one in done.result.classes]
    done = replace(done, result=replace(done.result, classes=bare))
    assert "Before the fix" not in text_of(done)


def test_group_without_objects_shows_dashes_and_is_named() -> None:
    done = verification_of([SAME], without_objects=[6, 7, 8])
    text = text_of(done)
    few = sum(one.group == "few" for one in done.result.classes)
    assert few == 3
    assert f"few 0 of {few}, 0 Undecided – – – – no interval – → – – → – 1 / 0" in text
    assert "3 classes have no object to find here" in text
    assert HOSTILE_NAMES[8] in text


@pytest.mark.parametrize(
    ("images", "equivalent", "warned"), [(12, False, True), (400, False, False), (12, True, False)]
)
def test_few_photographs_are_warned_of_where_an_interval_decides(
    images: int, equivalent: bool, warned: bool
) -> None:
    done = verification_of([SAME], group_images=images)
    text = text_of(replace(done, result=replace(done.result, equivalent=equivalent)))
    assert f"many {images}, medium {images}, few {images}" in text
    assert ("too narrow" in text) == warned


def test_federated_truth_is_told_only_where_it_is() -> None:
    assert "searched for a few classes only" in text_of(verification_of([SAME], federated=True))
    assert "searched for a few classes only" not in text_of(verification_of([SAME]))


def test_comparison_calls_both_sides_by_name() -> None:
    text = text_of(verification_of([LOST]), kind="comparison")
    assert "old.ltd and New.ltd saw the same photographs" in text
    assert "Candidate" not in text


def test_unreadable_files_are_listed_with_their_reasons() -> None:
    files = [(f"{place}.jpg", f"reason {place}") for place in range(60)]
    text = text_of(verification_of([SAME], unreadable=files))
    assert "60 could not be used" in text
    assert "49.jpg reason 49 and 10 more" in text
    assert "Unreadable photographs" not in text_of(verification_of([SAME]))


def test_boxes_tell_class_scores_and_whose_they_are() -> None:
    page = render_box_report(verification_of([LOST], classes=12, truths=[[9, 9]]), "t")
    assert sorted(targets(page)) == [
        f"candidate: {HOSTILE_NAMES[0]} 0.80, candidate (reference 0.90)",
        f"reference: {HOSTILE_NAMES[0]} 0.90, reference (candidate 0.80)",
        "reference: 大紫蛱蝶 🦋 0.50, reference alone",
        "truth: class 0, truth",
        "truth: class 0, truth (a crowd)",
    ]
    assert page.count('class="box reference alone"') == 1
    assert "box candidate alone" not in page


def test_smallest_box_lies_on_top() -> None:
    boxes = np.array([[0, 0, 9, 9], [0, 0, 40, 40], [0, 0, 20, 20]], np.float32)
    side = Detections(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64))
    page = render_box_report(verification_of([(side, NOTHING)], truths=[[]]), "t")
    scores = [re.findall(r"0\.\d", text)[0] for text in targets(page)]
    assert scores == ["0.8", "0.7", "0.9"]


def test_weak_counterpart_makes_no_lost_detection() -> None:
    done = verification_of([(found((0, 0.06), (1, 0.04)), found((0, 0.04), (2, 0.04)))])
    sides = sides_of(done, 0)
    assert sides.reference.scores.tolist() == pytest.approx([0.06])
    assert len(sides.candidate) == len(sides.alone) == 0
    assert sides.candidate_scores.tolist() == pytest.approx([0.04])


def test_many_boxes_are_cut_and_counted_lonely_ones_kept() -> None:
    paired = found(*[(0, 0.9)] * 100)
    alone = found((8, 0.06), at=2000)
    keys = ("boxes", "scores", "labels")
    both = Detections(*(np.concatenate([getattr(s, k) for s in (paired, alone)]) for k in keys))
    page = render_box_report(verification_of([(both, paired)], size_px=(2100, 60)), "t")
    assert any("0.06, reference alone" in text for text in targets(page))
    assert sum(text.startswith("reference") for text in targets(page)) == 40
    assert "121 more boxes are not drawn." in Document(page).text


def test_photographs_with_most_alone_come_first_then_every_group() -> None:
    truths = [[0]] * 40
    truths[30], truths[31] = [0, 8], [0, 4]
    sides = [SAME] * 40
    sides[20], sides[21] = LOST, TWO_NEW
    done = verification_of(sides, truths=truths)
    groups = [one.group for one in done.result.classes]
    assert (groups[0], groups[4], groups[8]) == ("many", "medium", "few")
    chosen = [one.position for one in choose_photographs(done)]
    assert chosen[:4] == [21, 20, 30, 31]
    assert len(set(chosen)) == len(chosen) == 24


def test_head_leaves_room_for_the_tail() -> None:
    sides = [(found((0, 0.9), (0, 0.8)), NOTHING)] * 40 + [(NOTHING, found((8, 0.3)))]
    chosen = [one.position for one in choose_photographs(verification_of(sides))]
    assert chosen[:18] == list(range(18))
    assert chosen[18] == 40


@given(
    rows=st.lists(st.tuples(*[st.lists(st.integers(0, 8), max_size=3)] * 2), max_size=30),
    most=st.integers(0, 12),
)
def test_choice_repeats_nothing_and_fills_what_it_can(
    rows: list[tuple[list[int], list[int]]], most: int
) -> None:
    sides = [
        (found(*[(label, 0.9) for label in lost]), found(*[(label, 0.9) for label in new], at=60))
        for lost, new in rows
    ]
    if not sides:
        return
    done = verification_of(sides, size_px=(120, 48))
    chosen = [one.position for one in choose_photographs(done, most)]
    assert len(chosen) == len(set(chosen)) == min(most, len(sides))


def test_photographs_that_are_gone_are_told_and_their_boxes_stay() -> None:
    done = verification_of([LOST, SAME], photographs=False)
    page = render_box_report(done, "t")
    assert "data:image/jpeg" not in page
    assert "None of these photographs is here any more" in " ".join(Document(page).text.split())
    assert len(targets(page)) == 7
    there = render_box_report(verification_of([LOST, SAME]), "t")
    assert there.count("data:image/jpeg") == 2
    assert "here any more" not in there


def test_detectors_that_find_nothing_still_make_a_report() -> None:
    done = verification_of([(NOTHING, NOTHING)], truths=[[]], without_objects=range(9))
    text = text_of(done)
    assert "Average precision of each class" not in text
    assert "What both sides find" not in text, "there is neither a box nor an object to show"


def test_page_stays_under_three_megabytes_at_its_worst() -> None:
    """Noise for photographs, as many boxes as are drawn, as many classes as LVIS."""
    side = found(*[(label % 9, 0.9) for label in range(80)])
    other = found(*[(label % 9, 0.9) for label in range(80)], at=1200.0)
    done = verification_of(
        [(side, other)] * 30,
        classes=1230,
        truths=[[0] * 200] * 30,
        size_px=(640, 480),
        noise=True,
    )
    assert thumbnail(done, 0) is not None
    page = render_box_report(done, "t")
    assert page.count("data:image/jpeg") == 24
    assert len(page.encode()) < 3_000_000


def test_crowd_of_classes_has_averages_and_few_have_names() -> None:
    crowd = main_of(render_box_report(verification_of([SAME], classes=200), "t"))
    assert "One mark is one class, candidate alone." in crowd
    assert crowd.count("stroke-linejoin") == 3
    few = main_of(render_box_report(verification_of([SAME], classes=3), "t"))
    assert "stroke-linejoin" not in few
    assert "500 images</text>" in few


def test_same_verification_gives_the_same_file() -> None:
    first, second = (render_box_report(verification_of([LOST]), "t") for _ in range(2))
    assert first == second


def test_real_photographs_with_their_truth_as_detections(data_dir: Path) -> None:
    dataset = read_boxes(data_dir / "bccd" / "test.json")
    whole = [
        Detections(t.boxes, np.linspace(0.9, 0.3, len(t), dtype=np.float32), t.labels)
        for t in dataset.truths
    ]
    cut = [side[side.labels != 0] for side in whole]
    done = verification_of(list(zip(whole, cut, strict=True)), classes=3)
    done = replace(done, dataset=dataset)
    page = render_box_report(done, "bccd.ltd")
    assert page.count("data:image/jpeg") == 24
    assert len(page.encode()) < 3_000_000
    lonely = [len(one.alone) for one in choose_photographs(done)]
    lost = sorted(((t.labels == 0).sum() for t in dataset.truths), reverse=True)
    assert lonely[:18] == lost[:18]
