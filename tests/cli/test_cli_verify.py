"""What verify prints: what ran, what was lost and what the words mean."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import draw_photo, write_checkpoint

from ltdeploy.export import PrecisionRequest, export_bundle
from ltdeploy.models.classifier import load_checkpoint

Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three pictures of each class of ``checkpoint``."""
    folder = tmp_path / "photos" / "val"
    for label in range(6):
        (folder / f"species {label}").mkdir(parents=True)
        for number in range(3):
            photo = draw_photo(10 * label + number, 32, 32)
            photo.save(folder / f"species {label}" / f"{number}.png")
    return folder


def test_the_engines_are_named(cli: Cli, bundle_path: Path, photos: Path) -> None:
    _, out, _ = cli(
        "verify", bundle_path, "--data", photos, "--engine", "onnxruntime", "--html", "r.html"
    )
    assert "Measured ckpt.ltd on onnxruntime-cpu, against ckpt.pt on torch-cpu\n" in out
    _, out, _ = cli("compare", bundle_path, bundle_path, "--data", photos)
    assert "Measured ckpt.ltd on openvino-cpu, against ckpt.ltd on openvino-cpu\n" in out


def test_fp16_computed_as_float32_does_not_pass_without_a_word(
    cli: Cli, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    request = PrecisionRequest("fp16", engine="onnxruntime")
    export_bundle(load_checkpoint(checkpoint), [], tmp_path / "low.ltd", precision=request)
    command = ("verify", "low.ltd", "--reference", checkpoint, "--data", photos)
    _, out, err = cli(*command, "--engine", "onnxruntime", "--json", "v.json")
    said = "onnxruntime-cpu computes fp16 in float32 on this processor, so nothing here says what"
    assert f"warning: {said}" in err
    assert "As float32 on this processor, which says nothing of fp16, " in out
    result = json.loads((tmp_path / "v.json").read_text())
    assert [note[: len(said)] for note in result["notes"]] == [said]
    assert result["not_computed"] == "fp16"
    page = (tmp_path / "low.ltd" / "report.html").read_text()
    assert said in page
    _, _, quiet = cli(*command, "--engine", "onnxruntime", "-q")
    assert said in quiet


def test_the_table_of_classes_says_what_it_is(
    cli: Cli, checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    write_checkpoint(tmp_path / "other.pt", seed=5)
    for a, b in ((checkpoint, "other.pt"), ("other.pt", checkpoint)):
        code, out, _ = cli("compare", a, b, "--data", photos)
        assert code != 0
        if "  q" in out:
            assert out.index("the surest first; q is the chance") < out.index("  q")
            return
    raise AssertionError("no class lost anything")


def test_one_of_a_thing_is_not_in_the_plural(
    cli: Cli, bundle_path: Path, photos: Path, tmp_path: Path
) -> None:
    command = ("verify", bundle_path, "--data", photos, "--html", "r.html")
    (photos / "species 1" / "1.png").write_bytes(b"no image")
    shutil.rmtree(photos / "species 4")
    _, _, err = cli(*command)
    assert "1 image could not be read and was left out" in err
    assert "1 class without an image in val, and so not tested: species 4\n" in err
    (photos / "species 2" / "1.png").write_bytes(b"no image")
    shutil.rmtree(photos / "species 5")
    _, _, err = cli(*command)
    assert "2 images could not be read and were left out" in err
    assert "2 classes without an image in val, and so not tested: species 4, species 5\n" in err
