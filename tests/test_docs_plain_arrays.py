"""The script for people with plain arrays runs and shows what it says."""

from __future__ import annotations

import contextlib
import io
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "docs" / "plain_arrays.py"


@pytest.fixture(scope="module")
def told() -> tuple[str, dict[str, Any]]:
    """Return what the script prints, and its names."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        names = runpy.run_path(str(SCRIPT))
    return printed.getvalue(), names


def shown(text: str, name: str) -> dict[str, float]:
    """Return the accuracies of the line that begins with ``name``."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}  "))
    return {group: float(value) for group, value in re.findall(r"(\w+) +(\d+\.\d)", line)}


def in_use(text: str, name: str) -> float:
    """Return the share of the target images that is right after ``name``."""
    (found,) = re.findall(rf"^in use, {name}: +(\d+\.\d) %$", text, re.MULTILINE)
    return float(found)


def test_it_is_cut_into_cells() -> None:
    lines = SCRIPT.read_text("utf-8").splitlines()
    assert lines.count("# %%") >= 8
    assert lines.count("# %% [markdown]") >= lines.count("# %%")


def test_every_fix_lifts_the_rare_classes(told: tuple[str, dict[str, Any]]) -> None:
    text = told[0]
    before = shown(text, "no fix")
    assert before["many"] > before["few"] + 10
    for name in ("logit_adjustment:tau=1.0", "logit_adjustment, chosen", "auto"):
        after = shown(text, name)
        assert after["few"] > before["few"] + 10, name
        assert after["all"] > before["all"] + 5, name
    careful = shown(text, "auto, many may lose 15 points")
    assert before["all"] < careful["all"]
    assert shown(text, "auto")["many"] < careful["many"]


def test_probabilities_are_honest_after_the_choice(
    told: tuple[str, dict[str, Any]],
) -> None:
    (pair,) = re.findall(r"mean confidence ([\d.]+) %, accuracy ([\d.]+) %", told[0])
    assert abs(float(pair[0]) - float(pair[1])) < 5
    names = told[1]
    raw = names["test_logits"] - names["test_logits"].max(axis=1, keepdims=True)
    sure = 1 / np.exp(raw).sum(axis=1)
    assert sure.mean() - (raw.argmax(axis=1) == names["test_labels"]).mean() > 0.1


def test_the_choice_is_told(told: tuple[str, dict[str, Any]]) -> None:
    text, names = told
    done = names["done"]
    assert done.reason in text
    rows = re.findall(r"^(\S+) +\d+ +\d+\.\d \(\d+\.\d … \d+\.\d\) +\d+\.\d+ +\d+\.\d$", text, re.M)
    assert rows == [method.name for method in done.methods]
    assert "not tried: tau_norm needs the head's weights" in text
    assert names["careful"].calibration_.chosen.head_change.low >= -15


def test_where_classes_come_otherwise_the_prior_helps(
    told: tuple[str, dict[str, Any]],
) -> None:
    text, names = told
    shift = in_use(text, "label shift")
    assert shift > in_use(text, "auto") + 1 > in_use(text, "no fix") + 10
    assert in_use(text, "known prior, by formula") > in_use(text, "no fix") + 10
    assert in_use(text, "chosen for the prior") > in_use(text, "known prior, by formula")
    assert np.abs(names["estimate"] - names["shares"]).sum() / 2 < 0.1
    assert np.abs(names["training_prior"] - names["shares"]).sum() / 2 > 0.5


def test_the_file_of_arrays_is_read(told: tuple[str, dict[str, Any]]) -> None:
    assert told[0].rstrip().endswith("arrays.npz: 600 images of 30 classes")
