"""The protocol over gRPC: Triton's client, raw calls, and the messages' definition."""

from __future__ import annotations

import importlib.util
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from google.protobuf import descriptor_pb2
from protocol_samples import (
    NAMES,
    PATIENCE_S,
    SIDE_PX,
    VERSION,
    Addresses,
    NumpyModel,
    NumpyModels,
    images,
    running,
)
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.utils import InferenceServerException

from ltdeploy.serve.failures import TooMany
from ltdeploy.serve.grpc_v2 import SERVICE
from ltdeploy.serve.protocol import open_inference_pb2 as pb

PROTOCOL = Path(pb.__file__).resolve().parent


@pytest.fixture(scope="module")
def models() -> NumpyModels:
    return NumpyModels([NumpyModel(), NumpyModel(version="2")])


@pytest.fixture(scope="module")
def addresses(models: NumpyModels) -> Iterator[Addresses]:
    with running(models) as places:
        yield places


@pytest.fixture
def client(addresses: Addresses) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(addresses.grpc) as client:
        yield client


@pytest.fixture
def channel(addresses: Addresses) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(addresses.grpc) as channel:
        yield channel


def infer(channel: grpc.Channel, request: Any, **options: Any) -> Any:
    """Call ModelInfer with our own messages."""
    call = channel.unary_unary(
        f"/{SERVICE}/ModelInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelInferResponse.FromString,
    )
    return call(request, timeout=PATIENCE_S, **options)


def asked(pictures: np.ndarray, *, raw: bool = True) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="species", id="seven")
    tensor = request.inputs.add(name="images", datatype="UINT8", shape=pictures.shape)
    if raw:
        request.raw_input_contents.append(pictures.tobytes())
    else:
        tensor.contents.uint_contents.extend(pictures.ravel().tolist())
    return request


def sent(pictures: np.ndarray) -> list[triton.InferInput]:
    tensor = triton.InferInput("images", list(pictures.shape), "UINT8")
    tensor.set_data_from_numpy(pictures)
    return [tensor]


def fields(message: Any) -> dict[str, Any]:
    """Return everything of a message's definition that travels, by number."""
    return {
        field.number: (
            field.name,
            field.type,
            field.is_repeated,
            field.containing_oneof.name if field.containing_oneof else None,
            fields(field.message_type) if field.message_type else None,
        )
        for field in message.fields
    }


def test_the_messages_are_those_of_the_protocol() -> None:
    theirs = service_pb2.DESCRIPTOR
    ours = pb.DESCRIPTOR
    narrower = ("ModelConfig", "ModelConfigResponse", "ModelInput", "ModelOutput")
    for name, message in ours.message_types_by_name.items():
        if name not in narrower:
            assert fields(message) == fields(theirs.message_types_by_name[name]), name
    for name in ("ModelConfig", "ModelInput", "ModelOutput"):
        wider = model_config_pb2.DESCRIPTOR.message_types_by_name[name]
        for field in ours.message_types_by_name[name].fields:
            other = wider.fields_by_name[field.name]
            assert (field.number, field.type) == (other.number, other.type)
    assert dict(pb.DataType.items()) == dict(model_config_pb2.DataType.items())
    for name, method in ours.services_by_name["GRPCInferenceService"].methods_by_name.items():
        other = theirs.services_by_name["GRPCInferenceService"].methods_by_name[name]
        assert method.input_type.name == other.input_type.name
        assert method.output_type.name == other.output_type.name
    assert theirs.services_by_name["GRPCInferenceService"].full_name == SERVICE


def test_the_comparison_notices_another_number() -> None:
    assert fields(pb.ServerLiveResponse.DESCRIPTOR) != fields(pb.ServerReadyResponse.DESCRIPTOR)


@pytest.mark.skipif(importlib.util.find_spec("grpc_tools") is None, reason="grpcio-tools absent")
def test_the_generated_messages_are_those_of_the_proto_file(tmp_path: Path) -> None:
    out = tmp_path / "set.pb"
    arguments = [f"-I{PROTOCOL}", f"--descriptor_set_out={out}", "open_inference.proto"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *arguments], check=True)
    (described,) = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    ours = descriptor_pb2.FileDescriptorProto()
    pb.DESCRIPTOR.CopyToProto(ours)
    assert without_json_names(ours) == without_json_names(described)
    stub = (PROTOCOL / "open_inference_pb2.pyi").read_text()
    assert all(f"class {message.name}(" in stub for message in described.message_type)


