"""``export --precision`` of a detector as a user types it: what it says, writes and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx_detector_samples as samples
import pytest
from box_samples import write_boxes, write_detector

from ltdeploy.bundle import open_bundle
from ltdeploy.cli.main import app
from ltdeploy.cli.runtime import run

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(module_folder: Path) -> Path:
    """Return a folder with a checkpoint and two data sets."""
    folder = module_folder
    write_detector(folder / "det.pt")
    write_boxes(folder, seed=0)
    write_boxes(folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with fp16.ltd, of an ONNX detector, its photographs and others."""
    folder = tmp_path_factory.mktemp("low")
    data = samples.write_all(folder)
    write_boxes(folder, seed=1)
    command = ["export", folder / "y.onnx", "--outputs", folder / "outputs.json"]
    command += ["--classes", folder / "classes.csv", "--precision", "fp16"]
    command += ["--engine", "onnxruntime", "--val", data, "--out", folder / "fp16.ltd", "-q"]
    assert run(app, [str(part) for part in command]) == 0
    return folder


def test_a_gated_int8_bundle_with_everything_written(cli: Cli, made: Path) -> None:
    data = made / "boxes-0.json"
    code, out, _ = cli(
        *("export", made / "det.pt", "--canvas", "64x96", "--precision", "int8"),
        *("--calibration", data, "--calibration-images", "6", "--val", data),
        *("--engine", "openvino", "--margin", "90", "--html", "trade.html", "--json", "r.json"),
    )
    assert code == 3  # three photographs of the rare class decide nothing
    assert "64×96" in out
    assert "ranges from 6 images of 3 classes of boxes-0.json" in out
    assert "in points of average precision, on 12 images of boxes-0.json" in out
    assert "speed against the float32 graph on openvino-cpu" in out
    assert "--data BOXES.json   (other images than chose it)" in out
    result = json.loads(Path("r.json").read_text())
    assert (result["task"], result["precision"]) == ("detection", "int8")
    assert result["groups"] == {"many": 2, "medium": 0, "few": 1}
    (chosen,) = [trial for trial in result["lowering"]["trials"] if trial["chosen"]]
    assert set(chosen["groups"]) == {"overall", "many", "few"}
    page = Path("trade.html").read_text()
    assert "Speed against average precision" in page
    assert "class-averaged accuracy" not in page
    lowering = open_bundle("det.ltd").manifest.graphs[0].lowering
    assert lowering is not None
    assert lowering.gate is not None
    code, _, err = cli("verify", "det.ltd", "--data", data)
    assert (code, "chose the fix or the precision" in err) == (2, True)
    code, out, _ = cli("inspect", "det.ltd")
    assert "int8, opset" in out
    assert "ranges from 6 images; gate: inconclusive on 12 images" in out


def test_precision_that_no_engine_here_computes_is_told(cli: Cli, low: Path) -> None:
    other = low / "boxes-1.json"
    code, out, err = cli(
        *("verify", low / "fp16.ltd", "--data", other, "--engine", "onnxruntime"),
        *("--json", "v.json", "--html", "v.html"),
    )
    assert code in (0, 3)
    assert "onnxruntime-cpu computes fp16 in float32" in err
    assert "As float32 on this processor, which says nothing of fp16, " in out
    assert json.loads(Path("v.json").read_text())["not_computed"] == "fp16"
    code, out, err = cli("compare", low / "fp16.ltd", low / "fp16.ltd", "--data", other)
    assert "computes fp16 in float32" in err
    photograph = low / "images" / "1-0.png"
    assert cli("predict", low / "fp16.ltd", photograph, "--engine", "onnxruntime")[0] == 0
    assert "fp16, opset" in cli("inspect", low / "fp16.ltd")[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "int8"], "--calibration DATA"),
        (["--precision", "int8", "--calibration", "nowhere.json"], "nowhere.json"),
        (["--precision", "bf16", "--html", "a.html"], "--val DATA"),
        (["--precision", "bf16", "--engine", "onnxruntime"], "use --engine openvino"),
        (["--precision", "bf16", "--calibration", "boxes-0.json"], "--precision is bf16"),
        (["--val", "boxes-0.json", "--margin", "2"], "--margin does nothing here"),
    ],
)
def test_what_does_not_go_together(cli: Cli, made: Path, arguments: list[str], words: str) -> None:
    shutil.copy(made / "boxes-0.json", "boxes-0.json")
    code, _, err = cli("export", made / "det.pt", *arguments)
    assert code == 2
    assert words in err
    assert not Path("det.ltd").exists()
