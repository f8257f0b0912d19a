"""CIFAR pickle folders: the real layout, and pickles that would run code."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ltdeploy.datasets import CifarDataset, align_labels, open_dataset, read_classes
from ltdeploy.errors import DataError


def pixels(count: int, seed: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return generator.integers(0, 256, (count, 3072), dtype=np.uint8)


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number in range(1, 6):
        dump(folder / f"data_batch_{number}", pixels(4, number), [number, 0, 1, 2])
    dump(folder / "test_batch", pixels(3, 9), [9, 8, 7])
    names = [b"class %d" % label for label in range(10)]
    (folder / "batches.meta").write_bytes(pickle.dumps({b"label_names": names}, protocol=2))
    return folder


def dump(path: Path, data: Any, labels: Any, key: bytes = b"labels", protocol: int = 2) -> None:
    path.write_bytes(pickle.dumps({b"data": data, key: labels}, protocol=protocol))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_cifar10_test_split_is_the_default(cifar10: Path, protocol: int) -> None:
    dump(cifar10 / "test_batch", pixels(3, 9), [9, 8, 7], protocol=protocol)
    dataset = open_dataset(str(cifar10))
    assert isinstance(dataset, CifarDataset)
    assert dataset.name == "cifar-10-batches-py:test"
    assert dataset.identifier(2) == "cifar-10-batches-py:test#2"
    assert dataset.labels.tolist() == [9, 8, 7]
    expected = pixels(3, 9)[1].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(dataset.source(1), expected)


def test_cifar10_train_split_joins_the_batches(cifar10: Path) -> None:
    dataset = open_dataset(str(cifar10), split="train")
    assert len(dataset) == 20
    assert dataset.counts().tolist() == [5, 6, 6, 1, 1, 1, 0, 0, 0, 0]
    assert read_classes(str(cifar10)).counts == (5, 6, 6, 1, 1, 1, 0, 0, 0, 0)


def test_python_2s_own_pickles_are_read(cifar10: Path) -> None:
    # The files on the web were written by Python 2: old module names, text as bytes.
    current = pickle.dumps({b"data": pixels(1, 0), b"labels": [3]}, protocol=2)
    old = current.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert old != current
    (cifar10 / "test_batch").write_bytes(old)
    assert open_dataset(str(cifar10)).labels.tolist() == [3]
    content = pixels(1, 0).tobytes()
    (cifar10 / "test_batch").write_bytes(
        b"\x80\x02}q\1(U\4dataq\2cnumpy.core.multiarray\n_reconstruct\nq\3cnumpy\nndarray\nq\4"
        b"K\0\x85U\1b\x87Rq\5(K\1K\1M\0\x0c\x86cnumpy\ndtype\nq\6U\2u1K\0K\1\x87Rq\7(K\3U\1|NNN"
        b"J\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb\x89T\0\x0c\0\0" + content + b"tbU\6labels]K\5au."
    )
    dataset = open_dataset(str(cifar10))
    assert dataset.labels.tolist() == [5]
    expected = pixels(1, 0)[0].reshape(3, 32, 32).transpose(1, 2, 0)
    np.testing.assert_array_equal(dataset.source(0), expected)


def test_cifar100(tmp_path: Path) -> None:
    for split in ("train", "test"):
        dump(tmp_path / split, pixels(2, 1), [99, 5], key=b"fine_labels")
    names = [f"class {label}" for label in range(100)]
    (tmp_path / "meta").write_bytes(pickle.dumps({"fine_label_names": names}, protocol=2))
    dataset = open_dataset(str(tmp_path))
    assert dataset.class_names == tuple(names)
    assert align_labels(dataset, read_classes(str(tmp_path))).tolist() == [99, 5]


class Payload:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_a_pickle_with_code_is_refused_and_does_not_run(cifar10: Path, tmp_path: Path) -> None:
    target = tmp_path / "the code ran"
    hostile = pickle.dumps({b"data": Payload(target), b"labels": [0]}, protocol=2)
    (cifar10 / "test_batch").write_bytes(hostile)
    with pytest.raises(
        DataError, match=r"test_batch is a pickle that asks for posix\.mkdir.*refused"
    ):
        open_dataset(str(cifar10))
    assert not target.exists()
    pickle.loads(hostile)  # negative control: an ordinary reader runs it
    assert target.is_dir()


@pytest.mark.parametrize(
    "name", ["builtins eval", "builtins getattr", "numpy load", "numpy._core.multiarray scalar"]
)
def test_no_other_name_is_found(cifar10: Path, name: str) -> None:
    module, attribute = name.split()
    (cifar10 / "test_batch").write_bytes(f"c{module}\n{attribute}\n.".encode())
    with pytest.raises(DataError, match="which could run code; it was refused"):
        open_dataset(str(cifar10))


def test_a_codec_is_not_a_way_round(cifar10: Path) -> None:
    (cifar10 / "test_batch").write_bytes(b"c_codecs\nencode\n(VAAAA\nVzip\ntR.")
    with pytest.raises(DataError, match="asks for the codec 'zip'"):
        open_dataset(str(cifar10))


def test_an_array_cannot_claim_memory_it_has_no_data_for(cifar10: Path) -> None:
    asks = b"cnumpy\nndarray\n((L1000000000000L\nttR."
    (cifar10 / "test_batch").write_bytes(asks)
    with pytest.raises(DataError, match="holds a single array; expected a dict"):
        open_dataset(str(cifar10))


TAKE = "import pickle, sys; pickle.loads(open(sys.argv[1] + '/test_batch', 'rb').read())"
OPEN = """
import sys
from ltdeploy.datasets import open_dataset
from ltdeploy.errors import DataError
try:
    open_dataset(sys.argv[1])
