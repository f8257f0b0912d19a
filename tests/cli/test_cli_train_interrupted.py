"""Ctrl-C while a detector is trained: what it says to type goes on to the same weights."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from box_samples import ARCH, write_boxes

Cli = Callable[..., tuple[int, str, str]]
EPOCHS, STEPS = 6, 12
OPTIONS = ("--batch-size", "2", "--proposals", "16", "--canvas", "64x96", "--epochs", str(EPOCHS))
# A shell starts background commands with SIGINT ignored, and Python would inherit that.
LISTENING = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
import torch
torch.set_num_threads(1)
from ltdeploy.cli.main import main
main()
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(path: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)["state_dict"]
    return loaded


def differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def test_ctrl_c_keeps_every_step_that_was_done(cli: Cli, tmp_path: Path) -> None:
    data = write_boxes(tmp_path / "my photographs", images=4)
    told = ["train", "--data", str(data), "--arch", ARCH, "--out", "x.pt", *OPTIONS]
    running = subprocess.Popen(
        [sys.executable, "-u", "-c", LISTENING, *told],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert running.stderr is not None
    for line in running.stderr:
        if line.startswith("Epoch 1 of"):
            running.send_signal(signal.SIGINT)
            break
    said, text = running.communicate(timeout=300)
    assert running.returncode == 130, text
    last = text.splitlines()[-1]
    pattern = rf"ltdeploy: Interrupted after step (\d+) of {STEPS}; go on with: \S*ltdeploy (.*)"
    found = re.fullmatch(pattern, last)
    assert found is not None, text
    step, go_on = int(found[1]), shlex.split(found[2])
    assert 2 <= step < STEPS
    assert go_on == [*told, "--resume"]
    assert "Wrote" not in said
    assert [one.name for one in tmp_path.glob("*x.pt*")] == ["x.pt.resume"]
    half = torch.load("x.pt.resume", weights_only=True)
    assert half["ltdeploy_training"]["step"] == step

    # Others are not gone on with, and without --resume nothing is thrown away.
    code, _, text = cli(*go_on, "--seed", "1")
    assert (code, "seed was 0 and is 1" in text) == (2, True)
    code, _, text = cli(*told)
    assert (code, "holds an interrupted training" in text) == (2, True)

    code, said, _ = cli(*go_on)
    assert code == 0
    assert f"in {STEPS} steps, {step} of them before it was interrupted" in said
    assert not Path("x.pt.resume").exists()
    code, _, _ = cli(*told[: -len(OPTIONS) - 1], "whole.pt", *OPTIONS)
    assert code == 0
    assert differing(weights("x.pt"), weights("whole.pt")) == []
    assert differing(half["state_dict"], weights("whole.pt"))  # the control
