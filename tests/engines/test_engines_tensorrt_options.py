"""What can be asked of TensorRT, which plans are taken, and what is said where it is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ltdeploy.bundle import open_bundle
from ltdeploy.engines import tensorrt_library as library
from ltdeploy.engines.tensorrt_doctor import diagnose_tensorrt
from ltdeploy.engines.tensorrt_engine import open_tensorrt
from ltdeploy.engines.tensorrt_files import BUILD_OPTIONS, PlanFiles, PlanRecord
from ltdeploy.engines.tensorrt_options import TensorRtOptions
from ltdeploy.errors import EngineError, LtdeployError


def test_texts_become_options() -> None:
    assert TensorRtOptions.from_text({}) == TensorRtOptions()
    told = {"max_batch": "64", "opt_batch": "8", "refit": "on", "cuda_graph": "off"}
    found = TensorRtOptions.from_text({**told, "hardware_compatible": "ampere_plus"})
    assert found == TensorRtOptions(
        max_batch=64, opt_batch=8, refit=True, hardware_compatible="ampere_plus"
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"maxbatch": "4"}, "no option 'maxbatch'.*Did you mean 'max_batch'"),
        ({"max_batch": "four"}, "max_batch='four'; expected a whole number"),
        ({"max_batch": "0"}, "expected 1 or more"),
        ({"device": "-1"}, "expected 0 or more"),
        ({"max_batch": "4", "opt_batch": "8"}, "opt_batch=8 is above max_batch=4"),
        ({"refit": "maybe"}, "expected on or off"),
        ({"refit": "on", "version_compatible": "on"}, "exclude each other"),
        ({"hardware_compatible": "ampere"}, "Did you mean 'ampere_plus'"),
    ],
)
def test_wrong_options_are_named(options: dict[str, str], text: str) -> None:
    with pytest.raises(EngineError, match=text):
        TensorRtOptions.from_text(options)


@pytest.mark.parametrize(
    ("options", "size_px", "expected"),
    [
        (TensorRtOptions(), 224, (32, 32)),
        (TensorRtOptions(), 32, (256, 256)),
        (TensorRtOptions(), 4000, (1, 1)),
        (TensorRtOptions(opt_batch=64), 224, (64, 64)),
        (TensorRtOptions(opt_batch=1), 224, (1, 32)),
        (TensorRtOptions(max_batch=5), 224, (5, 5)),
    ],
)
def test_batches_follow_the_image_size(
    options: TensorRtOptions, size_px: int, expected: tuple[int, int]
) -> None:
    assert options.batches(size_px, size_px) == expected


RECORD = PlanRecord(
    plan_sha256="f" * 64,
    onnx_sha256="a" * 64,
    precision="fp16",
    gpu="NVIDIA Test 1",
    compute_capability="9.0",
    tensorrt="11.4.0.106",
    opt_batch=8,
    max_batch=16,
    workspace_bytes=1 << 30,
    refit=False,
    version_compatible=False,
    hardware_compatible="none",
)


def test_a_sidecar_is_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import hashlib

    monkeypatch.setenv("LTDEPLOY_CACHE", str(tmp_path / "cache"))
    files = PlanFiles(tmp_path / "engines")
    record = RECORD.model_copy(update={"plan_sha256": hashlib.sha256(b"plan").hexdigest()})
    path = files.save(b"plan", record)
    assert path.read_bytes() == b"plan"  # nothing prepended
    assert json.loads(path.with_suffix(".json").read_text())["schema"] == 1
    assert files.find(record, lean_runtime=False) == ((b"plan", record), [])
    path.unlink()
    found, (reason,) = files.find(record, lean_runtime=False)
    assert found is None
    assert "cannot be read (No such file" in reason


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"\xff", b"[" * 60_000, b" " * 70_000, b'{"schema": 2}']
)
def test_a_hostile_sidecar_is_not_taken(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.json").write_bytes(content)
    (tmp_path / "x.plan").write_bytes(b"plan")
    found, reasons = PlanFiles(tmp_path, trust=True).find(RECORD, lean_runtime=False)
    assert found is None
    assert len(reasons) == 1


def test_every_field_that_matters_is_compared() -> None:
    assert RECORD.misfit(RECORD, lean_runtime=False) is None
    changes = {
        "onnx_sha256": "b" * 64,
        "gpu": "NVIDIA Test 2",
        "compute_capability": "8.6",
        "tensorrt": "10.16.1.11",
        "opt_batch": 4,
        "max_batch": 32,
        "refit": True,
        "version_compatible": True,
        "hardware_compatible": "ampere_plus",
    }
    free = {"schema_version", "plan_sha256", "precision", "min_batch", "workspace_bytes"}
    assert set(PlanRecord.model_fields) == set(changes) | free  # precision is in the ONNX's hash
    for name, value in changes.items():
        other = RECORD.model_copy(update={name: value})
        assert other.misfit(RECORD, lean_runtime=True) is not None, name
        free_to_be = other.misfit(RECORD, lean_runtime=True, asked=()) is None
        assert free_to_be == (name in BUILD_OPTIONS), name


def test_a_machine_without_gpu_is_told_what_is_missing(bundle_path: Path) -> None:
    try:
        said = diagnose_tensorrt()
    except EngineError as error:
        said = str(error)
        assert "\n" not in said
    else:
        pytest.skip(f"TensorRT works here: {said}")
    assert "driver" in said or "not installed" in said or "finds none" in said
    with pytest.raises(LtdeployError):
        open_tensorrt(open_bundle(bundle_path))


BROKEN = """
import sys, types
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from ltdeploy.engines.tensorrt_library import import_tensorrt
from ltdeploy.errors import LtdeployError
try:
    import_tensorrt()
except LtdeployError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("module", "text"),
    [
        ("raise ImportError('libnvinfer.so.11: cannot open')", "library is not: libnvinfer.so.11"),
        ("__version__ = '10.12.0.36'", "10.12.0.36 is installed; expected 10.13 to 11"),
        ("__version__ = '12.0.0'", "12.0.0 is installed; expected 10.13 to 11"),
    ],
)
def test_a_tensorrt_that_cannot_be_used_is_named(tmp_path: Path, module: str, text: str) -> None:
    (tmp_path / "tensorrt.py").write_text(module)
    command = [sys.executable, "-c", BROKEN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("EngineError")
    assert text in done.stdout


def test_supported_versions_are_what_the_documentation_says() -> None:
    assert library.SUPPORTED == ((10, 13), (12, 0))
