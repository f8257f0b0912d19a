"""``ltdeploy train``: what it refuses, what its help and its lines say, and --resume."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from box_samples import ARCH, write_boxes

from ltdeploy.models.detectors.design import DESIGNS
from ltdeploy.training.box_schedule import BoxTrainOptions
from ltdeploy.training.loop import TrainOptions

Cli = Callable[..., tuple[int, str, str]]
FAST = ("--epochs", "2", "--batch-size", "2", "--proposals", "16", "--canvas", "64x96")


@pytest.fixture(scope="module")
def boxes(module_folder: Path) -> Path:
    return write_boxes(module_folder, images=4)


def trained(cli: Cli, boxes: Path, *more: str) -> tuple[int, str, str]:
    return cli("train", "--data", boxes, "--arch", ARCH, "--out", "x.pt", *FAST, *more)


@pytest.mark.parametrize(
    ("canvas", "complaint"),
    [
        ("0x0", "--canvas is '0x0': height_px is 0; expected"),
        ("64x9000", "--canvas is '64x9000': width_px is 9000; expected"),
        ("1x1", "The canvas is 1x1; expected both sides to be 64 pixels or more, one cell of the"),
        ("96x63", "The canvas is 96x63; expected both sides to be 64 pixels or more"),
        ("64", "--canvas is '64'; expected HEIGHTxWIDTH"),
    ],
)
def test_canvases_that_nothing_is_found_on(
    cli: Cli, boxes: Path, canvas: str, complaint: str
) -> None:
    code, _, text = trained(cli, boxes, "--canvas", canvas)
    assert code == 2
    assert complaint in text
    assert "--canvas" in text
    assert not Path("x.pt").exists()


@pytest.mark.parametrize("root", [(), ("--root", "photographs")])
def test_a_json_of_boxes_for_a_classifier(cli: Cli, boxes: Path, root: tuple[str, ...]) -> None:
    code, _, text = cli("train", "--data", boxes, "--arch", "timm:resnet18", "--out", "x.pt", *root)
    assert code == 2
    assert "a COCO or LVIS json of boxes needs a detector's architecture" in text
    (named,) = re.findall(r"for example torchvision:(\w+)\.", text)
    assert named in DESIGNS
    assert "--root" not in text


def test_help_shows_the_defaults_that_are_used(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    _, text, _ = cli("train", "--help")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    images, of_boxes = TrainOptions(), BoxTrainOptions()
    for name in ("epochs", "batch_size", "learning_rate"):
        (line,) = [one for one in plain.splitlines() if f"--{name.replace('_', '-')} " in one]
        default = f"{getattr(images, name)}, of detectors {getattr(of_boxes, name)}"
        assert f"[default: ({default})]" in line
    from ltdeploy.models.detectors.architectures import ARCHITECTURES

    large, small = (
        ARCHITECTURES[f"fasterrcnn_mobilenet_v3_large{size}_fpn"].canvas() for size in ("", "_320")
    )
    sizes = [f"{one.height_px}x{one.width_px}" for one in (large, small)]
    assert "[default: ({}, of those with _320 {})]".format(*sizes) in plain
    assert "ckpt.pt.resume" in plain
    (line,) = [one for one in plain.splitlines() if "--root" in one]
    assert ".txt" in line
    assert ".json" in line


def test_a_line_per_epoch_where_no_terminal_is(cli: Cli, boxes: Path) -> None:
    code, said, lines = trained(cli, boxes, "--json", "-", "--resume")
    assert code == 0
    told = json.loads(said)  # nothing else is on stdout
    note, *lines = [line for line in lines.splitlines() if line.startswith(("Note", "Epoch"))]
    assert note == "Note     There is no x.pt.resume to go on with; it starts anew."
    assert [line.partition(",")[0] for line in lines] == [
        f"Epoch {number + 1} of 2: loss {one['total']:.3f}"
        for number, one in enumerate(told["losses"])
    ]
    code, said, text = trained(cli, boxes, "-q")
    assert (code, said, text) == (0, "", "")

    finished = Path("x.pt").read_bytes()
    code, _, text = trained(cli, boxes, "--resume")
    assert code == 2
    assert "x.pt is finished: there is no x.pt.resume to go on with" in text
    assert Path("x.pt").read_bytes() == finished


def test_on_a_terminal_the_bar_is_enough(
    cli: Cli, photo_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("train", "--data", photo_folder, "--arch", "cifar:resnet20", "--out", "x.pt")
    command += ("--epochs", "2", "--batch-size", "2", "--image-size", "32")
    assert cli(*command)[2].count("Epoch") == 2  # classifiers tell of them too
    monkeypatch.setattr(type(sys.stderr), "isatty", lambda _: True, raising=False)
    assert "Epoch" not in cli(*command)[2]


def test_the_negative_side_of_a_box_is_named(cli: Cli, boxes: Path) -> None:
    found: dict[str, Any] = json.loads(boxes.read_text())
    sides = ([-5, 20], [5, -20], [-5, -20], [0, 20], [5, 20])
    for number, side in enumerate(sides):
        one = {**found["annotations"][0], "id": 100 + number, "bbox": [10, 10, *side]}
        found["annotations"].append(one)
    path = boxes.with_name("negative.json")
    path.write_text(json.dumps(found))
    total = len(found["annotations"])
    # A canvas that is refused later: it is about what reading says.
    command = ("train", "--arch", ARCH, "--out", "x.pt", "--canvas", "1x1", "--data", path)
    assert [line for line in cli(*command)[1].splitlines() if line.startswith("Note")] == [
        f"Note     1 of {total} boxes has {what} and was left out: annotation {name}."
        for what, name in (
            ("a negative width and height", 102),
            ("a negative width", 100),
            ("a negative height", 101),
            ("no area", 103),
        )
    ]


def outlined(boxes: Path, first: list[float]) -> Path:
    """Write the file with boxes' corners as polygons; that of the first object as told."""
    found: dict[str, Any] = json.loads(boxes.read_text())
    for one in found["annotations"]:
        x, y, width, height = one["bbox"]
        corners = [x, y, x + width, y, x + width, y + height, x, y + height]
        one["segmentation"] = [corners if one["id"] > 1 else first]
    path = boxes.with_name("outlined.json")
    path.write_text(json.dumps(found))
    return path


def test_a_photograph_with_masks_elsewhere_is_named_at_the_end(cli: Cli, boxes: Path) -> None:
    x, y, *_ = json.loads(boxes.read_text())["annotations"][0]["bbox"]
    away = [140, 100, 159, 100, 159, 119] if x < 60 or y < 40 else [1, 1, 9, 1, 9, 9]
    command = ("train", "--arch", "torchvision:maskrcnn_mobilenet_v3_small_320_fpn")
    command += ("--out", "x.pt", *FAST, "--epochs", "1", "--data")
    code, said, text = cli(*command, outlined(boxes, away))
    assert code == 2
    assert "on 3 images" in said
    assert (
        "Annotation 1 of 0-0.png in outlined.json has a segmentation wholly outside its box" in text
    )
    assert "1 image could not be read and was left out" in text
    assert Path("x.pt").exists()
    code, said, _ = cli(*command, outlined(boxes, [x, y, x + 9, y, x + 9, y + 9]))
    assert (code, "on 4 images" in said) == (0, True)  # the control