def without_json_names(file: Any) -> Any:
    """Return a definition without what protoc fills in for its own output."""

    def clean(message: Any) -> None:
        for field in message.field:
            field.ClearField("json_name")
        for nested in message.nested_type:
            clean(nested)

    for message in file.message_type:
        clean(message)
    return file


def test_ours_and_tritonclients_messages_load_in_either_order() -> None:
    modules = ("tritonclient.grpc", "ltdeploy.serve.grpc_v2")
    for first, second in (modules, modules[::-1]):
        code = f"import {first}, {second}"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=os.environ)
        assert done.returncode == 0, done.stderr


def test_tritonclient_reads_what_the_server_has(client: triton.InferenceServerClient) -> None:
    assert client.get_server_metadata().version == VERSION
    assert client.get_model_metadata("species").versions == ["1", "2"]
    config = client.get_model_config("species").config
    assert (config.max_batch_size, config.input[0].dims) == (16, [SIDE_PX, SIDE_PX, 3])
    assert config.input[0].data_type == model_config_pb2.TYPE_UINT8
    index = client.get_model_repository_index().models
    assert [(one.name, one.version, one.state) for one in index] == [
        ("species", "1", "READY"),
        ("species", "2", "READY"),
    ]
    with pytest.raises(InferenceServerException, match="UNIMPLEMENTED"):
        client.get_inference_statistics("species")


def test_classes_by_name(client: triton.InferenceServerClient) -> None:
    pictures = images(2)
    wish = triton.InferRequestedOutput("logits", class_count=9)
    got = client.infer("species", sent(pictures), outputs=[wish]).as_numpy("logits")
    best = NumpyModel().compute(pictures).argmax(axis=1)
    assert got.shape == (2, 3)
    assert [row[0].decode().split(":")[2] for row in got] == [NAMES[label] for label in best]


@pytest.mark.parametrize("raw", [False, True])
def test_numbers_and_bytes_are_answered_with_bytes(channel: grpc.Channel, raw: bool) -> None:
    pictures = images(3)
    answer = infer(channel, asked(pictures, raw=raw))
    assert (answer.model_name, answer.model_version, answer.id) == ("species", "2", "seven")
    (output,) = answer.outputs
    assert (output.name, output.datatype, list(output.shape)) == ("logits", "FP32", [3, 3])
    got = np.frombuffer(answer.raw_output_contents[0], np.float32).reshape(3, 3)
    np.testing.assert_array_equal(got, NumpyModel().compute(pictures))


def wrong_requests() -> dict[str, tuple[pb.ModelInferRequest, str]]:
    """Return requests that are refused, with the cause."""
    good = images(1)
    both = asked(good)
    both.inputs[0].contents.uint_contents.append(1)
    short = asked(good)
    short.raw_input_contents[0] = short.raw_input_contents[0][:-1]
    many = asked(good)
    many.raw_input_contents.append(b"")
    large = asked(good, raw=False)
    large.inputs[0].contents.uint_contents[0] = 256
    empty = asked(good)
    empty.raw_input_contents.pop()
    half = asked(good)
    half.inputs[0].datatype = "FP16"
    strange = asked(good)
    strange.inputs[0].datatype = "\u20ac\n"
    negative = asked(good)
    negative.inputs[0].shape[0] = -(2**63)
    huge = asked(good)
    huge.inputs[0].shape[0] = 2**62
    unnamed = asked(good)
    unnamed.inputs[0].name = "\u20ac\n" * 1000
    twice = asked(good)
    twice.inputs.append(twice.inputs[0])
    shared = asked(good)
    shared.inputs[0].parameters["shared_memory_region"].string_param = "region"
    output = asked(good)
    output.outputs.add(name="boxes")
    late = asked(good)
    late.parameters["timeout"].string_param = "soon"
    return {
        "both": (both, "wrong_parameter"),
        "short": (short, "wrong_size"),
        "many": (many, "wrong_size"),
        "large": (large, "wrong_value"),
        "empty": (empty, "wrong_size"),
        "half": (half, "wrong_datatype"),
        "strange": (strange, "unknown_datatype"),
        "negative": (negative, "wrong_shape"),
        "huge": (huge, "wrong_size"),
        "unnamed": (unnamed, "unknown_input"),
        "twice": (twice, "input_twice"),
        "shared": (shared, "shared_memory"),
        "output": (output, "unknown_output"),
        "late": (late, "wrong_parameter"),
        "nothing": (pb.ModelInferRequest(model_name="species"), "missing_input"),
    }


