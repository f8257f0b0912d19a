"""Detectors on data that say nothing, class tables in another order, a team's own tests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx_detector_samples as samples
import pytest
from box_samples import NAMES, write_detector

from ltdeploy.classes import ClassTable
from ltdeploy.datasets import open_boxes
from ltdeploy.datasets.labels import read_class_csv
from ltdeploy.errors import DataError
from ltdeploy.export.detection.detector_export import export_detector
from ltdeploy.fixes import FixSpec
from ltdeploy.models.detectors.detector import load_detector
from ltdeploy.models.detectors.onnx_mapping import read_mapping
from ltdeploy.models.loading import load_model
from ltdeploy.models.options import LoadOptions
from ltdeploy.testing import assert_tail_maintained

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(module_folder: Path) -> Path:
    """Return a folder with photographs, a bundle, and one whose fix moves its scores."""
    samples.write_all(module_folder, batch="n")
    options = LoadOptions(classes=read_class_csv(module_folder / "classes.csv"))
    told = read_mapping(module_folder / "outputs.json")
    model = load_model(module_folder / "y.onnx", options=options, outputs=told)
    export_detector(model, [], module_folder / "y.ltd")  # type: ignore[arg-type]
    away = [FixSpec("odds", {"gamma": 3.0})]
    export_detector(model, away, module_folder / "away.ltd")  # type: ignore[arg-type]
    return module_folder


def test_photographs_without_objects_prove_nothing(cli: Cli, made: Path) -> None:
    content = json.loads((made / "boxes-0.json").read_text())
    content["annotations"] = []
    (made / "empty.json").write_text(json.dumps(content))
    code, said, error = cli("verify", made / "y.ltd", "--data", made / "empty.json")
    assert code == 2
    assert "PASS" not in said
    assert "No photograph of empty.json holds an object to find" in error


def test_a_rarest_group_without_a_class_is_said(cli: Cli, made: Path) -> None:
    rows = [(name, 300) for name in (*NAMES, "star")]
    table = "".join(f"{name},{count}\n" for name, count in rows)
    Path("many.csv").write_text(f"name,train_count\n{table}")
    export = ("export", made / "y.onnx", "--outputs", made / "outputs.json", "--out", "m.ltd")
    assert cli(*export, "--classes", "many.csv")[0] == 0
    code, _, error = cli("verify", "m.ltd", "--data", made / "boxes-0.json")
    assert code == 0, error
    assert "no class is in the group few: the rarest, disc, has 300 training images" in error
    assert "no class is in" not in cli("verify", made / "y.ltd", "--data", made / "boxes-0.json")[2]


def test_a_team_s_own_test_takes_detectors(made: Path) -> None:
    data = made / "boxes-0.json"
    assert assert_tail_maintained(made / "y.ltd", data).verdict == "pass"
    assert assert_tail_maintained(made / "y.ltd", open_boxes(str(data))).verdict == "pass"
    with pytest.raises(AssertionError, match=r"(?s)margin of 0\.001 AP.*candidate.*overall"):
        assert_tail_maintained(made / "away.ltd", data, reference=made / "y.ltd", margin=0.001)


def test_classes_go_by_the_names_that_the_file_holds(tmp_path: Path) -> None:
    path = write_detector(tmp_path / "det.pt")
    turned = ClassTable(tuple(reversed(NAMES)), (8, 150, 300))
    loaded = load_detector(path, options=LoadOptions(classes=turned))
    assert loaded.classes == ClassTable(NAMES, (300, 150, 8))
    assert any("into the order of the names in the file" in note for note in loaded.source.notes)
    other = ClassTable(("a", "b", "c"), (300, 150, 8))
    loaded = load_detector(path, options=LoadOptions(classes=other))
    assert any("Warning: the file names other classes" in note for note in loaded.source.notes)
    fewer = ClassTable(NAMES, (30, 15, 8))
    loaded = load_detector(path, options=LoadOptions(classes=fewer))
    assert any("training counts given differ" in note for note in loaded.source.notes)
    same = load_detector(path, options=LoadOptions(classes=ClassTable(NAMES, (300, 150, 8))))
    assert same.source.notes == load_detector(path).source.notes


def test_the_wrong_kind_of_data_is_named(made: Path) -> None:
    with pytest.raises(DataError):
        assert_tail_maintained(made / "y.ltd", made / "images")
