"""Detectors on the command line: export, verify, compare, predict, inspect, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from box_samples import NAMES, write_boxes, write_detector

from ltdeploy.cli.main import app
from ltdeploy.cli.runtime import run

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(module_folder: Path) -> Path:
    """Return a folder with a checkpoint, two data sets and the bundle of the checkpoint."""
    folder = module_folder
    write_detector(folder / "det.pt")
    write_boxes(folder, seed=0)
    write_boxes(folder, seed=1)
    command = ["export", folder / "det.pt", "--fix", "norcal:gamma=0.4"]
    command += ["--val", folder / "boxes-0.json", "--out", folder / "det.ltd", "-q"]
    assert run(app, [str(part) for part in command]) == 0
    return folder


def test_verify_tells_groups_json_and_page(cli: Cli, made: Path) -> None:
    data = made / "boxes-1.json"
    code, said, _ = cli("verify", made / "det.ltd", "--data", data, "--json", "v.json")
    told = json.loads(Path("v.json").read_text())
    assert code == 0
    assert said.count("pass") >= 2
    assert "PASS  The tail survived: reference and candidate find the same boxes" in said
    assert (told["task"], told["verdict"], told["images"]) == ("detection", "pass", 12)
    assert [one["name"] for one in told["classes"]] == list(NAMES)
    assert told["groups"]["few"]["classes"] == 1
    assert told["overall"]["unfixed"] is not None
    assert "<svg" in (made / "det.ltd" / "report.html").read_text()


def test_verify_fails_a_bundle_that_lost_a_class(cli: Cli, made: Path) -> None:
    write_detector(Path("other.pt"), seed=5)
    data = made / "boxes-1.json"
    code, said, _ = cli("compare", "other.pt", made / "det.ltd", "--data", data, "--margin", "0.1")
    assert code in (1, 3)
    assert "PASS" not in said


def test_predict_writes_boxes(cli: Cli, made: Path) -> None:
    photographs = made / "images"
    code, said, _ = cli("predict", made / "det.ltd", photographs, "--out", "b.parquet")
    assert (code, said.splitlines()[0]) == (0, "Wrote 24 answers and 0 errors to b.parquet.")
    table = pq.read_table("b.parquet")
    assert table.column_names == ["input", "boxes", "error"]
    found = [box for row in table["boxes"].to_pylist() for box in row]
    assert found
    assert {box["name"] for box in found} <= set(NAMES)
    assert all(len(box["box"]) == 4 for box in found)
    code, said, _ = cli("predict", made / "det.ltd", photographs / "0-1.png", "--top-k", "2")
    assert code == 0
    assert len([line for line in said.splitlines() if "[" in line]) <= 2


def test_inspect_knows_a_detector(cli: Cli, made: Path) -> None:
    code, said, _ = cli("inspect", made / "det.pt", "--json", "i.json")
    assert code == 0
    assert "a detector" in said
    assert "Nothing is missing" in said
    assert json.loads(Path("i.json").read_text())["background"] == 0


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--jpeg-scaling",), "is a detector, and --jpeg-scaling is for classifiers"),
        (("--tau", "0.7"), "20.98"),
        (("--mean", "0,0,0", "--image-size", "64"), "--image-size, --mean is for classifiers"),
        (("--head-scale", "3"), "--head-scale is for classifiers"),
        (("--fix", "norcal:gamma=auto", "--val", "boxes-0.json"), "calibrate"),
        (("--canvas", "wide"), "--canvas is 'wide'; expected HEIGHTxWIDTH"),
    ],
)
def test_what_a_detector_does_not_take(
    cli: Cli, made: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    told = [str(made / one) if one.endswith(".json") else one for one in arguments]
    code, _, text = cli("export", made / "det.pt", *told)
    assert code == 2
    assert complaint in text
    assert not Path("det.ltd").exists()


def test_boxes_are_needed_and_only_for_detectors(
    cli: Cli, made: Path, photo_folder: Path, bundle_path: Path
) -> None:
    code, _, text = cli("verify", made / "det.ltd", "--data", photo_folder)
    assert (code, "a detector needs them" in text) == (2, True)
    shutil.copytree(bundle_path, "class.ltd")
    code, _, text = cli("verify", "class.ltd", "--data", made / "boxes-0.json")
    assert (code, "which detectors need" in text) == (2, True)
