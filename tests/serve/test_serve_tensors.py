"""Tensors and inference bodies: round trips, every refusal, and what is hostile or random."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from protocol_samples import NumpyModel
from tritonclient.http import InferenceServerClient, InferInput
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype

from ltdeploy.classes import ClassTable
from ltdeploy.engines import TensorSpec
from ltdeploy.serve.failures import BadRequest, RequestError
from ltdeploy.serve.infer_body import answer_body, parse_body
from ltdeploy.serve.infer_request import InferRequest, WantedOutput
from ltdeploy.serve.tensors import datatype_of, feed_from_bytes, feed_from_values, output_bytes

DTYPES = ("bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64")
FLOATS = ("float16", "float32", "float64")
MODEL = NumpyModel()
SMALL = (TensorSpec("images", "uint8", (None, 1, 2, 3)),)
OUTPUTS = (TensorSpec("logits", "float32", (None, 3)), TensorSpec("boxes", "float32", (None, 2, 4)))


def any_array() -> st.SearchStrategy[np.ndarray]:
    shape = arrays.array_shapes(min_dims=1, max_dims=4, max_side=4)
    return st.sampled_from((*DTYPES, *FLOATS)).flatmap(
        lambda dtype: arrays.arrays(
            dtype,
            shape,
            elements={} if dtype in DTYPES else {"allow_nan": False, "allow_infinity": False},
        )
    )


def open_spec(array: np.ndarray) -> TensorSpec:
    """Return what a model says that takes arrays of any such length."""
    return TensorSpec("x", array.dtype.name, (None, *array.shape[1:]))


def parse(asked: Any, tail: bytes = b"", header: str | None = None) -> InferRequest:
    text = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    return parse_body(text + tail, header or (str(len(text)) if tail else None), SMALL, OUTPUTS)


def good() -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": "images",
                "datatype": "UINT8",
                "shape": [2, 1, 2, 3],
                "data": list(range(12)),
            }
        ]
    }


def good_binary() -> dict[str, Any]:
    asked = good()
    del asked["inputs"][0]["data"]
    asked["inputs"][0]["parameters"] = {"binary_data_size": 12}
    return asked


@given(any_array())
def test_datatypes_are_tritons_names(array: np.ndarray) -> None:
    assert datatype_of(array.dtype.name) == np_to_triton_dtype(array.dtype)


@given(any_array())
def test_bytes_come_back_as_the_array_without_a_copy(array: np.ndarray) -> None:
    data = array.tobytes()
    back = feed_from_bytes(
        open_spec(array), datatype_of(array.dtype.name), list(array.shape), memoryview(data)
    )
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    assert np.shares_memory(back, np.frombuffer(data, np.uint8))
    assert not back.flags.writeable


@given(any_array(), st.booleans())
def test_numbers_come_back_as_the_array(array: np.ndarray, flat: bool) -> None:
    values = json.loads(json.dumps((array.ravel() if flat else array).tolist()))
    back = feed_from_values(
        open_spec(array), datatype_of(array.dtype.name), list(array.shape), values
    )
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@given(any_array())
def test_outputs_are_row_major_bytes_whatever_lies_in_memory(array: np.ndarray) -> None:
    for laid in (array, np.asfortranarray(array), array.astype(array.dtype.newbyteorder(">"))):
        assert bytes(output_bytes(laid)) == array.tobytes()
    assert bytes(output_bytes(array[::2])) == array[::2].tobytes()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_texts_are_as_tritonclient_reads_them(texts: list[str]) -> None:
    back = deserialize_bytes_tensor(output_bytes(np.array(texts, np.object_)))
    assert [text.decode() for text in back] == texts


@given(
    arrays.arrays("uint8", st.tuples(st.integers(1, 4), *map(st.just, (1, 2, 3)))), st.booleans()
)
def test_what_tritonclient_writes_is_read(array: np.ndarray, binary: bool) -> None:
    tensor = InferInput("images", list(array.shape), "UINT8")
    tensor.set_data_from_numpy(array, binary_data=binary)
    body, json_bytes = InferenceServerClient.generate_request_body(
        [tensor], request_id="seven", timeout=1500
    )
    asked = parse_body(body, None if json_bytes is None else str(json_bytes), SMALL, OUTPUTS)
    np.testing.assert_array_equal(asked.feeds["images"], array)
    assert (asked.id, asked.deadline_s) == ("seven", 0.0015)
    assert asked.outputs == (WantedOutput("logits", True), WantedOutput("boxes", True))


@given(
    arrays.arrays("float32", st.tuples(st.integers(1, 4), st.just(3))),
    st.booleans(),
    st.text(),
)
def test_what_is_answered_tritonclient_reads(logits: np.ndarray, binary: bool, name: str) -> None:
    asked = InferRequest({}, (WantedOutput("logits", binary),), name)
    if not binary and not np.isfinite(logits).all():
        with pytest.raises(BadRequest, match="binary_data"):
            answer_body(asked, {"logits": logits}, MODEL)
        return
    body, json_bytes = answer_body(asked, {"logits": logits}, MODEL)
    read = InferenceServerClient.parse_response_body(body, header_length=json_bytes)
    np.testing.assert_array_equal(read.as_numpy("logits"), logits)
    assert (json_bytes is None) is (not binary)
    assert json.loads(body[:json_bytes]).get("id", "") == name


def test_only_what_is_wanted_is_answered_in_its_order_and_form() -> None:
    wish = [{"name": "boxes", "parameters": {"binary_data": False}}, {"name": "logits"}]
    asked = parse({**good(), "outputs": wish, "parameters": {"binary_data_output": True}})
    assert asked.outputs == (WantedOutput("boxes", False), WantedOutput("logits", True))
    assert parse(good()).outputs == (WantedOutput("logits"), WantedOutput("boxes"))
    nothing = {"outputs": None, "parameters": None, "id": None}
    assert parse({**good(), **nothing}).outputs == parse(good()).outputs


def test_classes_are_named_best_first_and_the_first_of_equals_wins() -> None:
    logits = np.array([[1.0, 3.0, 1.0], [-1.5, -2.0, -1.0]], np.float32)
    asked = InferRequest({}, (WantedOutput("logits", top=2),))
    body, _ = answer_body(asked, {"logits": logits}, MODEL)
    (output,) = json.loads(body)["outputs"]
    assert output == {
        "name": "logits",
        "datatype": "BYTES",
        "shape": [2, 2],
        "data": ["3.000000:1:dog", "1.000000:0:cat", "-1.000000:2:lynx", "-1.500000:0:cat"],
    }


def test_classes_without_names_have_their_number_only() -> None:
    @dataclass
    class Nameless(NumpyModel):
        classes = ClassTable.from_counts([3, 2, 1])

    asked = InferRequest({}, (WantedOutput("logits", top=1),))
    body, _ = answer_body(asked, {"logits": np.eye(3, dtype=np.float32)[:1]}, Nameless())
    assert json.loads(body)["outputs"][0]["data"] == ["1.000000:0"]


def tensor(**changes: Any) -> dict[str, Any]:
    asked = good()
    asked["inputs"][0].update(changes)
    return asked


NESTED = np.arange(12).reshape(2, 1, 2, 3).tolist()
WRONG: list[tuple[str, Any]] = [
    ("wrong_json", b""),
    ("wrong_json", b"\xff\xfe{}"),
    ("wrong_json", b"[" * 200_000),
    ("wrong_json", b'{"inputs":' * 100_000),
    ("wrong_json", b'{"id":' + b"1" * 10_000 + b"}"),
    ("wrong_json", b"[]"),
    ("wrong_json", b'{"x": NaN}'),
    ("wrong_json", b'{"x": -Infinity}'),
    ("wrong_json", {**good(), "id": 7}),
    ("wrong_json", {**good(), "parameters": []}),
    ("wrong_json", {**good(), "outputs": {}}),
    ("wrong_json", {**good(), "outputs": ["logits"]}),
    ("wrong_json", {"inputs": [{}]}),
    ("wrong_json", tensor(name=None)),
    ("wrong_json", tensor(parameters="x")),
    ("missing_input", {}),
    ("missing_input", {"inputs": []}),
    ("input_twice", {"inputs": good()["inputs"] * 2}),
    ("unknown_input", tensor(name="photos")),
    ("unknown_output", {**good(), "outputs": [{"name": "masks"}]}),
    ("output_twice", {**good(), "outputs": [{"name": "boxes"}, {"name": "boxes"}]}),
    ("unknown_datatype", tensor(datatype="FLOAT")),
    ("unknown_datatype", tensor(datatype=None)),
    ("unknown_datatype", tensor(datatype=["UINT8"])),
    ("wrong_datatype", tensor(datatype="FP32")),
    ("wrong_datatype", tensor(datatype="BF16")),
    ("wrong_shape", tensor(shape=None)),
    ("wrong_shape", tensor(shape="2123")),
    ("wrong_shape", tensor(shape=[2, 1, 2])),
    ("wrong_shape", tensor(shape=[2, 1, 2, 4])),
    ("wrong_shape", tensor(shape=[0, 1, 2, 3], data=[])),
    ("wrong_shape", tensor(shape=[-2, 1, 2, -3])),
    ("wrong_shape", tensor(shape=[2.0, 1, 2, 3])),
    ("wrong_shape", tensor(shape=[True, 1, 2, 3], data=[0] * 6)),
    ("wrong_shape", tensor(shape=[2**63, 1, 2, 3])),
    ("wrong_shape", tensor(shape=[1] * 10_000)),
    ("wrong_size", tensor(shape=[2**62, 1, 2, 3])),
    ("wrong_size", tensor(data=list(range(11)))),
    ("wrong_size", tensor(data=[])),
    ("wrong_size", tensor(data=NESTED[:1])),
    ("wrong_size", tensor(data=[NESTED[0], [[[1, 2], [3, 4, 5]]]])),
    ("wrong_size", tensor(data=[NESTED[0], "ab"])),
    ("wrong_value", tensor(data=None)),
    ("wrong_value", tensor(data="0123456789ab")),
    ("wrong_value", tensor(data=[256] + [0] * 11)),
    ("wrong_value", tensor(data=[-1] + [0] * 11)),
    ("wrong_value", tensor(data=[10**400] + [0] * 11)),
    ("wrong_value", tensor(data=[1.0] + [0] * 11)),
    ("wrong_value", tensor(data=[True] + [0] * 11)),
    ("wrong_value", tensor(data=["1"] + [0] * 11)),
    ("wrong_value", tensor(data=[None] + [0] * 11)),
    ("wrong_value", tensor(data=[0] * 11 + [[0]])),
    ("shared_memory", tensor(parameters={"shared_memory_region": "region"})),
    ("wrong_parameter", {**good(), "parameters": {"timeout": -1}}),
    ("wrong_parameter", {**good(), "parameters": {"timeout": "1"}}),
    ("wrong_parameter", {**good(), "parameters": {"timeout": True}}),
    ("wrong_parameter", {**good(), "parameters": {"timeout": 10**400}}),
    ("wrong_parameter", {**good(), "parameters": {"binary_data_output": 1}}),
    ("wrong_parameter", tensor(parameters={"binary_data_size": 12})),
    ("wrong_parameter", tensor(parameters={"binary_data_size": -12})),
    ("wrong_parameter", tensor(parameters={"binary_data_size": 12.0})),
] + [
    (cause, {**good(), "outputs": [{"name": name, "parameters": parameters}]})
    for cause, name, parameters in [
        ("wrong_parameter", "logits", {"binary_data": "yes"}),
        ("wrong_parameter", "logits", {"classification": -1}),
        ("wrong_parameter", "logits", {"classification": "2"}),
        ("wrong_parameter", "boxes", {"classification": 2}),
        ("shared_memory", "logits", {"shared_memory_region": "region"}),
    ]
]


@pytest.mark.parametrize(("cause", "asked"), WRONG, ids=[str(place) for place in range(len(WRONG))])
def test_what_is_wrong_is_refused_with_its_cause(cause: str, asked: Any) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(asked)
    assert caught.value.cause == cause
    assert caught.value.reason.isascii()
    assert len(caught.value.reason) < 300


def test_the_good_request_is_the_control_of_the_wrong_ones() -> None:
    expected = np.arange(12, dtype=np.uint8).reshape(2, 1, 2, 3)
    for asked in (
        parse(good()),
        parse(tensor(data=NESTED)),
        parse(good_binary(), bytes(range(12))),
    ):
        np.testing.assert_array_equal(asked.feeds["images"], expected)


@pytest.mark.parametrize("tail", [b"", b"x" * 11, b"x" * 13])
def test_bytes_are_neither_cut_off_nor_left_over(tail: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(good_binary(), tail)
    assert caught.value.cause == "wrong_size"


@pytest.mark.parametrize(
    "header", ["-1", "1e2", "nan", "NaN", "", " ", "9" * 18, "1" * 5000, "²", "0x10", "+5", "1_0"]
)
def test_a_header_that_is_no_length_is_refused(header: str) -> None:
    body = json.dumps(good()).encode()
    with pytest.raises(BadRequest) as caught:
        parse_body(body, header, SMALL, OUTPUTS)
    assert caught.value.cause == "wrong_header_length"


def test_a_truth_is_a_byte_of_0_or_1() -> None:
    spec = TensorSpec("x", "bool", (None,))
    assert feed_from_bytes(spec, "BOOL", [2], b"\x00\x01").tolist() == [False, True]
    with pytest.raises(BadRequest):
        feed_from_bytes(spec, "BOOL", [2], b"\x00\x02")


@pytest.mark.parametrize("value", [1e39, -1e39, 10**400, float("inf"), float("nan")])
def test_a_number_out_of_a_floats_range_is_refused(value: float) -> None:
    spec = TensorSpec("x", "float32", (None,))
    assert feed_from_values(spec, "FP32", [2], [1, 2.5]).tolist() == [1.0, 2.5]
    with pytest.raises(BadRequest):
        feed_from_values(spec, "FP32", [1], [value])


@given(st.binary(max_size=300), st.none() | st.text(max_size=4) | st.integers(0, 300).map(str))
@example(b"{}", "2")
def test_random_bodies_raise_nothing_but_refusals(body: bytes, header: str | None) -> None:
    with pytest.raises(RequestError):
        parse_body(body, header, SMALL, OUTPUTS)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
    | st.sampled_from(["images", "logits", "UINT8", "FP32", "binary_data", "classification"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)


@given(
    st.sampled_from(["id", "parameters", "inputs", "outputs"])
    | st.sampled_from(["name", "datatype", "shape", "data", "in_parameters", "out_parameters"]),
    st.sampled_from(["binary_data_size", "binary_data", "timeout", "classification", "x"]),
    VALUES,
    st.binary(max_size=20),
)
def test_a_good_request_with_something_strange_is_answered_or_refused(
    place: str, parameter: str, value: Any, tail: bytes
) -> None:
    asked = {**good(), "outputs": [{"name": "logits"}]}
    if place in ("id", "parameters", "inputs", "outputs"):
        asked[place] = {parameter: value} if place == "parameters" else value
    elif place in ("in_parameters", "out_parameters"):
        owner = asked["inputs" if place == "in_parameters" else "outputs"][0]
        owner["parameters"] = {parameter: value}
    else:
        asked["inputs"][0][place] = value
    with contextlib.suppress(RequestError):
        wanted = parse(asked, tail)
        logits = np.zeros((2, 3), np.float32)
        answer_body(wanted, {"logits": logits, "boxes": np.zeros((2, 2, 4), np.float32)}, MODEL)
