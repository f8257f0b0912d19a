"""Class maps say which class is which, and refuse to guess."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from ltdeploy.boxes import Detections
from ltdeploy.errors import DataError
from ltdeploy.vocabulary import class_maps, translate

MAIN = ["cat", "wine_glass", "tv_set", "bat_(animal)"]


def test_names_and_aliases() -> None:
    maps = class_maps(
        MAIN,
        {"coco": ["cat", "car", "tv", "wine glass"], "birds": ["bat_(animal)"]},
        {"coco": {"tv": "tv_set", "wine glass": "wine_glass"}},
    )
    assert maps["coco"].tolist() == [0, -1, 2, 1]
    assert maps["birds"].tolist() == [3]


def test_several_names_may_lead_to_one_class() -> None:
    maps = class_maps(MAIN, {"pets": ["cat", "kitten"]}, {"pets": {"kitten": "cat"}})
    assert maps["pets"].tolist() == [0, 0]


def test_all_disagreements_stand_in_one_error() -> None:
    with pytest.raises(DataError, match="disagree in 3 names") as caught:
        class_maps(
            MAIN,
            {"coco": ["cat", "Wine Glass", "tv"], "open": ["TV-set", "tv", "cat"]},
            {"coco": {"tv": "tv_set"}},
        )
    text = str(caught.value)
    assert "say {'Wine Glass': 'wine_glass'}, or {'Wine Glass': None}" in text
    assert "open: 'TV-set' is written like the main model's 'tv_set'" in text
    assert "'tv' is the class 'tv_set' for coco and no class for open" in text


def test_what_was_said_for_each_expert_is_taken() -> None:
    experts = {"zoo": ["flier", "cat"], "sport": ["flier", "cat"]}
    said = {"zoo": {"flier": "bat_(animal)"}, "sport": {"flier": None}}
    maps = class_maps(MAIN, experts, said)
    assert maps["zoo"].tolist() == [3, 0]
    assert maps["sport"].tolist() == [-1, 0]
    with pytest.raises(DataError, match=r"'flier' is the class 'bat_\(animal\)' for zoo"):
        class_maps(MAIN, experts, {"zoo": said["zoo"]})


def test_what_stands_in_parentheses_is_asked_for() -> None:
    main = ["bus_(vehicle)", "bat_(animal)", "bat_(sports)", "dog"]
    with pytest.raises(DataError, match="disagree in 2 names") as caught:
        class_maps(main, {"coco": ["bus", "bat", "dog"]})
    text = str(caught.value)
    assert "say {'bus': 'bus_(vehicle)'}" in text
    assert "'bat' is written like the main model's 'bat_(animal)' and 'bat_(sports)'" in text


def test_different_parentheses_are_different_classes() -> None:
    maps = class_maps(["mouse_(computer)", "dog"], {"zoo": ["mouse_(animal)", "dog"]})
    assert maps["zoo"].tolist() == [-1, 1]


def test_lvis_knows_its_own_older_names(data_dir: Path) -> None:
    old, new = (
        [row["name"] for row in csv.DictReader((data_dir / "lvis" / file).read_text().splitlines())]
        for file in ("lvis_v0.5_categories.csv", "lvis_v1_categories.csv")
    )
    shared = class_maps(new, {"v0.5": old})["v0.5"]
    assert (shared >= 0).sum() == len(set(old) & set(new))


def test_a_name_that_is_written_alike_may_be_another_class() -> None:
    maps = class_maps(MAIN, {"e": ["TV set", "cat"]}, {"e": {"TV set": None}})
    assert maps["e"].tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("aliases", "text"),
    [
        ({"coko": {}}, "Did you mean 'coco'"),
        ({"coco": {"caat": "cat"}}, "begins at 'caat'.* Did you mean 'cat'"),
        ({"coco": {"car": "catt"}}, "leads from 'car' to 'catt'.* Did you mean 'cat'"),
    ],
)
def test_aliases_of_nothing(aliases: dict[str, dict[str, str | None]], text: str) -> None:
    with pytest.raises(DataError, match=text):
        class_maps(MAIN, {"coco": ["cat", "car"]}, aliases)


def test_an_expert_of_nothing_and_a_name_given_twice() -> None:
    with pytest.raises(DataError, match="'cars' shares no class with the main model"):
        class_maps(MAIN, {"cars": ["bus", "van"]})
    with pytest.raises(DataError, match="'cat' stands twice"):
        class_maps(MAIN, {"coco": ["cat", "cat"]})


def test_detections_are_translated() -> None:
    boxes = np.arange(12, dtype=np.float32).reshape(3, 4)
    found = Detections(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.array([1, 0, 2]))
    shared = translate(found, np.array([3, -1, 0]))
    assert shared.labels.tolist() == [3, 0]
    np.testing.assert_array_equal(shared.boxes, boxes[1:])
    assert len(translate(Detections.empty(), np.array([0]))) == 0
    with pytest.raises(DataError, match="of 2 classes found the label 2"):
        translate(found, np.array([0, 1]))


def test_long_lists_are_cut() -> None:
    names = [f"class_{number}" for number in range(40)]
    with pytest.raises(DataError, match="and 20 more") as caught:
        class_maps(names, {"loud": [name.upper() for name in names]})
    assert len(str(caught.value).splitlines()) == 23
