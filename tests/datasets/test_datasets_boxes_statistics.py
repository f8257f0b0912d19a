"""Sizes and counts of a data set's boxes: the figures, the page, and the page in a browser."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_pages import HOSTILE_NAMES, Document, Opener

from ltdeploy.datasets.box_statistics import box_statistics
from ltdeploy.datasets.box_statistics_report import render_report
from ltdeploy.datasets.boxes import BoxDataset, BoxImage, BoxTruth
from ltdeploy.datasets.coco_json import read_boxes

Drawn = list[tuple[int, float]]  # label and area of each box of one image


def dataset(*images: Drawn, names: tuple[str, ...] = ("cat", "lynx"), **more: Any) -> BoxDataset:
    truths = []
    for number, drawn in enumerate(images):
        count = len(drawn)
        truths.append(
            BoxTruth(
                np.tile(np.array([0, 0, 5, 5], np.float32), (count, 1)),
                np.array([abs(label) - 1 for label, _ in drawn], np.int64),
                np.array([label < 0 for label, _ in drawn], np.bool_),
                np.array([area for _, area in drawn], np.float64),
                np.arange(count, dtype=np.int64) + 10_000 * number,
            )
        )
    described = [BoxImage(n, f"{n}.jpg", Path(f"{n}.jpg"), 300, 300) for n in range(len(images))]
    return BoxDataset("drawn", names, described, truths, **more)


def some(**more: Any) -> BoxDataset:
    """Return five images; labels count from one, and a minus is a crowd."""
    return dataset(
        [(1, 1023.9), (1, 1024.0), (1, 9215.9)],
        [(1, 9216.0), (2, 4.0)],
        [(-1, 100.0)],
        [(1, 5.0), (-2, 5.0)],
        [],
        **more,
    )


def test_figures_worked_by_hand() -> None:
    found = box_statistics(some(notes=["One was cut."]))
    assert (found.images, found.empty_images, found.boxes, found.crowds) == (5, 1, 6, 2)
    shares = {
        name: (s.boxes, s.box_share, s.images, s.image_share) for name, s in found.sizes.items()
    }
    assert shares == {
        "small": (3, 50.0, 3, 60.0),
        "medium": (2, pytest.approx(100 / 3), 1, 20.0),
        "large": (1, pytest.approx(100 / 6), 1, 20.0),
    }
    cat, lynx = found.classes
    assert (cat.images, cat.boxes, cat.small, cat.medium, cat.large) == (3, 5, 2, 2, 1)
    assert (lynx.images, lynx.boxes, lynx.small, lynx.medium, lynx.large) == (1, 1, 1, 0, 0)
    assert (cat.group, lynx.group) == ("few", "few")
    assert found.imbalance == 5.0
    assert found.notes == ("One was cut.",)
    json.dumps(found.to_dict(), allow_nan=False)


def test_groups_are_the_files_where_it_has_them() -> None:
    found = box_statistics(some(groups=("rare", "frequent")))
    assert [one.group for one in found.classes] == ["rare", "frequent"]
    assert found.groups == ("frequent", "common", "rare")
    counted = box_statistics(some(train_counts=(500, 50)))
    assert [one.group for one in counted.classes] == ["many", "medium"]


def test_without_a_box_there_is_no_share() -> None:
    found = box_statistics(dataset([], [(-1, 9.0)]))
    assert found.imbalance is None
    assert (found.empty_images, found.crowds) == (1, 1)
    assert {size.box_share for size in found.sizes.values()} == {None}
    page = render_report(found.to_dict(), title="drawn")
    assert "No image has a box." in page
    assert 'id="counts"' not in page


_image = st.lists(st.tuples(st.integers(1, 3), st.floats(0, 2e4)), max_size=5)


@given(st.lists(_image, min_size=1, max_size=5))
def test_parts_add_up(images: list[Drawn]) -> None:
    found = box_statistics(dataset(*images, names=("a", "b", "c")))
    assert found.boxes == sum(map(len, images)) == sum(s.boxes for s in found.sizes.values())
    assert found.boxes == sum(one.boxes for one in found.classes)
    for name, size in found.sizes.items():
        assert size.boxes == sum(getattr(one, name) for one in found.classes)
        assert size.images <= min(size.boxes, found.images - found.empty_images)
    for one in found.classes:
        assert one.images == sum(any(label == one.label + 1 for label, _ in i) for i in images)


def test_the_page_holds_every_figure() -> None:
    found = box_statistics(some(notes=["One <b>was</b> cut."]))
    document = Document(render_report(found.to_dict(), title="drawn"))
    assert document.json("result-data") == json.loads(json.dumps(found.to_dict()))
    assert "cat has 5 times as many boxes as lynx: 5 and 1." in document.text
    assert "One <b>was</b> cut." in document.text
    assert "33.3 %" in document.text
    assert "crowds beside" in document.text
    for tag, attributes in document.elements:
        if tag == "svg" and attributes.get("role") == "img":
            assert attributes.get("aria-label")


def test_even_classes_and_federated_images_are_told() -> None:
    page = render_report(box_statistics(dataset([(1, 5.0), (2, 5.0)])).to_dict(), title="even")
    assert "Every class that has boxes has 1 of them." in page
    assert "LVIS" not in page
    sets = np.zeros(0, np.int64)
    image = BoxImage(0, "0.jpg", Path("0.jpg"), 300, 300, sets, sets)
    lvis = BoxDataset("lvis", ("cat",), [image], [BoxTruth.empty()])
    assert "each image was searched for a few" in render_report(
        box_statistics(lvis).to_dict(), title="lvis"
    )


@pytest.mark.parametrize("classes", [1, 3, 13, 100, 1300])
def test_the_chart_stays_inside_and_sorted(classes: int) -> None:
    names = tuple(f"class {number}" for number in range(classes))
    drawn: list[Drawn] = [[(label + 1, 9.0)] * (1 + 300 // (label + 1)) for label in range(classes)]
    result = box_statistics(dataset(*drawn, names=names)).to_dict()
    document = Document(render_report(result, title="chart"))
    rings = [
        a for t, a in document.elements if t == "circle" and "fill:none" in (a.get("style") or "")
    ]
    places = [float(a["cx"] or 0) for a in rings]
    assert len(places) == classes
    assert places == sorted(places)
    for attributes in rings:
        assert 0 <= float(attributes["cx"] or -1) <= 1056
        assert 0 <= float(attributes["cy"] or -1) <= 340


@pytest.mark.browser
def test_opens_without_complaint_sorts_and_hostile_names_do_nothing(open_report: Opener) -> None:
    names = HOSTILE_NAMES
    drawn: list[Drawn] = [[(label + 1, 9.0)] * (label + 1) for label in range(len(names))]
    found = box_statistics(dataset(*drawn, names=names, notes=[HOSTILE_NAMES[0]]))
    page = open_report(render_report(found.to_dict(), title=HOSTILE_NAMES[2]), wait=False)
    assert page.evaluate("window.hacked") is None
    assert page.complaints == []
    assert page.title() == HOSTILE_NAMES[2]
    cells = page.locator("section[aria-labelledby=classes] tbody tr td:nth-child(3)")
    assert cells.all_text_contents() == [str(label + 1) for label in range(len(names))]
    page.get_by_role("button", name="Boxes").click()
    assert cells.all_text_contents() == [str(label) for label in range(len(names), 0, -1)]
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.browser
def test_nothing_runs_out_of_a_phone(open_report: Opener) -> None:
    page = open_report(
        render_report(box_statistics(some()).to_dict(), title="x"), width=390, wait=False
    )
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def test_real_blood_cells(data_dir: Path) -> None:
    found = box_statistics(read_boxes(data_dir / "bccd" / "train.json"))
    record = json.loads((data_dir / "bccd" / "train.json").read_text())
    small = [a for a in record["annotations"] if a["area"] < 32**2]
    assert found.sizes["small"].boxes == len(small) == 23
    assert found.sizes["small"].images == len({a["image_id"] for a in small}) == 21
    assert [one.boxes for one in found.classes] == [209, 2381, 214]
    assert found.imbalance == pytest.approx(2381 / 209)