@pytest.mark.parametrize("name", wrong_requests())
def test_wrong_requests_are_refused_with_their_cause(
    channel: grpc.Channel, models: NumpyModels, name: str
) -> None:
    request, cause = wrong_requests()[name]
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert dict(caught.value.trailing_metadata())["cause"] == cause
    assert 0 < len(caught.value.details()) < 300
    assert models.refusals[-1] == ("species", cause)


def test_an_unknown_model_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, pb.ModelInferRequest(model_name="nothing"))
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND


def test_the_earlier_of_deadline_and_timeout_holds(
    channel: grpc.Channel, models: NumpyModels
) -> None:
    request, seen = asked(images(1)), models.models[1].deadlines_s
    infer(channel, request)
    assert 0 < seen[-1] < 2 * PATIENCE_S
    request.parameters["timeout"].int64_param = 250_000
    infer(channel, request)
    assert seen[-1] == 0.25
    channel.unary_unary(f"/{SERVICE}/ModelInfer")(asked(images(1)).SerializeToString())
    assert seen[-1] is None


def test_a_full_queue_says_when_to_come_again_and_a_failure_says_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = NumpyModel(error=TooMany("The queue is full.", "queue_full", retry_after_s=1.2))
    with running(NumpyModels([model])) as places, grpc.insecure_channel(places.grpc) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            infer(channel, asked(images(1)))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert caught.value.details() == "The queue is full."
        assert dict(caught.value.trailing_metadata())["retry-after"] == "2"
        model.error = RuntimeError("/secret/path")
        with pytest.raises(grpc.RpcError) as caught:
            infer(channel, asked(images(1)))
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in str(caught.value)
    logged = [one.exc_info[1] for one in caplog.records if one.levelno == logging.ERROR]
    assert logged == [model.error]


@pytest.mark.parametrize("cancels", [True, False])
def test_work_ends_when_its_client_cancels_or_its_deadline_passes(cancels: bool) -> None:
    model = NumpyModel(held=True)
    with running(NumpyModels([model])) as places, grpc.insecure_channel(places.grpc) as channel:
        method = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        request = asked(images(1)).SerializeToString()
        call = method.future(request, timeout=PATIENCE_S if cancels else 1.0)
        assert model.started.wait(PATIENCE_S)
        if cancels:
            call.cancel()
        assert model.cancelled.wait(PATIENCE_S)


@pytest.fixture(scope="module")
def guarded_models() -> NumpyModels:
    return NumpyModels([NumpyModel()])


@pytest.fixture(scope="module")
def guarded(guarded_models: NumpyModels) -> Iterator[triton.InferenceServerClient]:
    with (
        running(guarded_models, tokens=("first", "s3cret")) as places,
        triton.InferenceServerClient(places.grpc) as client,
    ):
        yield client


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Bearer "},
        {"authorization": "s3cret"},
        {"authorization": "Basic s3cret"},
        {"other": "Bearer s3cret"},
    ],
)
def test_without_a_token_there_is_health_and_nothing_else(
    guarded: triton.InferenceServerClient,
    guarded_models: NumpyModels,
    headers: dict[str, str],
) -> None:
    assert guarded.is_server_live(headers)
    assert guarded.is_server_ready(headers)
    with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
        guarded.get_server_metadata(headers)
    with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
        guarded.infer("species", sent(images(1)), headers=headers)
    assert guarded_models.refusals[-2:] == [(None, "token")] * 2


@pytest.mark.parametrize("header", ["Bearer first", "Bearer s3cret", "bearer s3cret"])
def test_a_token_opens_everything(guarded: triton.InferenceServerClient, header: str) -> None:
    headers = {"authorization": header}
    assert guarded.get_server_metadata(headers).name == "ltdeploy"
    assert guarded.infer("species", sent(images(1)), headers=headers)


def test_many_at_once(client: triton.InferenceServerClient) -> None:
    answers: list[Any] = []
    done = threading.Semaphore(0)

    def keep(result: Any, error: Any) -> None:
        answers.append((result, error))
        done.release()

    for seed in range(20):
        client.async_infer("species", sent(images(1, seed)), keep, request_id=str(seed))
    assert all(done.acquire(timeout=PATIENCE_S) for _ in range(20))
    for result, error in answers:
        assert error is None
        expected = NumpyModel().compute(images(1, int(result.get_response().id)))
        np.testing.assert_array_equal(result.as_numpy("logits"), expected)
