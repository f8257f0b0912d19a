"""``bench`` as a user types it: table, JSON, report, and what goes wrong."""

from __future__ import annotations

import importlib
import itertools
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from samples import draw_photo

from ltdeploy.bundle import Bundle
from ltdeploy.cli.main import app
from ltdeploy.cli.output import Output
from ltdeploy.cli.runtime import run

benches = importlib.import_module("ltdeploy.cli.bench")  # the package's name is the command
Cli = Callable[..., tuple[int, str, str]]
QUICK = ("--batch", "1,2", "--threads", "1", "--seconds", "0.05")
ORT = ("--engine", "onnxruntime")


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """Run ``bench`` in an empty folder; return code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str | Path) -> tuple[int, str, str]:
        code = run(app, ["bench", *(str(argument) for argument in arguments)])
        captured = capfd.readouterr()
        assert "Traceback" not in captured.out + captured.err
        return code, captured.out, captured.err

    return call


def photos(folder: Path) -> Path:
    """Write two pictures of each class of ``checkpoint``."""
    for label in range(6):
        (folder / "val" / f"species {label}").mkdir(parents=True)
        for number in range(2):
            photo = draw_photo(10 * label + number, 32, 32)
            photo.save(folder / "val" / f"species {label}" / f"{number}.png")
    return folder / "val"


def test_table_json_and_report(cli: Cli, bundle_path: Path, tmp_path: Path) -> None:
    photos(tmp_path)
    outputs = ("--json", "b.json", "--html", "b.html")
    code, said, _ = cli(bundle_path, *QUICK, *ORT, "--data", "val", *outputs)
    assert code == 0
    told = json.loads((tmp_path / "b.json").read_text())
    assert said.splitlines()[0].startswith("CPU")
    assert "onnxruntime-cpu" in said
    assert "balanced" in said
    assert told["sentence"] in said
    assert "Report   b.html" in said
    assert told["contestants"][0]["accuracy"]["images"] == 12
    assert told["sentence"] in (tmp_path / "b.html").read_text(encoding="utf-8")


def test_all_engines_are_tried_and_those_that_fail_told(cli: Cli, bundle_path: Path) -> None:
    code, said, _ = cli(bundle_path, *QUICK, "--json", "-")
    told = json.loads(said)
    assert code == 0
    assert told["machine"]["cores"] >= 1
    assert any(one["runs_on"] == "onnxruntime-cpu" for one in told["contestants"])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--batch", "1;8"), "--batch is '1;8'; expected whole numbers with commas"),
        (("--batch", "0"), "--batch is '0'; expected whole numbers from 1"),
        (("--threads", ""), "--threads is ''; expected whole numbers"),
        (("--seconds", "0"), "--seconds is 0; expected more than 0"),
        (("--engine", "onnxruntim"), "Unknown engine 'onnxruntim'"),
        (("--html", "no/where.html"), "the folder no does not exist"),
        (("--data", "nowhere"), "nowhere"),
    ],
)
def test_bad_input_is_said_before_the_work(
    cli: Cli, bundle_path: Path, arguments: tuple[str, ...], complaint: str
) -> None:
    code, _, errors = cli(bundle_path, *arguments)
    assert code == 2
    assert complaint in errors


def test_classifiers_and_detectors_are_not_measured_together(
    cli: Cli, bundle_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Bundle, "is_detector", property(lambda bundle: bundle.path == other))
    other = shutil.copytree(bundle_path, tmp_path / "other.ltd").resolve()
    code, _, errors = cli(bundle_path, other, *QUICK)
    assert code == 2
    assert "other.ltd is a detector and others are classifiers" in errors


def test_the_time_left_is_told_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = itertools.count(0.0, 2.5)
    monkeypatch.setattr(benches.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    track = benches._CalmTracker(Output())
    assert list(track(range(40), total=40, label="bench")) == list(range(40))
    said = capsys.readouterr().err.split("\r")
    assert said[1] == "bench 0/40"
    assert said[2] == "bench 1/40, 3:15 left"  # 5 s for one: 39 times that
    assert said[40] == "bench 39/40, 0:03 left"


def test_what_is_no_bundle_is_said(cli: Cli) -> None:
    code, _, errors = cli("nothing.ltd", *QUICK)
    assert code == 2
    assert "There is no bundle at nothing.ltd" in errors


def test_an_unreadable_image_shows_in_the_exit_code(
    cli: Cli, bundle_path: Path, tmp_path: Path
) -> None:
    (photos(tmp_path) / "species 0" / "broken.png").write_bytes(b"no picture")
    code, _, errors = cli(bundle_path, *QUICK, *ORT, "--data", "val")
    assert code == 2
    assert "1 image could not be read" in errors


@pytest.mark.slow
def test_ctrl_c_prints_what_is_measured(bundle_path: Path, tmp_path: Path) -> None:
    command = f"{shlex.quote(sys.executable)} -m ltdeploy bench {bundle_path} --engine onnxruntime"
    started = subprocess.Popen(
        shlex.split(f"{command} --batch 1 --threads 1 --seconds 60 --json {tmp_path / 'b.json'}"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(20)  # a warm-up, and at least one round of six seconds
    started.send_signal(signal.SIGINT)
    said, errors = started.communicate(timeout=60)
    assert started.returncode == 130, errors
    assert "images/s" in said
    assert "Traceback" not in said + errors
    assert json.loads((tmp_path / "b.json").read_text())["interrupted"] is True
