"""Where output goes: pipes that close, names that are no UTF-8, reports that cannot be written."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from samples import draw_photo

from ltdeploy.cli.output import program

LTDEPLOY = f"{shlex.quote(sys.executable)} -m ltdeploy"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Four pictures of each class of ``checkpoint``."""
    folder = tmp_path / "val"
    for label in range(6):
        (folder / f"species {label}").mkdir(parents=True)
        for number in range(4):
            photo = draw_photo(10 * label + number, 32, 32)
            photo.save(folder / f"species {label}" / f"{number}.png")
    return folder


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in bash, whose exit code is that of the first program of a pipe that fails."""
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_closed_pipe_changes_no_verdict(bundle_path: Path, photos: Path, tmp_path: Path) -> None:
    verify = f"{LTDEPLOY} verify {bundle_path} --data {photos} --html r.html --json v.json"
    done = shell(f"{verify} | true", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert json.loads((tmp_path / "v.json").read_text())["verdict"] == "pass"
    assert (tmp_path / "r.html").exists()


def test_json_into_a_closed_pipe_is_no_verdict_either(
    bundle_path: Path, photos: Path, tmp_path: Path
) -> None:
    predict = f"{LTDEPLOY} predict {bundle_path} {photos} {photos} {photos} --json -"
    done = shell(f"{predict} | true", tmp_path)
    assert done.returncode in (0, 141), done.stderr
    assert "Traceback" not in done.stderr


def test_the_json_says_what_it_proves(bundle_path: Path, photos: Path, tmp_path: Path) -> None:
    done = shell(f"{LTDEPLOY} verify {bundle_path} --data {photos} --json - -q", tmp_path)
    result = json.loads(done.stdout)
    assert result["provenance"].keys() >= {
        "Bundle",
        "Graph sha256",
        "Checkpoint sha256",
        "Candidate",
        "Reference",
        "Data",
        "Data fingerprint",
        "Date",
        "ltdeploy",
    }


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_name_that_is_no_utf8_is_answered(bundle_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    name = os.path.join(os.fsencode(folder), b"caf\xe9.png")
    draw_photo(1, 32, 32).save(folder / "a.png")
    os.rename(folder / "a.png", name)
    done = shell(f"{LTDEPLOY} predict {bundle_path} photos --out o.jsonl", tmp_path)
    assert done.returncode == 0, done.stderr
    (line,) = (tmp_path / "o.jsonl").read_text().splitlines()
    assert "caf\\udce9.png" in line
    assert os.fsencode(json.loads(line)["input"]).endswith(b"caf\xe9.png")
    assert shell(f"{LTDEPLOY} predict {bundle_path} photos", tmp_path).returncode == 0


def test_a_report_without_a_folder_is_refused_before_the_work(
    bundle_path: Path, photos: Path, tmp_path: Path
) -> None:
    command = f"{LTDEPLOY} verify {bundle_path} --data {photos} --html no/such/report.html"
    done = shell(command, tmp_path)
    assert done.returncode == 2
    assert "make it first" in done.stderr


def test_json_goes_through_links_and_pipes(bundle_path: Path, tmp_path: Path) -> None:
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    assert shell(f"{LTDEPLOY} inspect {bundle_path} --json link.json", tmp_path).returncode == 0
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text())["schema"] == 3
    fifo = f"mkfifo pipe; cat pipe > copy.json & {LTDEPLOY} inspect {bundle_path} --json pipe; wait"
    assert shell(fifo, tmp_path).returncode == 0
    assert json.loads((tmp_path / "copy.json").read_text())["schema"] == 3


def test_what_to_type_next_can_be_typed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in ("project/.venv/bin", "elsewhere"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "project/.venv/bin/ltdeploy")])
    monkeypatch.chdir(tmp_path / "project")
    assert program() == ".venv/bin/ltdeploy"
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert program() == str(tmp_path / "project/.venv/bin/ltdeploy")
    monkeypatch.setattr(sys, "argv", ["pytest"])
    assert program() == "ltdeploy"
