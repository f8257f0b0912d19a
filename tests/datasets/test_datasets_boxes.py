"""Data sets of boxes: COCO and LVIS json, what is wrong in them, and their labels by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from samples import draw_photo

from ltdeploy.datasets.box_labels import align_boxes
from ltdeploy.datasets.boxes import BoxDataset, BoxImage, BoxTruth
from ltdeploy.datasets.coco_json import as_coco, read_boxes
from ltdeploy.errors import DataError, ImageError

Record = dict[str, Any]


def box(number: int, image: int, category: int, *bbox: float, **more: Any) -> Record:
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": list(bbox),
        "area": bbox[2] * bbox[3],
        "iscrowd": 0,
        **more,
    }


def record() -> Record:
    """Return three photographs of two classes with sparse ids; the second has no box."""
    return {
        "images": [
            {"id": 30 + n, "file_name": f"{n}.jpg", "width": 64, "height": 48} for n in range(3)
        ],
        "annotations": [
            box(5, 32, 7, 1, 2, 10, 20),
            box(6, 30, 90, 0, 0, 64, 48, iscrowd=1),
            box(9, 30, 7, 4.5, 4.5, 8, 8, area=50.0, segmentation=[[4.5, 4.5, 12, 4.5, 12, 12]]),
        ],
        "categories": [{"id": 90, "name": "lynx"}, {"id": 7, "name": "cat"}],
    }


def lvis() -> Record:
    found = record()
    for image, negative in zip(found["images"], ([90], [7, 90], []), strict=True):
        image |= {"neg_category_ids": negative, "not_exhaustive_category_ids": []}
    found["annotations"].pop(1)
    found["images"][2]["not_exhaustive_category_ids"] = [7]
    return found


@pytest.fixture
def read(tmp_path: Path) -> Callable[[Any], BoxDataset]:
    def reader(content: Any) -> BoxDataset:
        path = tmp_path / "val.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_boxes(path, photographs=False)

    return reader


def drawn(*truths: BoxTruth, names: tuple[str, ...] = ("cat", "lynx"), **more: Any) -> BoxDataset:
    images = [BoxImage(n, f"{n}.jpg", draw_photo(n), 64, 48) for n in range(len(truths))]
    return BoxDataset("drawn", names, images, truths, **more)


def truth(*boxes: tuple[float, ...], labels: list[int], first_id: int = 0) -> BoxTruth:
    count = len(labels)
    return BoxTruth(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(labels, np.int64),
        np.zeros(count, np.bool_),
        np.ones(count, np.float64),
        np.arange(first_id, first_id + count, dtype=np.int64),
    )


def same(one: BoxDataset, other: BoxDataset) -> None:
    assert as_coco(one) == as_coco(other)
    assert one.class_names == other.class_names
    for left, right in zip(one.truths, other.truths, strict=True):
        for name in vars(left):
            assert getattr(left, name).dtype == getattr(right, name).dtype
            assert np.array_equal(getattr(left, name), getattr(right, name))


def test_reads_what_the_file_says(read: Callable[[Any], BoxDataset]) -> None:
    dataset = read(record())
    assert len(dataset) == 3
    assert dataset.class_names == ("lynx", "cat")
    assert dataset.category_ids.tolist() == [90, 7]
    assert dataset.identifier(2) == "2.jpg"
    assert dataset.size_px(0) == (64, 48)
    first = dataset.truth(0)
    assert first.boxes.tolist() == [[0, 0, 64, 48], [4.5, 4.5, 12.5, 12.5]]
    assert first.labels.tolist() == [0, 1]
    assert first.crowd.tolist() == [True, False]
    assert first.area.tolist() == [64 * 48, 50.0]
    assert first.ids.tolist() == [6, 9]
    assert len(dataset.truth(1)) == 0
    assert dataset.truth(1).boxes.shape == (0, 4)
    assert not dataset.is_federated
    assert dataset.negative(0) is None
    assert dataset.counts().tolist() == [0, 2]  # a crowd is nobody's example
    assert dataset.instances().tolist() == [0, 2]
    assert dataset.notes == ()
    assert dataset.class_table().groups == ("few", "few")


def test_boxes_that_reach_out_are_cut_and_those_without_a_part_left_are_named(
    read: Callable[[Any], BoxDataset],
) -> None:
    found = record()
    found["annotations"] += [
        box(11, 31, 7, -3, 40, 10, 20),
        box(12, 31, 7, 64, 0, 5, 5),
        box(13, 31, 7, 10, 10, 0, 5),
        box(14, 31, 7, 10, 10, 5, -1),
        box(15, 31, 7, 50, 10, 1e-9, 5),  # nothing is left of it in float32
    ]
    del found["annotations"][0]["area"]
    dataset = read(found)
    assert dataset.truth(1).boxes.tolist() == [[0, 40, 7, 48]]
    assert dataset.truth(1).area.tolist() == [200]
    assert dataset.truth(2).area.tolist() == [200]
    assert dataset.notes == (
        "1 of 8 boxes has a negative height and was left out: annotation 14.",
        "2 of 8 boxes have no area and were left out: annotations 13, 15.",
        "1 of 8 boxes has no part inside its photograph and was left out: annotation 12.",
        "1 of 8 boxes has parts up to 12 px outside its photograph and was cut: annotation 11.",
        "1 of 8 boxes has no 'area'; that of the box itself is taken: annotation 5.",
    )


def test_corners_instead_of_sides_are_suspected(read: Callable[[Any], BoxDataset]) -> None:
    found = record()
    found["annotations"] = [box(n, 30, 7, 30 + n, 30, 60, 40) for n in range(7)]
    *_, cut, hint = read(found).notes
    assert cut.endswith("annotations 0, 1, 2, 3, 4 and 2 more.")
    assert "[x1, y1, x2, y2]" in hint


def _set(*path: Any) -> Callable[[Record], None]:
    *where, key, value = path

    def change(found: Any) -> None:
        for step in where:
            found = found[step]
        found[key] = value

    return change


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_set("annotations", 2, "bbox", [1, 2, float("nan"), 4]), r"annotation 9 .*four finite"),
        (_set("annotations", 2, "bbox", [1, 2, float("inf"), 4]), r"annotation 9 .*four finite"),
        (_set("annotations", 2, "bbox", [1, 2, 10**400, 4]), r"annotation 9 .*four finite"),
        (_set("annotations", 2, "bbox", [1, 2, 3]), r"annotation 9 .*\[1, 2, 3\].*four finite"),
        (_set("annotations", 2, "bbox", [1, 2, "3", 4]), r"annotation 9 .*four finite"),
        (_set("annotations", 2, "bbox", [1, 2, True, 4]), r"annotation 9 .*four finite"),
        (_set("annotations", 2, "bbox", None), r"annotation 9 .*no 'bbox'.*classification"),
        (_set("annotations", 2, "area", float("nan")), r"annotation 9 .*area nan"),
        (_set("annotations", 2, "area", -1), r"annotation 9 .*area -1"),
        (_set("annotations", 2, "iscrowd", 2), r"annotation 9 .*iscrowd 2; expected 0 or 1"),
        (_set("annotations", 2, "id", 5), r"annotation id 5 stands twice"),
        (_set("annotations", 2, "id", "5"), r"annotation .* has the id '5'; expected a whole"),
        (_set("annotations", 2, "id", 2**63), r"annotation .* has the id 9223372036854775808"),
        (_set("annotations", 2, "image_id", 3), r"annotation 9 .*image_id 3.*one of its 3"),
        (_set("annotations", 2, "category_id", 1), r"annotation 9 .*category_id 1.*one of its 2"),
        (_set("annotations", 2, "category_id", True), r"annotation 9 .*category_id True"),
        (_set("annotations", {}), r"no list of objects under 'annotations'"),
        (_set("images", 1, "id", 30), r"image id 30 stands twice"),
        (_set("images", 1, "width", 0), r"width 0; expected pixels"),
        (_set("images", 1, "height", 48.0), r"height 48.0; expected pixels"),
        (_set("images", 1, "file_name", None), r"neither 'file_name' nor 'coco_url'"),
        (_set("images", 1, "neg_category_ids", [7]), r"1.jpg and 0.jpg .*federated sets"),
        (_set("images", 1, "neg_category_ids", 7), r"image 31 .* 7 under 'neg_category_ids'"),
        (_set("images", 1, "neg_category_ids", [8]), r"image 31 .* 8 .*ids of its 2 categories"),
        (_set("images", 1, "neg_category_ids", [[]]), r"image 31 .* \[\] .*ids of its 2"),
        (_set("images", []), r"annotation 5 .*image_id 32"),
        (_set("categories", 1, "id", 90), r"category id 90 stands twice"),
        (_set("categories", 1, "id", -1), r"category .* has the id -1"),
        (_set("categories", 1, "name", "lynx"), r"class name 'lynx' stands 2 times"),
        (_set("categories", 1, "name", " "), r"category .* has the name ' '"),
        (lambda found: found.pop("categories"), r"no 'categories', its keys are 'images', 'annot"),
        (lambda found: found.pop("annotations"), r"no 'annotations'"),
    ],
)
def test_what_is_wrong_is_said(
    read: Callable[[Any], BoxDataset], change: Callable[[Record], None], complaint: str
) -> None:
    found = record()
    read(found)  # the record itself is right
    change(found)
    with pytest.raises(DataError, match=complaint):
        read(found)


@pytest.mark.parametrize("content", ["", "[]", "{", '"images"', "[" * 100_000, "null"])
def test_other_files_are_refused(read: Callable[[Any], BoxDataset], content: str) -> None:
    with pytest.raises(DataError, match="expected a COCO or LVIS json"):
        read(content)


def test_no_image_and_no_file_are_refused(
    read: Callable[[Any], BoxDataset], tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="has no image"):
        read({"images": [], "annotations": [], "categories": [{"id": 1, "name": "cat"}]})
    with pytest.raises(DataError, match=r"gone\.json cannot be read"):
        read_boxes(tmp_path / "gone.json")


def test_federated_sets_become_labels(read: Callable[[Any], BoxDataset]) -> None:
    dataset = read(lvis())
    assert dataset.is_federated
    found = [(dataset.negative(at), dataset.not_exhaustive(at)) for at in range(3)]
    assert [(n.tolist(), e.tolist()) for n, e in found if n is not None and e is not None] == [
        ([0], []),
        ([1, 0], []),
        ([], [1]),
    ]
    assert dataset.class_table().rule.names == ("frequent", "common", "rare")


def test_training_counts_are_taken_only_where_they_make_the_groups(
    read: Callable[[Any], BoxDataset],
) -> None:
    found = lvis()
    for category, letter, count in zip(found["categories"], "cf", (100, 101), strict=True):
        category |= {"frequency": letter, "image_count": count}
    dataset = read(found)
    assert dataset.groups == ("common", "frequent")
    assert dataset.train_counts == (100, 101)
    assert dataset.class_table().counts == (100, 101)
    found["categories"][0]["image_count"] = 0  # of this split, which is not the training set
    dataset = read(found)
    assert dataset.groups == ("common", "frequent")
    assert dataset.train_counts is None
    assert dataset.class_table().counts == (0, 2)
    found["categories"][0]["frequency"] = "often"
    dataset = read(found)
    assert dataset.groups is None
    assert dataset.notes == (
        "The frequency 'often' of a class is none of LVIS's r, c and f: groups not read.",
    )


def test_masks_are_read_when_someone_asks(tmp_path: Path) -> None:
    path = tmp_path / "val.json"
    path.write_text(json.dumps(record()))
    asked, late = (read_boxes(path, photographs=False) for _ in range(2))
    assert asked.segmentations == {9: [[4.5, 4.5, 12, 4.5, 12, 12]]}
    path.unlink()
    assert 9 in asked.segmentations
    assert len(late.truth(0)) == 2
    with pytest.raises(DataError, match="cannot be read"):
        _ = late.segmentations
    assert drawn(BoxTruth.empty()).segmentations == {}


@pytest.mark.parametrize(
    ("folder", "url"),
    [
        ("images", ""),
        (".", ""),
        (".", "http://images.example/val2017/u{}.jpg"),
        ("images/val2017", "http://images.example/val2017/u{}.jpg"),
    ],
)
def test_photographs_are_found(tmp_path: Path, folder: str, url: str) -> None:
    found = record()
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / folder).mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(found["images"]):
        name = f"u{number}.jpg" if url else image["file_name"]
        draw_photo(number).save(tmp_path / "boxes" / folder / name)
        if url:
            image["coco_url"] = url.format(number)
    path = tmp_path / "boxes" / "val.json"
    path.write_text(json.dumps(found))
    dataset = read_boxes(path)
    assert dataset.load(2).shape == (48, 64, 3)
    root = path.parent / "images" if folder.startswith("images") else path.parent
    same(read_boxes(path, root), dataset)
    with pytest.raises(DataError, match=r"looked for .*0\.jpg.* in .*elsewhere.*--root"):
        read_boxes(path, tmp_path / "elsewhere")


def test_a_photograph_of_another_size_is_refused(tmp_path: Path) -> None:
    dataset = drawn(BoxTruth.empty())
    assert dataset.load(0).shape == (48, 64, 3)
    turned = replace(dataset.images[0], source=draw_photo(0).transpose(Image.Transpose.ROTATE_90))
    with pytest.raises(DataError, match=r"0\.jpg is 48 x 64 pixels, but turned says 64 x 48"):
        BoxDataset("turned", ("cat",), [turned], [BoxTruth.empty()]).load(0)
    gone = replace(dataset.images[0], source=tmp_path / "gone.jpg")
    with pytest.raises(ImageError):
        BoxDataset("gone", ("cat",), [gone], [BoxTruth.empty()]).load(0)


def test_a_data_set_made_by_hand_is_checked() -> None:
    good = truth((0, 0, 5, 5), labels=[1])
    assert len(drawn(good)) == 1
    for wrong, complaint in (
        (replace(good, labels=np.array([2])), "label 2 .* has no class; expected 0 to 1"),
        (replace(good, boxes=np.full((1, 4), np.nan, np.float32)), "not finite"),
        (replace(good, boxes=np.zeros((1, 4), np.float32)), "no area"),
    ):
        with pytest.raises(DataError, match=complaint):
            drawn(wrong)
    with pytest.raises(DataError, match="annotation id 0 stands 2 times"):
        drawn(good, good)
    with pytest.raises(DataError, match="2 classes and 1 groups"):
        drawn(good, groups=["rare"])
    with pytest.raises(DataError, match="1 images and boxes of 2"):
        BoxDataset("x", ("cat",), drawn(good).images, [good, good])
    with pytest.raises(DataError, match=r"shapes .*expected \(G, 4\)"):
        replace(good, crowd=np.zeros(2, np.bool_))
    with pytest.raises(DataError, match="has no class"):
        drawn(good, names=())
    with pytest.raises(DataError, match="is 0 x 48 pixels"):
        BoxDataset("x", ("cat",), [replace(drawn(good).images[0], width_px=0)], [BoxTruth.empty()])


_names = st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5, unique=True)
_side = st.floats(0, 300, width=32)


@st.composite
def datasets(draw: st.DrawFn) -> BoxDataset:
    names = draw(_names)
    labels = st.integers(0, len(names) - 1)
    ids = draw(
        st.lists(st.integers(0, 2**40), min_size=len(names), max_size=len(names), unique=True)
    )
    federated = draw(st.booleans())
    images, truths = [], []
    for number in range(draw(st.integers(1, 4))):
        corners = draw(st.lists(st.tuples(_side, _side, _side, _side), max_size=4))
        boxes = np.sort(np.array(corners, np.float32).reshape(-1, 2, 2), axis=1).reshape(-1, 4)
        boxes = boxes[(boxes[:, 2:] > boxes[:, :2] + 1e-3).all(axis=1)]
        count = len(boxes)
        exactly = {"min_size": count, "max_size": count}
        truths.append(
            BoxTruth(
                boxes,
                np.array(draw(st.lists(labels, **exactly)), np.int64),
                np.array(draw(st.lists(st.booleans(), **exactly)), np.bool_),
                np.array(draw(st.lists(st.floats(0, 1e6), **exactly)), np.float64),
                np.arange(count, dtype=np.int64) + 100 * number,
            )
        )
        sets = [
            np.array(draw(st.lists(labels, unique=True)), np.int64) if federated else None
            for _ in range(2)
        ]
        images.append(BoxImage(number, f"{number}.jpg", Path(f"{number}.jpg"), 300, 300, *sets))
    return BoxDataset("x", names, images, truths, category_ids=np.array(ids, np.int64))


@given(datasets())
def test_what_is_written_reads_back(
    tmp_path_factory: pytest.TempPathFactory, dataset: BoxDataset
) -> None:
    path = tmp_path_factory.getbasetemp() / "written.json"
    path.write_text(json.dumps(as_coco(dataset)))
    back = read_boxes(path, photographs=False)
    same(back, dataset)
    assert back.notes == ()
    assert back.counts().tolist() == dataset.counts().tolist()


@given(datasets(), st.data())
def test_names_decide_whatever_the_order(dataset: BoxDataset, data: st.DataObject) -> None:
    names = data.draw(st.permutations(dataset.class_names))
    aligned = align_boxes(dataset, names)
    assert aligned.class_names == tuple(names)
    there = [dataset.class_names.index(name) for name in names]
    assert np.array_equal(aligned.category_ids, dataset.category_ids[there])
    assert np.array_equal(aligned.counts(), dataset.counts()[there])
    assert np.array_equal(aligned.instances(), dataset.instances()[there])
    same(align_boxes(aligned, dataset.class_names), dataset)
    # The file itself in another order is the same data set, by name.
    found = as_coco(dataset)
    shuffled = {**found, "categories": [found["categories"][at] for at in there]}
    assert as_coco(aligned) == shuffled


def test_classes_that_one_side_lacks(read: Callable[[Any], BoxDataset]) -> None:
    found = lvis()
    found["categories"].append({"id": 3, "name": "stoat"})
    found["images"][0]["neg_category_ids"].append(3)
    for category in found["categories"]:
        category |= {"frequency": "r", "image_count": 1}
    dataset = read(found)
    with pytest.raises(
        DataError, match=r"does not know: 'cat'\..* of its 2 classes\. .*lacks 'Cat', 'dog'\. Did"
    ):
        align_boxes(dataset, ["Cat", "dog"])
    aligned = align_boxes(dataset, ["dog", "cat"])
    assert aligned.category_ids.tolist() == [-1, 7]
    assert [truth.labels.tolist() for truth in aligned.truths] == [[1], [], [1]]
    assert [s.tolist() for at in range(3) if (s := aligned.negative(at)) is not None] == [
        [],
        [1],
        [],
    ]
    assert aligned.groups is aligned.train_counts is None
    assert aligned.notes == (
        "2 classes of val.json without a box are not known to the model and left out: 'lynx', "
        "'stoat'.",
        "1 class of the model is not known to val.json and cannot be measured: 'dog'.",
    )
    assert aligned.segmentations == dataset.segmentations
    assert [one["id"] for one in as_coco(aligned)["categories"]] == [8, 7]
    reordered = align_boxes(dataset, ["stoat", "cat", "lynx"])
    assert reordered.train_counts == (1, 1, 1)
    assert reordered.groups == ("rare", "rare", "rare")


def test_classes_without_names_are_not_matched_by_order() -> None:
    with pytest.raises(DataError, match=r"2 classes have no names.*'cat', 'lynx'.*--classes"):
        align_boxes(drawn(truth((0, 0, 5, 5), labels=[1])), ["0", "1"])


@pytest.mark.parametrize(
    ("split", "images", "boxes"), [("train", 205, 2804), ("val", 87, 1137), ("test", 72, 945)]
)
def test_real_blood_cells(data_dir: Path, split: str, images: int, boxes: int) -> None:
    dataset = read_boxes(data_dir / "bccd" / f"{split}.json")
    assert (len(dataset), dataset.instances().sum()) == (images, boxes)
    assert dataset.class_names == ("Platelets", "RBC", "WBC")
    assert dataset.notes == ()
    assert dataset.load(images - 1).shape == (480, 640, 3)


def test_real_lvis(data_dir: Path) -> None:
    path = data_dir / "lvis" / "lvis_v0.5_val_100.json"
    found = json.loads(path.read_text())
    with pytest.raises(DataError, match=r"COCO_val2014_\d+\.jpg and \d+\.jpg and val2017/.*--root"):
        read_boxes(path)
    dataset = read_boxes(path, photographs=False)
    assert dataset.notes == ()
    assert dataset.train_counts is None  # the file counts its own hundred images
    assert dataset.counts().tolist() == [one["image_count"] for one in found["categories"]]
    assert dataset.instances().tolist() == [one["instance_count"] for one in found["categories"]]
    letters = [one["frequency"] for one in found["categories"]]
    assert [group[0] for group in dataset.groups or ()] == letters
    assert dataset.segmentations == {one["id"]: one["segmentation"] for one in found["annotations"]}
    written = as_coco(dataset)
    by_id = {one["id"]: one for one in written["annotations"]}
    for one in found["annotations"]:
        assert by_id[one["id"]]["bbox"] == pytest.approx(one["bbox"], abs=1e-4)
        assert by_id[one["id"]]["area"] == one["area"]
    for image, other in zip(written["images"], found["images"], strict=True):
        for key in ("neg_category_ids", "not_exhaustive_category_ids"):
            assert image[key] == other[key]


def test_the_training_counts_of_lvis_make_its_groups(
    data_dir: Path, read: Callable[[Any], BoxDataset]
) -> None:
    lines = (data_dir / "lvis" / "lvis_v1_categories.csv").read_text().splitlines()
    categories = [
        {
            "id": number,
            "name": f"class {number}",
            "frequency": line.rsplit(",", 3)[1],
            "image_count": int(line.rsplit(",", 3)[2]),
        }
        for number, line in enumerate(lines[1:], start=1)
    ]
    dataset = read({**record(), "annotations": [], "categories": categories})
    assert len(dataset.class_names) == 1203
    assert dataset.train_counts is not None
    assert (min(dataset.train_counts), dataset.counts().sum()) == (1, 0)
