"""Exact resumption: what an interrupted training needs to go on as if nothing had happened."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._optional import require
from ..errors import CheckpointError, UsageError
from .checkpointing import write_content

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

__all__ = ["Progress", "State", "check_resume", "resume_path"]

_SCHEMA = 1
_KEY = "ltdeploy_training"
_STEPS = "steps"


@dataclass
class Progress:
    """How far a training is.

    Parameters
    ----------
    step : steps done, over all epochs.
    sums : of each epoch begun so far the sum of each loss over its steps, and their number.
    """

    step: int = 0
    sums: list[dict[str, float]] = field(default_factory=list)

    def add(self, epoch: int, losses: Mapping[str, float]) -> None:
        """Count one step of ``epoch``, from 0, with its losses by name."""
        self.step += 1
        while len(self.sums) <= epoch:
            self.sums.append({_STEPS: 0})
        sums = self.sums[epoch]
        for name, value in {_STEPS: 1, **losses}.items():
            sums[name] = sums.get(name, 0) + value

    def means(self) -> list[dict[str, float]]:
        """Return the mean of each loss, epoch by epoch."""
        return [
            {name: value / sums[_STEPS] for name, value in sums.items() if name != _STEPS}
            for sums in self.sums
        ]


def resume_path(out: str | os.PathLike[str]) -> Path:
    """Return where the state of an unfinished training stands: ``ckpt.pt.resume``."""
    return Path(f"{os.fspath(out)}.resume")


def check_resume(out: str | os.PathLike[str], *, resume: bool) -> bool:
    """Return whether there is an interrupted training of this name to go on with.

    Parameters
    ----------
    out : the checkpoint that is to be written.
    resume : whether it was asked to go on.

    Raises
    ------
    UsageError
        If an interrupted training would be overwritten, or a finished one gone on with.
    """
    path = resume_path(out)
    if path.exists() and not resume:
        raise UsageError(
            f"{path} holds an interrupted training. Go on with it by adding --resume, or delete it "
            "to start anew."
        )
    if resume and not path.exists() and Path(out).exists():
        raise UsageError(
            f"{os.fspath(out)} is finished: there is no {path} to go on with. Use it as it is, or "
            "leave --resume out to train anew and replace it."
        )
    return path.exists()


@dataclass(frozen=True)
class State:
    """The file that an interrupted training goes on from.

    It holds ``{"ltdeploy_training": {"schema": 1, "run", "step", "sums"}, "state_dict",
    "optimiser", "random": {"cpu", "cuda": [one per device]}}``.

    Parameters
    ----------
    path : where it stands.
    run : what decides the training's weights, as plain values; it must be the same to go on.
    every_s : how often it is written.
    """

    path: Path
    run: Mapping[str, Any]
    every_s: float

    def write(self, module: nn.Module, optimiser: Optimizer, progress: Progress) -> None:
        """Write weights, optimiser, place and torch's random state; whole, or not at all.

        Raises
        ------
        CheckpointError
            If the file cannot be written.
        """
        torch = require("torch", extra="torch", purpose="train")
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        told = {
            "schema": _SCHEMA,
            "run": dict(self.run),
            "step": progress.step,
            "sums": progress.sums,
        }
        content = {
            _KEY: told,
            "state_dict": module.state_dict(),
            "optimiser": optimiser.state_dict(),
            "random": {"cpu": torch.get_rng_state(), "cuda": cuda},
        }
        write_content(self.path, content)

    def read(self, module: nn.Module, optimiser: Optimizer) -> Progress:
        """Put the training back to where :meth:`write` left it; no code of the file is run.

        Returns
        -------
        Progress
            Nothing done, where there is no file.

        Raises
        ------
        CheckpointError
            If the file is not a training's state, or does not fit the network.
        UsageError
            If it belongs to another training; the text names each difference.
        """
        torch = require("torch", extra="torch", purpose="train")
        safe = require("ltdeploy.models.safe_pickle", extra="torch", purpose="resume trainings")
        if not self.path.exists():
            return Progress()
        content: Any = safe.load_pickle(self.path, trust=False)
        told = content.get(_KEY) if isinstance(content, dict) else None
        if not isinstance(told, dict) or told.get("schema") != _SCHEMA:
            raise CheckpointError(
                f"{self.path} is not the state of an unfinished training in schema {_SCHEMA}; "
                "delete it to start anew, or give another --out."
            )
        self._check_same(told["run"])
        try:
            module.load_state_dict(content["state_dict"], strict=True)
            optimiser.load_state_dict(content["optimiser"])
        except (RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0].rstrip(":")
            raise CheckpointError(
                f"{self.path} does not fit the network: {reason}. Train as before, class loss "
                "included, or delete it to start anew."
            ) from error
        random = content["random"]
        torch.set_rng_state(random["cpu"])
        if random["cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(random["cuda"])
        return Progress(told["step"], told["sums"])

    def _check_same(self, before: Mapping[str, Any]) -> None:
        differences = [
            f"{key} was {before.get(key)!r} and is {self.run.get(key)!r}"
            for key in {**before, **self.run}
            if before.get(key) != self.run.get(key)
        ]
        if differences:
            raise UsageError(
                f"{self.path} belongs to another training: {'; '.join(differences)}. Train as "
                "before to go on with it, or delete it to start anew."
            )