except DataError as error:
    print(error)
    sys.exit(2)
"""
FLAGS = "(K\x03X\1\0\0\0|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x01tb"  # bytes are references


def dtype_of(kind: str) -> bytes:
    return f"cnumpy\ndtype\n(X{chr(len(kind))}\0\0\0{kind}\x89\x88tR{FLAGS}".encode("latin1")


def array_of(dtype: bytes, shape: bytes = b"K\x01\x85", content: bytes = b"C\x08AAAAAAAA") -> bytes:
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\0\x85C\1btR"
    return empty + b"(K\1" + shape + dtype + b"\x89" + content + b"tb"


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(folder)], capture_output=True, text=True
    )


def spell(path: Path, data: bytes) -> None:
    path.write_bytes(b"\x80\x03}(C\4data" + data + b"C\x06labels](K\0eu.")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (array_of(dtype_of("O")), "holds an array of 'O'; expected uint8"),
        (array_of(dtype_of("f8")), "holds an array of 'f8'; expected uint8"),
        (array_of(dtype_of("u1")), "holds an array whose shape and content differ"),
        (array_of(dtype_of("u1"), b"K\x08\x85"), r"holds \(8,\) as 'data'"),
        (array_of(b"N"), "holds an array that is not uint8 row by row"),
        (array_of(b"cnumpy\ndtype\n"), "holds an array that is not uint8 row by row"),
        (array_of(dtype_of("u1"), b"J\xff\xff\xff\xff\x85"), "shape and content differ"),
        (array_of(dtype_of("u1"), b"N"), "shape and content differ"),
        (array_of(dtype_of("u1"), content=b"](NNe"), "shape and content differ"),
        (b"cnumpy.core.multiarray\n_reconstruct\n)RNb", "holds an array in an unknown layout"),
        (b"cnumpy\ndtype\n}C\1aNsb", "changes a function or class; it was refused"),
        (b"c_codecs\nencode\nN}X\x04\0\0\0nameNs\x86b", "changes a function or class"),
        (b"cnumpy\nndarray\n)\x81", "cannot be read as a CIFAR pickle"),
    ],
)
def test_a_pickle_cannot_turn_bytes_into_pointers(cifar10: Path, data: bytes, message: str) -> None:
    spell(cifar10 / "test_batch", data)
    with pytest.raises(DataError, match=message):
        open_dataset(str(cifar10))


def test_the_attack_ends_in_an_error_and_not_in_a_signal(cifar10: Path) -> None:
    spell(cifar10 / "test_batch", array_of(dtype_of("O")))
    ours = run(OPEN, cifar10)
    assert (ours.returncode, ours.stderr) == (2, "")
    assert "holds an array of 'O'; expected uint8" in ours.stdout
    assert run(TAKE, cifar10).returncode < 0  # negative control: an ordinary reader crashes


@pytest.mark.parametrize("name", [b"\xff", "\udc80"])
def test_a_class_name_is_text(cifar10: Path, name: bytes | str) -> None:
    (cifar10 / "batches.meta").write_bytes(pickle.dumps({"\udc80": 0, "label_names": [name]}))
    with pytest.raises(DataError, match=r"batches\.meta holds a class name that is not text"):
        open_dataset(str(cifar10))


@pytest.mark.parametrize(
    ("data", "labels", "message"),
    [
        (pixels(2, 0), [1], "holds 1 labels for 2 images"),
        (pixels(2, 0), [1, "dog"], "labels that are not whole numbers"),
        (pixels(2, 0), None, "holds NoneType labels for 2 images"),
        (pixels(2, 0)[:, :10], [1, 2], r"holds \(2, 10\) as 'data'; expected a uint8 array"),
        (None, [1], "holds NoneType as 'data'"),
        (pixels(2, 0).astype("<f8"), [1, 2], "holds an array of b?'f8'; expected uint8"),
        (np.asfortranarray(pixels(2, 0)), [1, 2], "holds an array that is not uint8 row by row"),
        (pixels(2, 0), [1, 2**70], "labels that are not whole numbers of 64 bits"),
        (pixels(2, 0), [1, 10], "has the label 10; expected 0 to 9"),
        (pixels(0, 0), [], "has no image"),
    ],
)
def test_wrong_content_is_refused(cifar10: Path, data: Any, labels: Any, message: str) -> None:
    dump(cifar10 / "test_batch", data, labels, protocol=4)
    with pytest.raises(DataError, match=message):
        open_dataset(str(cifar10))


def test_damaged_and_missing_files_are_named(cifar10: Path) -> None:
    whole = (cifar10 / "test_batch").read_bytes()
    (cifar10 / "test_batch").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"test_batch cannot be read as a CIFAR pickle.*Unpack"):
        open_dataset(str(cifar10))
    (cifar10 / "data_batch_3").unlink()
    with pytest.raises(DataError, match="data_batch_3 does not exist"):
        open_dataset(str(cifar10), split="train")
    with pytest.raises(DataError, match=r"no split 'tests'.* Did you mean 'test'"):
        open_dataset(str(cifar10), split="tests")
    (cifar10 / "test_batch").write_bytes(whole)
    (cifar10 / "batches.meta").write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match="holds no list of class names"):
        open_dataset(str(cifar10))
