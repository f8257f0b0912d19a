"""Resuming: a killed training goes on to the same weights, bit by bit, or says why it cannot."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from drawn_boxes import HELD, after, drawn, fit

from ltdeploy.errors import CheckpointError, UnsafeCheckpointError, UsageError
from ltdeploy.training.resume import Progress, State, resume_path

torch = pytest.importorskip("torch")

# The second step is in the middle of the first of two epochs.
_DIE = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from pathlib import Path
from drawn_boxes import HELD, after, drawn, fit, kill
fit(Path(sys.argv[2]), drawn(HELD[:6]), keep_every_s=0, tracker=after(2, kill))
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(path, weights_only=True)["state_dict"]
    return loaded


def test_a_killed_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    data = drawn(HELD[:6])
    whole = fit(tmp_path / "whole.pt", data)
    path = tmp_path / "killed.pt"
    command = [sys.executable, "-c", _DIE, str(Path(__file__).parent), str(path)]
    died = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False)
    assert died.returncode == -signal.SIGKILL
    assert [entry.name for entry in tmp_path.glob("killed*")] == ["killed.pt.resume"]
    left = torch.load(resume_path(path), weights_only=True)

    torch.manual_seed(99)  # where the caller's random state is must not matter
    resumed = fit(path, data, resume=True)
    assert (resumed.resumed_from, resumed.steps) == (2, 6)
    assert resumed.losses == whole.losses
    assert not resume_path(path).exists()
    expected = weights(whole.path)
    assert _differing(expected, weights(path)) == []

    # The control: with other random numbers other proposals are drawn, and the weights differ.
    left["random"]["cpu"] = torch.get_rng_state()
    torch.save(left, resume_path(path))
    fit(path, data, resume=True)
    assert _differing(expected, weights(path))


def _differing(first: dict[str, Any], second: dict[str, Any]) -> list[str]:
    assert first.keys() == second.keys()
    return [name for name in first if not torch.equal(first[name], second[name])]


def _interrupt() -> None:
    raise KeyboardInterrupt


def test_nothing_to_resume_is_a_start_and_nothing_is_kept_before_its_time(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(KeyboardInterrupt):
        fit(path, resume=True, tracker=after(1, _interrupt))
    assert not list(tmp_path.iterdir())


def tiny(path: Path, **run: Any) -> tuple[State, Any, Any]:
    module = torch.nn.Linear(2, 1)
    return State(path, run, 0), module, torch.optim.AdamW(module.parameters(), lr=0.1)


def step(module: Any, optimiser: Any) -> None:
    optimiser.zero_grad()
    module(torch.randn(4, 2)).square().mean().backward()
    optimiser.step()


def test_state_holds_weights_moments_place_sums_and_random_numbers(tmp_path: Path) -> None:
    state, module, optimiser = tiny(tmp_path / "s", epochs=2)
    progress = Progress()
    for epoch in (0, 0, 2):
        step(module, optimiser)
        progress.add(epoch, {"a": 1.5})
    state.write(module, optimiser, progress)
    step(module, optimiser)
    expected = [value.clone() for value in module.parameters()]
    state, other, its_optimiser = tiny(tmp_path / "s", epochs=2)
    found = state.read(other, its_optimiser)
    assert found == progress
    assert found.step == 3
    assert found.sums == [{"steps": 2, "a": 3.0}, {"steps": 0}, {"steps": 1, "a": 1.5}]
    step(other, its_optimiser)
    assert all(torch.equal(a, b) for a, b in zip(expected, other.parameters(), strict=True))


def test_means_are_of_steps() -> None:
    progress = Progress()
    progress.add(0, {"a": 1.0, "b": 4.0})
    progress.add(0, {"a": 2.0, "b": 6.0})
    assert progress.means() == [{"a": 1.5, "b": 5.0}]


def test_an_interrupted_training_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    resume_path(path).write_bytes(b"hours of work")
    with pytest.raises(UsageError, match=r"holds an interrupted training.*--resume"):
        fit(path)
    assert resume_path(path).read_bytes() == b"hours of work"


def test_another_training_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "s"
    state, module, optimiser = tiny(path, epochs=2, seed=0)
    state.write(module, optimiser, Progress())
    state, module, optimiser = tiny(path, epochs=3, seed=0, extra="x")
    with pytest.raises(UsageError, match="epochs was 2 and is 3; extra was None and is 'x'"):
        state.read(module, optimiser)


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    state, module, optimiser = tiny(tmp_path / "s")
    state.write(module, optimiser, Progress())
    with pytest.raises(CheckpointError, match="does not fit the network"):
        state.read(torch.nn.Linear(3, 1), optimiser)


def test_other_files_are_refused_and_nothing_in_them_runs(tmp_path: Path) -> None:
    state, module, optimiser = tiny(tmp_path / "s")
    state.path.write_bytes(b"rubbish")
    with pytest.raises(CheckpointError, match="cannot be read"):
        state.read(module, optimiser)
    torch.save({"state_dict": module.state_dict()}, state.path)
    with pytest.raises(CheckpointError, match="not the state of an unfinished training"):
        state.read(module, optimiser)

    class Hostile:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"ltdeploy_training": Hostile()}, state.path)
    with pytest.raises(UnsafeCheckpointError):
        state.read(module, optimiser)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Hostile()))  # the control: it would have
    assert (tmp_path / "ran").exists()


def test_a_failed_write_leaves_the_older_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state, module, optimiser = tiny(tmp_path / "s")
    state.write(module, optimiser, Progress(5))

    def full_disk(content: object, file: Path) -> None:
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(CheckpointError, match="No space left on device"):
        state.write(module, optimiser, Progress(6))
    assert state.read(module, optimiser).step == 5
    assert [entry.name for entry in tmp_path.iterdir()] == ["s"]
