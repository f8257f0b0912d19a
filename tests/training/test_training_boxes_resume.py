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
from drawn_boxes import HELD, RED, after, drawn, fit

from ltdeploy.canvas import Canvas
from ltdeploy.errors import CheckpointError, UnsafeCheckpointError, UsageError
from ltdeploy.training.boxes import BoxTrainResult
from ltdeploy.training.interrupts import TrainingInterrupted
from ltdeploy.training.resume import Progress, State, check_resume, resume_path

torch = pytest.importorskip("torch")

from ltdeploy.models.detectors.architectures import build_detector  # noqa: E402

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

# Ctrl-C in the midst of the second step: gradients are there, the weights are the old ones.
_PRESS = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have it ignored
import torch
torch.set_num_threads(1)
from pathlib import Path
from drawn_boxes import HELD, drawn, fit
clip, calls = torch.nn.utils.clip_grad_norm_, []
def press(*arguments):
    calls.append(arguments)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    return clip(*arguments)
torch.nn.utils.clip_grad_norm_ = press
try:
    fit(Path(sys.argv[2]), drawn(HELD[:6]))
except KeyboardInterrupt as stop:
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    print(type(stop).__name__, stop.step, stop.steps, stop.path.name)
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


@pytest.fixture(scope="module")
def whole(module_folder: Path) -> BoxTrainResult:
    """Return the training that nobody interrupts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    done = fit(module_folder / "whole.pt", drawn(HELD[:6]))
    torch.set_num_threads(threads)
    return done


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [(_DIE, -signal.SIGKILL, ""), (_PRESS, 0, "TrainingInterrupted 2 6 x.pt.resume\n")],
    ids=["killed", "interrupted"],
)
def test_a_training_that_ended_goes_on_to_the_same_weights(
    tmp_path: Path, whole: BoxTrainResult, script: str, code: int, said: str
) -> None:
    data = drawn(HELD[:6])
    path = tmp_path / "x.pt"
    command = [sys.executable, "-c", script, str(Path(__file__).parent), str(path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    died = subprocess.run(
        command, env=environment, check=False, stdout=subprocess.PIPE, text=True, timeout=300
    )
    assert (died.returncode, died.stdout) == (code, said)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.pt.resume"]
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


def test_what_is_interrupted_before_its_first_step_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with pytest.raises(KeyboardInterrupt) as raised:
        fit(path, resume=True, tracker=after(0, _interrupt))
    assert not isinstance(raised.value, TrainingInterrupted)
    assert not list(tmp_path.iterdir())
    with pytest.raises(TrainingInterrupted, match=r"after step 1 of 8; .*x\.pt\.resume"):
        fit(path, tracker=after(1, _interrupt))  # the control
    before = resume_path(path).read_bytes()
    with pytest.raises(TrainingInterrupted, match="after step 1 of 8"):
        fit(path, resume=True, tracker=after(0, _interrupt))
    assert resume_path(path).read_bytes() == before


def test_a_state_is_written_when_its_time_has_come_and_not_before(tmp_path: Path) -> None:
    class Died(Exception):
        """Unlike Ctrl-C, nothing that a training could answer."""

    def die() -> None:
        raise Died

    for every_s, kept in ((300.0, []), (0.0, ["x.pt.resume"])):
        with pytest.raises(Died):
            fit(tmp_path / "x.pt", keep_every_s=every_s, tracker=after(1, die))
        assert [entry.name for entry in tmp_path.iterdir()] == kept


def test_a_finished_training_is_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    assert not check_resume(path, resume=True)  # nothing there: a start
    path.write_bytes(b"hours of work")
    with pytest.raises(UsageError, match=r"x\.pt is finished.*leave --resume out"):
        fit(path, resume=True)
    assert path.read_bytes() == b"hours of work"
    assert not check_resume(path, resume=False)
    resume_path(path).touch()  # of a training that is to replace it
    assert check_resume(path, resume=True)


def test_each_epoch_is_told_with_its_mean_loss(tmp_path: Path) -> None:
    told: list[str] = []
    done = fit(tmp_path / "x.pt", drawn(HELD[:4]), epochs=2, tell=told.append)
    assert [line.partition(",")[0] for line in told] == [
        f"Epoch {epoch + 1} of 2: loss {one['total']:.3f}" for epoch, one in enumerate(done.losses)
    ]
    assert all(line.endswith(" s") for line in told)


@pytest.mark.parametrize(
    ("arch", "least_px"),
    [("fasterrcnn_mobilenet_v3_small_320_fpn", 64), ("retinanet_mobilenet_v3_small_fpn", 128)],
)
def test_a_canvas_is_no_smaller_than_a_cell(tmp_path: Path, arch: str, least_px: int) -> None:
    module = build_detector(f"torchvision:{arch}", 1).eval()
    levels = module.backbone(torch.zeros(1, 3, 256, 256))
    assert 256 // min(level.shape[-1] for level in levels.values()) == least_px
    data = drawn([(RED,), (RED,)], ("red",))
    options = {"arch": f"torchvision:{arch}", "epochs": 1}
    for height_px, width_px in ((least_px - 1, least_px), (least_px, 1)):
        text = f"canvas is {height_px}x{width_px}; expected both sides to be {least_px} pixels"
        with pytest.raises(UsageError, match=rf"{text} .*--canvas"):
            fit(tmp_path / "x.pt", data, canvas=Canvas(height_px, width_px), **options)
    fit(tmp_path / "x.pt", data, canvas=Canvas(least_px, least_px), **options)


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
