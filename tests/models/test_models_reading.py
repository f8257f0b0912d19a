"""Files that are not what they should be: each is refused with words, and no code runs."""

from __future__ import annotations

import argparse
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_samples import drawn
from safetensors.torch import save_file

from ltdeploy.errors import CheckpointError, UnsafeCheckpointError
from ltdeploy.models.architectures import build
from ltdeploy.models.classifier import LoadOptions, load_checkpoint
from ltdeploy.models.reading import read_content, source_sha256


class Bomb:
    """A pickle that makes a folder when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_pickle_with_code_is_refused_and_does_not_run(tmp_path: Path, new_format: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "bomb.pt"
    data = {"state_dict": {"w": torch.zeros(2)}, "extra": Bomb(marker)}
    torch.save(data, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UnsafeCheckpointError, match=r"posix\.mkdir.*--trust-pickle"):
        load_checkpoint(path)
    assert not marker.exists()


def test_the_bomb_is_a_real_one(tmp_path: Path) -> None:
    """Negative control: with --trust-pickle the same file does run its code."""
    marker, path = tmp_path / "ran", tmp_path / "bomb.pt"
    torch.save({"state_dict": {"w": torch.zeros(2)}, "extra": Bomb(marker)}, path)
    read_content(path, trust_pickle=True)
    assert marker.exists()


def test_a_plain_pickle_with_code_does_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "ran", tmp_path / "bomb.pth"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    with pytest.raises(CheckpointError, match=r"bomb\.pth"):
        load_checkpoint(path)
    assert not marker.exists()


def test_a_bomb_inside_a_hugging_face_folder_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "config.json").write_text('{"model_type": "resnet"}')
    torch.save({"w": Bomb(marker)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(UnsafeCheckpointError):
        load_checkpoint(tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_a_pickled_network_is_named_and_refused(tmp_path: Path, new_format: bool) -> None:
    path = tmp_path / "whole.pt"
    torch.save(build("cifar:resnet20", 3), path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UnsafeCheckpointError, match="whole pickled network") as caught:
        load_checkpoint(path)
    assert "CifarResNet" in str(caught.value)
    assert "state_dict()" in str(caught.value)


def test_a_pickled_network_loads_when_trusted(tmp_path: Path) -> None:
    path = tmp_path / "whole.pt"
    torch.save(drawn(build("cifar:resnet20", 3)), path)
    model = load_checkpoint(path, options=LoadOptions(trust_pickle=True))
    assert model.arch == "cifar:resnet20"
    assert any("whole pickled network" in note for note in model.source.notes)


def test_harmless_company_of_weights_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "run.pth.tar"
    company = {
        "args": argparse.Namespace(lr=0.1, out=Path("runs/1")),
        "scalar": np.float64(0.5),
        "small": np.float32(1),
        "whole": np.int64(3),
        "array": np.arange(4),
        "flag": np.bool_(True),
        "dtype": np.dtype("float16"),
    }
    torch.save({"state_dict": {"w": torch.zeros(2)}, **company}, path)
    data = read_content(path).data
    assert data["scalar"] == 0.5
    assert data["array"].tolist() == [0, 1, 2, 3]
    assert str(data["args"].out) == "runs/1"


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.95])
def test_truncated_files(tmp_path: Path, new_format: bool, kept: float) -> None:
    path = tmp_path / "cut.pt"
    weights = build("cifar:resnet20", 3).state_dict()
    torch.save(weights, path, _use_new_zipfile_serialization=new_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    with pytest.raises(CheckpointError, match=r"cut short|damaged"):
        load_checkpoint(path)


def test_truncated_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    save_file({"w": torch.zeros(100)}, path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("empty.pt", b"", "empty"),
        ("page.pt", b"<!DOCTYPE html><html>Sign in</html>", "web page"),
        ("ptr.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("notes.pt", b"epoch 1: loss 0.3\nepoch 2: loss 0.2\n", "text file"),
        ("model.pt", b"\x89HDF\r\n\x1a\n" + bytes(600), "HDF5"),
        ("model.pth", b"\x1f\x8b" + bytes(600), "compressed archive"),
        ("cat.pt", b"\x89PNG\r\n\x1a\n" + bytes(600), "image"),
        ("noise.pt", bytes(range(128, 256)) * 8, "cannot be read as a checkpoint"),
        ("zeros.pt", bytes(4096), "cannot be read as a checkpoint"),
        ("zeros.onnx", bytes(64), "ONNX"),
        ("zeros.safetensors", bytes(64), "safetensors"),
    ],
)
def test_not_a_checkpoint(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=said) as caught:
        load_checkpoint(path)
    assert name in str(caught.value)


def test_archives_that_are_something_else(tmp_path: Path) -> None:
    tar = tmp_path / "old.pth.tar"
    with tarfile.open(tar, "w") as archive:
        archive.add(__file__, "storages")
    with pytest.raises(CheckpointError, match="tar archive"):
        load_checkpoint(tar)
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    with pytest.raises(CheckpointError, match="NumPy arrays"):
        load_checkpoint(tmp_path / "arrays.npz")
    with zipfile.ZipFile(tmp_path / "other.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match="a zip archive"):
        load_checkpoint(tmp_path / "other.pt")


@pytest.mark.filterwarnings("ignore:.*jit.*is (deprecated|not supported).*")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    with pytest.raises(CheckpointError, match="TorchScript"):
        load_checkpoint(path)


def test_exported_programs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "program.pt2"
    program = torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))
    torch.export.save(program, path)
    with pytest.raises(CheckpointError, match="exported program"):
        load_checkpoint(path)


def test_wrong_paths(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "model_best.pth")
    with pytest.raises(CheckpointError, match=r"Did you mean 'model_best\.pth'"):
        load_checkpoint(tmp_path / "model_bset.pth")
    with pytest.raises(CheckpointError, match=r"folder .* is missing"):
        load_checkpoint(tmp_path / "no" / "model.pth")
    with pytest.raises(CheckpointError, match=r"name one of these|contains model_best\.pth"):
        load_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"epoch": 3, "optimizer": {}}, "'epoch', 'optimizer'"),
        ([torch.zeros(2)], "list"),
        (torch.zeros(2), "Tensor"),
        ({}, "nothing"),
    ],
)
def test_no_weights_inside(tmp_path: Path, data: object, said: str) -> None:
    path = tmp_path / "x.pt"
    torch.save(data, path)
    with pytest.raises(CheckpointError, match=said):
        load_checkpoint(path)


def test_sharded_folder_must_stay_inside_itself(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(2)}, tmp_path / "outside.safetensors")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "resnet"}')
    index = '{"weight_map": {"w": "../outside.safetensors"}}'
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(CheckpointError, match="not a file in"):
        load_checkpoint(folder)


def test_folder_hash_follows_its_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file({"w": torch.zeros(2)}, tmp_path / "model.safetensors")
    before = source_sha256(tmp_path)
    save_file({"w": torch.ones(2)}, tmp_path / "model.safetensors")
    assert len(before) == 64
    assert source_sha256(tmp_path) != before
