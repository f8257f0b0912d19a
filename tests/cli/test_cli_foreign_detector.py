"""ONNX detectors on the command line: from inspect's proposal to a verdict, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnx_detector_samples as samples
import pytest
from box_samples import write_detector

from ltdeploy.cli.main import app
from ltdeploy.cli.runtime import run

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with an ONNX detector, its mapping, photographs, classes and a bundle."""
    folder = tmp_path_factory.mktemp("foreign")
    data = samples.write_all(folder)
    samples.write(samples.classifier(), folder / "c.onnx")
    command = ["export", folder / "y.onnx", "--outputs", folder / "outputs.json", "--fix"]
    command += ["odds:gamma=0.4", "--classes", folder / "classes.csv", "--val", data]
    command += ["--out", folder / "y.ltd", "-q"]
    assert run(app, [str(part) for part in command]) == 0
    return folder


def test_inspect_proposes_a_mapping_that_inspect_takes(cli: Cli, made: Path) -> None:
    code, said, _ = cli("inspect", made / "y.onnx", "--json", "seen.json")
    assert code == 0
    assert "it looks like a detector's" in said
    assert "Gives          output0 [1, 8, 80]" in said
    assert "Missing for export:\n  --outputs FILE\n  --classes FILE" in said
    proposed = said[said.index("{") : said.index("}\nMissing") + 1]
    seen = json.loads(Path("seen.json").read_text())
    assert json.loads(proposed) == seen["mapping"]
    assert seen["mapping"]["layout"] == "yolov8"
    Path("mine.json").write_text(proposed)
    code, said, _ = cli("inspect", made / "y.onnx", "--outputs", "mine.json", "--json", "in.json")
    assert code == 0
    assert "4 columns × 20 features, sigmoid, background none" in said
    assert json.loads(Path("in.json").read_text())["canvas"]["fill"] == [114, 114, 114]


def test_a_classifier_is_inspected_as_before(cli: Cli, made: Path) -> None:
    code, said, _ = cli("inspect", made / "c.onnx")
    assert code == 0
    assert "a detector" not in said
    assert "4 classes × 12 features" in said


def test_the_bundle_tells_verify_what_the_outputs_hold(cli: Cli, made: Path) -> None:
    data = made / "boxes-0.json"
    code, said, _ = cli("verify", made / "y.ltd", "--data", data, "--json", "v.json")
    assert code == 0
    assert "against y.onnx on onnxruntime-cpu (original graph)" in said
    assert json.loads(Path("v.json").read_text())["verdict"] == "pass"


def test_compare_takes_the_file_and_its_mapping(cli: Cli, made: Path) -> None:
    data, told = made / "boxes-0.json", made / "outputs.json"
    code, said, _ = cli(
        "compare", made / "y.onnx", made / "y.ltd", "--data", data, "--outputs", told
    )
    assert code == 0
    assert "PASS" in said
    write_detector(Path("other.pt"))
    code, _, complaint = cli(
        "compare", "other.pt", made / "y.ltd", "--data", data, "--outputs", told
    )
    assert code == 2
    assert "--outputs is for ONNX files" in complaint
    code, _, complaint = cli(
        "compare", made / "y.ltd", made / "y.ltd", "--data", data, "--outputs", told
    )
    assert code == 2
    assert "is a bundle" in complaint


def test_another_canvas_in_the_mapping_is_not_passed_over(cli: Cli, made: Path) -> None:
    told = json.loads((made / "outputs.json").read_text())
    told["canvas"]["fit"] = "centre"
    Path("centre.json").write_text(json.dumps(told))
    data = ("--data", made / "boxes-0.json", "--outputs", "centre.json")
    for command in (("verify", made / "y.ltd"), ("compare", made / "y.onnx", made / "y.ltd")):
        code, _, complaint = cli(*command, *data)
        assert code == 2
        assert "looks at canvases of" in complaint


def test_what_calibrate_says_next_can_be_typed(cli: Cli, made: Path) -> None:
    told = Path("my outputs.json")
    told.write_text((made / "outputs.json").read_text())
    given = ("--classes", made / "classes.csv", "--method", "odds", "--out", "a fix.json")
    code, said, _ = cli(
        "calibrate", made / "y.onnx", "--val", made / "boxes-0.json", "--outputs", told, *given
    )
    assert code == 0
    assert "a fix.json' " in said
    assert "--outputs 'my outputs.json'" in said


def test_calibrate_chooses_for_it_and_says_how_to_go_on(cli: Cli, made: Path) -> None:
    told = made / "outputs.json"
    given = ("--outputs", told, "--classes", made / "classes.csv", "--method", "odds")
    code, said, _ = cli("calibrate", made / "y.onnx", "--val", made / "boxes-0.json", *given)
    assert code == 0
    assert "odds" in said
    assert f"export --fix fix.json {made / 'y.onnx'} --outputs {told}" in said


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        (("export", "y.onnx"), "looks like a detector's"),
        (("calibrate", "y.onnx", "--val", "boxes-0.json"), "with --outputs FILE.json"),
        (("export", "y.onnx", "--outputs", "outputs.json"), "--classes FILE"),
        (("export", "y.onnx", "--outputs", "absent.json"), "cannot be read"),
        (("export", "c.onnx", "--outputs", "outputs.json"), "the layout 'yolov8' is"),
        (("inspect", "y.pt", "--outputs", "outputs.json"), "is none; leave it out"),
        (
            ("export", "y.onnx", "--outputs", "outputs.json", "--classes", "classes.csv",
             "--canvas", "96x96"),
            "takes canvases of 64×64 pixels",
        ),
        (
            ("export", "y.onnx", "--outputs", "outputs.json", "--arch", "torchvision:ssd"),
            "is a detector, and --arch is for files of weights",
        ),
    ],
)  # fmt: skip
def test_what_is_missing_or_wrong_is_said(
    cli: Cli, made: Path, command: tuple[str, ...], complaint: str
) -> None:
    name, *rest = command
    there = [str(made / part) if part.endswith((".onnx", ".json", ".csv", ".pt")) else part
             for part in rest]  # fmt: skip
    code, _, said = cli(name, *there)
    assert code == 2
    assert complaint in said
