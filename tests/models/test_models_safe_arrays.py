"""NumPy arrays in checkpoints: numbers and text are read, and no bytes become pointers."""

from __future__ import annotations

import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from ltdeploy.errors import CheckpointError, UnsafeCheckpointError
from ltdeploy.models.classifier import load_checkpoint
from ltdeploy.models.reading import read_content
from ltdeploy.models.safe_pickle import load_pickle

WEIGHTS = {"w": torch.zeros(2)}
ARRAYS = {
    "text": np.array(["moth", "wäsp", "lynx"]),
    "bytes": np.array([b"moth", b"lynx"]),
    "big-endian": np.arange(5, dtype=">f8"),
    "matrix": np.asfortranarray(np.arange(6, dtype=np.int16).reshape(2, 3)),
    "flags": np.array([True, False]),
    "complex": np.array([1 + 2j]),
    "empty": np.empty((0, 3), dtype=np.float32),
    "no axes": np.array(3.0),
}


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("name", ARRAYS)
def test_plain_arrays_come_back(tmp_path: Path, name: str, new_format: bool) -> None:
    path = tmp_path / "run.pth"
    data = {"state_dict": WEIGHTS, "array": ARRAYS[name]}
    torch.save(data, path, _use_new_zipfile_serialization=new_format)
    found = read_content(path).data["array"]
    assert found.dtype == ARRAYS[name].dtype.newbyteorder("=")
    np.testing.assert_array_equal(found, ARRAYS[name])


@pytest.mark.parametrize("scalar", [np.float64(0.5), np.str_("moth"), np.bool_(True), np.int8(-3)])
def test_plain_scalars_come_back(tmp_path: Path, scalar: np.generic) -> None:
    path = tmp_path / "run.pth"
    torch.save({"state_dict": WEIGHTS, "scalar": scalar}, path)
    found = read_content(path).data["scalar"]
    assert (type(found), found) == (type(scalar), scalar)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (np.array(["moth", 3], dtype=object), "object"),
        (np.array(["2020-01-01"], dtype="datetime64[D]"), "datetime64"),
        (np.zeros(2, dtype=[("a", "f4")]), "void"),
    ],
)
@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_other_arrays_are_named(
    tmp_path: Path, array: np.ndarray, said: str, new_format: bool
) -> None:
    path = tmp_path / "run.pth"
    data = {"state_dict": WEIGHTS, "extra": array}
    torch.save(data, path, _use_new_zipfile_serialization=new_format)
    with pytest.raises(UnsafeCheckpointError, match=rf"run\.pth .*{said}.*tolist\(\)") as caught:
        load_checkpoint(path)
    assert "weights_only" not in str(caught.value)
    assert read_content(path, trust_pickle=True).data["extra"].dtype == array.dtype


def attack(dtype: str, flags: int) -> bytes:
    """Return a pickle of an array over raw bytes whose dtype has had `flags` set."""
    dtype_of = b"cnumpy\ndtype\n(X%s%s\x89\x88tR" % (
        len(dtype).to_bytes(4, "little"),
        dtype.encode(),
    )
    dtype_of += b"(K\x03X\x01\x00\x00\x00|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK%ctb" % flags
    raw = b"c_codecs\nencode\n(X\x08\x00\x00\x00AAAAAAAAX\x06\x00\x00\x00latin1tR"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    array += b"(K\x01K\x01\x85" + dtype_of + b"\x89" + raw + b"tb"
    return b"\x80\x02}(X\x05\x00\x00\x00names" + array + b"u."


def write_attack(path: Path, dtype: str, flags: int, *, is_zip: bool) -> Path:
    if not is_zip:
        header = b"".join(
            pickle.dumps(value, 2)
            for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})
        )
        path.write_bytes(header + attack(dtype, flags) + pickle.dumps([], 2))
        return path
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", attack(dtype, flags))
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return path


LOAD = """
import sys
from ltdeploy.errors import CheckpointError
from ltdeploy.models.classifier import load_checkpoint
for path in sys.argv[1:]:
    try:
        load_checkpoint(path)
    except CheckpointError as error:
        print(type(error).__name__, error)
"""


def test_a_dtype_with_forged_flags_is_refused_and_kills_nothing(tmp_path: Path) -> None:
    files = [
        write_attack(tmp_path / f"{dtype}-{flags}-{is_zip}.pt", dtype, flags, is_zip=is_zip)
        for dtype in ("O", "f8", "U2", "V8")
        for flags in (0, 1, 0x3F)
        for is_zip in (True, False)
    ]
    # In a process of its own, which a pointer out of the file would end by a signal.
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, files)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("CheckpointError") == len(files)
    assert done.stdout.count("UnsafeCheckpointError") == len(files) // 2
    assert "weights_only" not in done.stdout
    assert "safe_globals" not in done.stdout


def test_forged_flags_do_not_reach_the_array(tmp_path: Path) -> None:
    path = write_attack(tmp_path / "f8.pt", "f8", 0x3F, is_zip=True)
    names = load_pickle(path, trust=False)["names"]
    assert not names.dtype.hasobject
    assert names.tobytes() == b"A" * 8


def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    path = write_attack(tmp_path / "u2.pt", "U2", 8, is_zip=True)
    with pytest.raises(CheckpointError, match=r"u2\.pt cannot be read"):
        load_pickle(path, trust=False)


def test_torchs_advice_to_load_unsafely_is_not_passed_on(tmp_path: Path) -> None:
    path = tmp_path / "odd.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02K\x05}b.")  # BUILD on a number
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(path)
    for words in ("weights_only", "Re-running", "safe_globals", "Weights only load failed"):
        assert words not in str(caught.value)
