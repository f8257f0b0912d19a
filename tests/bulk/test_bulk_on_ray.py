"""The same rows from a local Ray with two workers, through deaths of workers too."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from samples import draw_photo

from ltdeploy.bulk import Inputs, RayOptions, open_inputs, parse_ray, predict_to_file
from ltdeploy.bulk.inputs import _Files
from ltdeploy.bulk.on_ray import _in_order
from ltdeploy.errors import EngineError, UsageError

TASK = 1024  # rows of a task at 32 pixels, at most
IMAGES = 5 * TASK // 2
LETHAL = TASK + 100
LOOPBACK = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs Ray")


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the inputs of two and a half tasks; one in thirty is broken."""
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(30):
        draw_photo(number, 32, 32).save(f"photos/{number:02d}.png")
    Path("photos/07.png").write_bytes(b"")
    return [f"photos/{number % 30:02d}.png" for number in range(IMAGES)]


def on_ray(bundle: Path, *, engine: str = "onnxruntime", deaths: int = 0) -> dict[str, Any]:
    """Run ``ray_runs.py`` in the working folder and return what it tells."""
    script = Path(__file__).with_name("ray_runs.py")
    told = [str(bundle), "out.jsonl", engine, str(IMAGES), str(LETHAL), str(deaths)]
    done = subprocess.run(
        [sys.executable, script, *told], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def rows_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


@needs_ray
def test_two_workers_one_of_which_dies(bundle_path: Path, photos: list[str]) -> None:
    told = on_ray(bundle_path, engine="onnxruntime:threads=2", deaths=1)  # of one CPU each
    assert Path("grave0").exists()
    assert (told["rows"], told["continued"]) == (IMAGES, 0), told
    assert told["engine"] == "onnxruntime-cpu"
    assert told["heard"]
    assert set(told["heard"]) <= LOOPBACK
    assert not told["still"]
    predict_to_file(bundle_path, open_inputs(photos), "here.jsonl", engine="onnxruntime")
    for found, expected in zip(rows_of("out.jsonl"), rows_of("here.jsonl"), strict=True):
        assert found["input"] == expected["input"]
        assert found.get("error") == expected.get("error")
        labels = [[score["label"] for score in row.get("top", ())] for row in (found, expected)]
        assert labels[0] == labels[1]


@needs_ray
@pytest.mark.slow
def test_what_kills_every_worker_is_named_and_the_run_goes_on_elsewhere(
    bundle_path: Path, photos: list[str]
) -> None:
    told = on_ray(bundle_path, deaths=4)
    assert told["kind"] == "EngineError"
    kept = len(rows_of("out.jsonl.partial/rows.jsonl"))
    assert LETHAL - TASK < kept <= LETHAL
    assert f"The {kept} rows before are kept" in told["error"]
    named = rf"4 actors on Ray died of the \d+ images from {photos[kept]} to photos"
    assert re.search(named, told["error"]), told["error"]
    done = predict_to_file(bundle_path, open_inputs(photos), "out.jsonl", engine="onnxruntime")
    assert (done.rows, done.continued) == (IMAGES, kept)
    assert [row["input"] for row in rows_of("out.jsonl")] == photos


@needs_ray
def test_an_engine_that_fails_says_what_it_says_here(bundle_path: Path, photos: list[str]) -> None:
    told = on_ray(bundle_path, engine="onnxruntime-cuda:device=99")
    assert told["kind"] == "EngineError"
    assert "CUDA" in told["error"] or "device is 99" in told["error"]
    assert not Path("out.jsonl.partial").exists()


def batch(*places: int) -> dict[str, Any]:
    return {
        "place": list(places),
        "row": [json.dumps({"place": place}) for place in places],
        "failure": [""] * len(places),
        "engine": ["an engine"] * len(places),
    }


@pytest.mark.parametrize(
    ("batches", "complaint"),
    [
        ([batch(3, 4), batch(4, 5)], "row 4 where row 5"),
        ([batch(3), batch(5)], "row 5 where row 4"),
        ([batch(3, 4)], "ended after row 5 of 6"),
    ],
    ids=["repeated", "lost", "short"],
)
def test_lost_and_repeated_rows_are_seen(batches: list[dict[str, Any]], complaint: str) -> None:
    ray = SimpleNamespace(exceptions=SimpleNamespace(RayError=ConnectionError))
    inputs = Inputs([_Files([""] * 6, "")])
    good = _in_order(iter([batch(3, 4), batch(5)]), inputs, range(3, 6), ray)
    assert [(engine, row["place"]) for engine, row in good] == [("an engine", p) for p in (3, 4, 5)]
    with pytest.raises(EngineError, match=complaint):
        list(_in_order(iter(batches), inputs, range(3, 6), ray))


def test_options_are_read() -> None:
    assert parse_ray("ray") == RayOptions()
    told = parse_ray("ray:workers=2,cpus=0.5,gpus=0.25,address=auto")
    assert told == RayOptions(2, 0.5, 0.25, "auto")
    for text, complaint in (
        ("spark", "expected 'ray'"),
        ("ray:worker=2", "Did you mean 'workers'"),
        ("ray:workers=two", "expected a number"),
        ("ray:workers=0", "at least one worker"),
        ("ray:cpus=nan", "cpus=nan"),
        ("ray:cpus=inf", "cpus=inf"),
        ("ray:gpus=nan", "gpus=nan"),
    ):
        with pytest.raises(UsageError, match=complaint):
            parse_ray(text)
