"""How engines are asked for, and what is refused."""

from __future__ import annotations

import pytest

from ltdeploy.bundle import open_bundle
from ltdeploy.engines import ENGINES, EngineSpec, open_engine, parse_engine
from ltdeploy.errors import EngineError


@pytest.mark.parametrize("name", ENGINES)
def test_a_name_alone_is_an_engine(name: str) -> None:
    assert parse_engine(name) == EngineSpec(name, {})


def test_options_have_types() -> None:
    assert parse_engine("openvino:hint=throughput,threads=4").options == {
        "hint": "throughput",
        "threads": 4,
    }
    assert parse_engine("onnxruntime-cuda:device=1,graphs=on").options == {
        "device": 1,
        "graphs": True,
    }
    assert parse_engine("onnxruntime-tensorrt:cache=off").options == {"cache": False}


def test_the_tensorrt_engine_reads_its_own_options() -> None:
    assert parse_engine("tensorrt:max_batch=8,refit=on").options == {
        "max_batch": "8",
        "refit": "on",
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("opnvino", "Unknown engine 'opnvino'.* Did you mean 'openvino'"),
        ("", "Unknown engine ''; expected one of auto,"),
        ("openvino:thread=2", "no option 'thread'; expected one of hint, threads.* mean 'threads'"),
        ("onnxruntime:graphs=on", "engine onnxruntime has no option 'graphs'"),
        ("auto:device=1", "engine auto has no option 'device'"),
        ("openvino:hint=latncy", r"expected latency or throughput\. Did you mean 'latency'\?$"),
        ("openvino:threads=two", r"threads is 'two'; expected a number\.$"),
        ("openvino:threads=-1", "threads is '-1'; expected a number"),
        ("openvino:threads=0", "threads is 0; expected 1 to"),
        ("openvino:threads=100000", "threads is 100000; expected 1 to"),
        ("onnxruntime-cuda:graphs=maybe", "graphs is 'maybe'; expected on or off"),
        ("openvino:", "has '' where key=value was expected"),
        ("openvino:threads", "has 'threads' where key=value was expected"),
        ("openvino:threads=1,,hint=latency", "has '' where key=value"),
        ("openvino:threads=1,threads=2", "gives threads twice"),
    ],
)
def test_what_is_wrong_is_named(text: str, said: str) -> None:
    with pytest.raises(EngineError, match=said):
        parse_engine(text)


def test_threads_asked_for_are_found() -> None:
    assert parse_engine("auto:threads=2").threads == 2
    assert parse_engine("openvino").threads is None
    assert parse_engine("tensorrt:threads=2").threads is None  # no option of it, and refused later


def test_threads_said_twice(bundle_path: object) -> None:
    bundle = open_bundle(str(bundle_path))
    open_engine(bundle, "onnxruntime:threads=1", threads=1).close()
    with pytest.raises(EngineError, match="onnxruntime:threads is 1 and threads is 2"):
        open_engine(bundle, "onnxruntime:threads=1", threads=2)
    with pytest.raises(EngineError, match="threads is 0"):
        open_engine(bundle, "onnxruntime-cuda", threads=0)
