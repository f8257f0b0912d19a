"""Plain pickles that would fill the memory, and trusted ones."""

from __future__ import annotations

import pickle
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltdeploy.errors import CheckpointError
from ltdeploy.models.safe_pickle import load_pickle


def write(folder: Path, value: object, protocol: int = 4) -> Path:
    path = folder / "model_final.pkl"
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def test_what_is_shared_is_made_once(tmp_path: Path) -> None:
    array = np.arange(1000.0)
    nested: dict[str, Any] = {"w": array, "v": array}
    for _ in range(60):
        nested = {"a": nested, "b": nested}
    found = load_pickle(write(tmp_path, nested), trust=False)
    assert found["a"] is found["b"]
    while "a" in found:
        found = found["a"]
    assert found["w"] is found["v"]
    assert torch.equal(found["w"], torch.arange(1000.0, dtype=torch.float64))


class Repeated:
    """Arrays made over and over of the same bytes."""

    def __init__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), self.state


def test_arrays_are_not_larger_than_the_file(tmp_path: Path) -> None:
    content = bytes(8000)
    state = (1, (1000,), np.dtype("f8"), False, content)
    many = [Repeated(state) for _ in range(50)]
    with pytest.raises(CheckpointError, match="arrays are larger than the file"):
        load_pickle(write(tmp_path, {"model": many}), trust=False)
    load_pickle(write(tmp_path, {"model": many[:1]}), trust=False)


class Buffer:
    """An array whose content is a number, of which Python makes so many zeros."""

    def __reduce__(self) -> tuple[Any, ...]:
        return np.zeros(3).__reduce_ex__(5)[0], (1 << 20, np.dtype("u1"), (1 << 20,), "C")


def test_a_number_is_no_content(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="an array has a int for its content"):
        load_pickle(write(tmp_path, {"model": Buffer()}, protocol=5), trust=False)


def test_a_trusted_pickle_gives_tensors_and_names_what_is_missing(tmp_path: Path) -> None:
    library = types.ModuleType("some_trainer")
    kind = type("Config", (), {"__module__": library.__name__})
    library.Config = kind  # type: ignore[attr-defined]
    sys.modules[library.__name__] = library
    try:
        path = write(tmp_path, {"model": {"w": np.ones(2)}, "cfg": kind()})
        found = load_pickle(path, trust=True)
    finally:
        del sys.modules[library.__name__]
    assert torch.equal(found["model"]["w"], torch.ones(2, dtype=torch.float64))
    with pytest.raises(CheckpointError, match=r"model_final\.pkl names the module some_trainer"):
        load_pickle(path, trust=True)
