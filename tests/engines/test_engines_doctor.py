"""What doctor finds out by running each engine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ltdeploy.cli.doctor import diagnose
from ltdeploy.cli.main import app
from ltdeploy.cli.runtime import run
from ltdeploy.engines import ENGINES
from ltdeploy.engines.hardware import cpu_features, nvidia_devices
from ltdeploy.errors import EngineError

ON_CPU = ("onnxruntime", "openvino", "torch")


@pytest.fixture(scope="module")
def found() -> dict[str, object]:
    return diagnose()


def has_gpu() -> bool:
    try:
        return bool(nvidia_devices())
    except EngineError:
        return False


def test_every_engine_is_asked(found: dict) -> None:
    assert set(found["engines"]) == {*ENGINES, "torch"} - {"auto"}
    for name in ON_CPU:
        assert found["engines"][name]["works"], found["engines"][name]


def test_the_keys_are_stable(found: dict) -> None:
    assert list(found) == [
        "schema",
        "ltdeploy",
        "python",
        "platform",
        "cores",
        "cpu_features",
        "engines",
        "auto",
        "packages",
    ]
    assert list(found["auto"]) == ["fp32", "fp16", "bf16", "int8"]
    for choice in found["auto"].values():
        assert list(choice) == ["takes", "against"]
        assert [name for name, why in choice["against"].items() if why is None] == [choice["takes"]]
    json.dumps(found, allow_nan=False)


@pytest.mark.skipif(has_gpu(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_what_is_missing(found: dict) -> None:
    for name in ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"):
        entry = found["engines"][name]
        assert not entry["works"]
        assert "No NVIDIA driver (libcuda.so.1" in entry["detail"]
    assert found["auto"]["bf16"]["takes"] == "openvino"


@pytest.mark.parametrize("package", ["onnxslim", "ml_dtypes", "ray", "cuda.bindings"])
def test_what_a_command_imports_is_listed(found: dict, package: str) -> None:
    assert package in found["packages"]


def test_a_part_of_what_is_not_installed_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    packages = sys.modules["ltdeploy.cli.doctor"]._PACKAGES
    monkeypatch.setitem(packages, "no_such_package.part", ("nothing", "cpu"))
    assert diagnose()["packages"]["no_such_package.part"]["version"] is None


def test_what_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("openvino", "onnxruntime"):
        monkeypatch.setitem(sys.modules, module, None)
    found = diagnose()
    assert "pip install 'ltdeploy[openvino]'" in found["engines"]["openvino"]["detail"]
    assert "pip install 'ltdeploy[cpu]'" in found["engines"]["onnxruntime"]["detail"]
    assert "pip install 'ltdeploy[gpu]'" in found["engines"]["onnxruntime-cuda"]["detail"]
    assert found["auto"]["bf16"]["against"]["onnxruntime"].startswith(
        "onnxruntime is not installed"
    )


@pytest.mark.parametrize(
    ("engine", "code", "said"),
    [
        ("openvino", 0, ""),
        ("auto", 0, ""),
        ("torch", 0, ""),
        ("openvino:threads=2", 0, ""),
        ("opnvino", 2, "Did you mean 'openvino'?"),
        ("openvino:thread=2", 2, "Did you mean 'threads'?"),
    ],
)
def test_it_can_be_asked_for_one_engine(
    engine: str, code: int, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(app, ["doctor", "-q", "--engine", engine]) == code
    assert said in capfd.readouterr().err


def test_an_engine_that_there_is_not_is_said_before_the_tables(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run(app, ["doctor", "--engine", "tensort"]) == 2
    said = capfd.readouterr()
    assert "Did you mean 'tensorrt'?" in said.err
    assert said.out == ""


def test_cpu_features_are_those_that_matter(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(
        "processor : 0\nflags : fpu avx2 avx512_vnni sse\n\nprocessor : 1\nflags : fpu\n"
    )
    assert cpu_features(info) == ("avx2", "avx512_vnni")
    assert cpu_features(tmp_path / "gone") == ()
