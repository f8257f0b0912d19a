"""``export --precision`` as a user types it: what it says, writes and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import draw_photo

from ltdeploy.bundle import open_bundle

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, checkpoint: Path) -> None:
    """Lay out ckpt.pt, train/ and val/, three pictures of each class."""
    shutil.copy(checkpoint, tmp_path / "ckpt.pt")
    for split, first in (("train", 0), ("val", 100)):
        for label in range(6):
            folder = tmp_path / split / f"species {label}"
            folder.mkdir(parents=True)
            for number in range(3):
                photo = draw_photo(first + 10 * label + number, 32, 32)
                photo.save(folder / f"{number}.png")


def test_a_gated_int8_bundle_with_everything_written(cli: Cli) -> None:
    code, out, _ = cli(
        *("export", "ckpt.pt", "--tau", "0.7", "--precision", "int8"),
        *("--calibration", "train", "--val", "val", "--margin", "40"),
        *("--html", "trade.html", "--json", "result.json"),
    )
    assert code in (0, 3)  # eighteen images rarely decide
    assert "ranges from 18 images of 6 classes of train" in out
    assert "speed against the float32 graph on openvino-cpu" in out
    assert "--data DATA   (other images than chose it)" in out
    result = json.loads(Path("result.json").read_text())
    assert result["precision"] == "int8"
    chosen = [trial for trial in result["lowering"]["trials"] if trial["chosen"]]
    assert len(chosen) == 1
    assert set(chosen[0]["groups"]) == {"overall", "many", "medium", "few"}
    assert (code == 3) == (chosen[0]["verdict"] == "inconclusive")
    assert Path("trade.html").read_text().startswith("<!doctype html>")
    manifest = open_bundle("ckpt.ltd").manifest
    assert manifest.graphs[0].lowering is not None
    # The images that chose the precision must not be those that prove it.
    code, _, err = cli("verify", "ckpt.ltd", "--data", "val")
    assert code == 2
    assert "chose" in err


def test_an_ungated_bundle_says_so(cli: Cli) -> None:
    code, out, _ = cli("export", "ckpt.pt", "--precision", "bf16")
    assert code == 0
    assert "not gated: with --val DATA" in out
    assert "other images" not in out
    assert cli("verify", "ckpt.ltd", "--data", "val")[0] in (0, 1, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--precision", "int9"], "Did you mean 'int8'"),
        (["--precision", "int8"], "--calibration DATA"),
        (["--calibration", "train"], "--precision is fp32"),
        (["--calibration", "train", "--precision", "bf16"], "--precision is bf16"),
        (["--engine", "openvino"], "verify NAME.ltd"),
        (["--precision", "bf16", "--val", "val", "--search-seconds", "nan"], "expected 0 or more"),
        (["--precision", "bf16", "--search-seconds", "5"], "--search-seconds does nothing here"),
        (["--tau", "auto", "--val", "val", "--search-seconds", "5"], "does nothing here"),
        (["--margin", "2"], "--margin does nothing here"),
        (["--precision", "bf16", "--margin", "2"], "--margin does nothing here"),
        (["--calibration-images", "9"], "--calibration-images does nothing here"),
        (["--precision", "bf16", "--calibration-images", "9"], "does nothing here"),
        (["--precision", "fp16", "--calibration-images", "9"], "does nothing here"),
        (["--val", "val"], "--precision below fp32"),
        (["--precision", "bf16", "--html", "a.html"], "--val DATA"),
        (["--precision", "bf16", "--val", "val", "--margin", "0"], "margin is 0"),
        (["--precision", "bf16", "--engine", "onnxruntime"], "use --engine openvino"),
        (["--precision", "bf16", "--engine", "tensorrt"], "afterwards"),
        (["--precision", "bf16", "--engine", "openvin"], "Did you mean"),
        (["--precision", "int8", "--calibration", "nowhere"], "nowhere"),
        (
            ["--precision", "int8", "--calibration", "train", "--calibration-images", "0"],
            "expected 1 or more",
        ),
    ],
)
def test_what_does_not_go_together(cli: Cli, arguments: list[str], words: str) -> None:
    code, _, err = cli("export", "ckpt.pt", *arguments)
    assert code == 2
    assert words in err
    assert not Path("ckpt.ltd").exists()


def test_time_that_runs_out_leaves_nothing_half_done(cli: Cli) -> None:
    arguments = ["export", "ckpt.pt", "--precision", "int8", "--calibration", "train"]
    code, _, err = cli(*arguments, "--val", "val", "--search-seconds", "0")
    assert code == 2
    assert "run the same command again" in err
    assert not Path("ckpt.ltd").exists()


def test_unreadable_calibration_images_are_named(cli: Cli) -> None:
    Path("train/species 0/0.png").write_bytes(b"no image")
    code, _, err = cli("export", "ckpt.pt", "--precision", "int8", "--calibration", "train")
    assert code == 2
    assert "species 0/0.png" in err
    assert Path("ckpt.ltd").exists()


def test_scaled_decoding_is_declared_and_measured(cli: Cli) -> None:
    assert cli("export", "ckpt.pt", "--resize", "36", "--jpeg-scaling")[0] == 0
    assert open_bundle("ckpt.ltd").preprocessing.jpeg_scaling
    assert cli("verify", "ckpt.ltd", "--data", "val")[0] == 0  # no JPEG here: the same pixels
    out = cli("export", "ckpt.pt", "--resize", "36", "--jpeg-scaling")[1]
    assert "Scaling  of JPEG files declared, not gated" in out


def test_scaled_decoding_is_gated_in_float32(cli: Cli) -> None:
    scaled = ("export", "ckpt.pt", "--resize", "36", "--jpeg-scaling", "--val", "val")
    code, out, _ = cli(*scaled, "--json", "result.json")
    assert code == 0
    assert "Scaling  of JPEG files alone, in float32, changes overall 0.00" in out
    assert "gate: pass" in out
    told = json.loads(Path("result.json").read_text())["scaling"]
    assert (told["verdict"], told["images"], told["flips"]) == ("pass", 18, 0)
    code, _, err = cli("verify", "ckpt.ltd", "--data", "val")
    assert (code, "chose" in err) == (2, True)
    code, out, _ = cli(*scaled, "--precision", "bf16", "--margin", "50", "--html", "trade.html")
    assert code in (0, 3)
    assert "Scaling " in out
    assert "Lowered " in out
    assert "Scaled decoding" in Path("trade.html").read_text()


def test_fp16_says_what_its_range_was_checked_on(cli: Cli) -> None:
    _, _, err = cli("export", "ckpt.pt", "--precision", "fp16")
    assert "golden samples alone, 8 of drawn pictures" in err
    lowering = open_bundle("ckpt.ltd").manifest.graphs[0].lowering
    assert lowering is not None
    assert lowering.calibration is None
    _, out, err = cli("export", "ckpt.pt", "--precision", "fp16", "--val", "val")
    assert "golden samples" not in err
    assert "ranges from 18 images of 6 classes of val" in out
    lowering = open_bundle("ckpt.ltd").manifest.graphs[0].lowering
    assert lowering is not None
    assert lowering.calibration is not None
    assert lowering.calibration.name == "val"
    assert cli("verify", "ckpt.ltd", "--data", "val")[0] == 2  # they chose what is float32


def without(split: str, *labels: int) -> None:
    for label in labels:
        for picture in Path(split, f"species {label}").iterdir():
            picture.unlink()
        Path(split, f"species {label}").rmdir()


def test_a_gate_that_cannot_see_the_tail_is_refused(cli: Cli) -> None:
    without("val", 4, 5)
    code, _, err = cli("export", "ckpt.pt", "--precision", "bf16", "--val", "val")
    assert code == 2
    assert "has no image of the few group" in err


def test_a_group_without_images_is_named(cli: Cli) -> None:
    without("val", 2, 3)
    code, out, _ = cli("export", "ckpt.pt", "--precision", "bf16", "--val", "val", "--margin", "90")
    assert code == 3
    assert "none of the 2 medium classes have images, too few to speak for the group" in out
    assert "cannot decide on so few images" not in out


def test_a_cache_that_cannot_be_written_costs_nothing_but_resuming(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LTDEPLOY_CACHE", "ckpt.pt/nope")
    with pytest.warns(RuntimeWarning, match="cannot be resumed"):
        code, _, _ = cli(
            "export", "ckpt.pt", "--precision", "bf16", "--val", "val", "--margin", "90"
        )
    assert code in (0, 3)


def test_help_says_which_layers_are_lowered(cli: Cli) -> None:
    out = " ".join(cli("export", "--help")[1].replace("│", " ").split())
    assert "all layers but the head, and in int8 the first" in out
