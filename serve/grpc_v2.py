"""The Open Inference Protocol over gRPC.

Errors are statuses with a reason; ``cause`` and, where trying again makes sense, ``retry-after``
in seconds stand in the trailing metadata. A client's deadline and cancellation hold for the work.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import grpc
import grpc.aio
import numpy.typing as npt

from ltdeploy.engines import TensorSpec

from .contracts import Arrays, Models, ServedModel
from .failures import BadRequest, Failed, NotFound, RequestError, Unauthenticated
from .http_v2 import EXTENSIONS, batchless_dims, versions_of
from .infer_request import (
    InferRequest,
    check_names,
    deadline_of,
    refuse_shared_memory,
    wanted_outputs,
    wished_outputs,
)
from .protocol import open_inference_pb2 as pb
from .settings import ServeSettings
from .tensors import datatype_of, feed_from_bytes, feed_from_values, metadata_shape, output_bytes

__all__ = ["SERVICE", "InferenceServicer", "TokenInterceptor", "add_to"]

SERVICE = "inference.GRPCInferenceService"
_OPEN_METHODS = {f"/{SERVICE}/ServerLive", f"/{SERVICE}/ServerReady"}
# Typed contents are as wide as protobuf's numbers; half precision comes as bytes only.
_CONTENTS = {
    "BOOL": "bool_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
}

Method = Callable[[Any, Any], Awaitable[Any]]
Refused = Callable[[str | None, str], None]

_log = logging.getLogger(__name__)


class InferenceServicer:
    """Answers the methods of ``GRPCInferenceService``; :func:`add_to` puts it on a server.

    Parameters
    ----------
    models : what the server has.
    server_name, version : of the server, as its metadata says them.
    max_batch : images in a request at most, as the models' configuration says it.
    """

    def __init__(
        self,
        models: Models,
        *,
        server_name: str = "ltdeploy",
        version: str,
        max_batch: int = ServeSettings.max_batch,
    ) -> None:
        self._models, self._max_batch = models, max_batch
        self._name, self._version = server_name, version

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: Any
    ) -> pb.ServerLiveResponse:
        """Say that the process answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: Any
    ) -> pb.ServerReadyResponse:
        """Say whether every model answers."""
        return pb.ServerReadyResponse(ready=self._models.is_ready)

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: Any
    ) -> pb.ModelReadyResponse:
        """Say whether a model answers; one that does not exist does not."""
        try:
            return pb.ModelReadyResponse(ready=self._model(request.name, request.version).is_ready)
        except NotFound:
            return pb.ModelReadyResponse(ready=False)

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: Any
    ) -> pb.ServerMetadataResponse:
        """Say what the server is."""
        return pb.ServerMetadataResponse(
            name=self._name, version=self._version, extensions=EXTENSIONS
        )

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: Any
    ) -> pb.ModelMetadataResponse:
        """Say what a model takes and gives."""
        model = self._model(request.name, request.version)
        return pb.ModelMetadataResponse(
            name=model.name,
            versions=versions_of(self._models, model.name),
            platform=model.platform,
            inputs=[_metadata(spec) for spec in model.inputs],
            outputs=[_metadata(spec) for spec in model.outputs],
        )

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: Any
    ) -> pb.ModelConfigResponse:
        """Say what a model takes and gives, as Triton's configuration has it."""
        model = self._model(request.name, request.version)
        return pb.ModelConfigResponse(
            config=pb.ModelConfig(
                name=model.name,
                platform=model.platform,
                max_batch_size=self._max_batch,
                input=[pb.ModelInput(**_config(spec)) for spec in model.inputs],
                output=[pb.ModelOutput(**_config(spec)) for spec in model.outputs],
            )
        )

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: Any
    ) -> pb.RepositoryIndexResponse:
        """List the models."""
        return pb.RepositoryIndexResponse(
            models=[
                pb.RepositoryIndexResponse.ModelIndex(
                    name=model.name,
                    version=model.version,
                    state="READY" if model.is_ready else "UNAVAILABLE",
                )
                for model in self._models.listed()
                if model.is_ready or not request.ready
            ]
        )

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: Any
    ) -> pb.ModelInferResponse:
        """Run a model; the earlier of the call's deadline and the request's timeout holds."""
        model = self._model(request.model_name, request.model_version)
        asked = _asked(request, model)
        limits = [one for one in (context.time_remaining(), asked.deadline_s) if one is not None]
        answer = await model.infer(asked.feeds, deadline_s=min(limits, default=None))
        response = pb.ModelInferResponse(
            model_name=model.name, model_version=model.version, id=asked.id
        )
        for output in wanted_outputs(asked, answer, model):
            response.outputs.add(
                name=output.wanted.name, datatype=output.datatype, shape=output.array.shape
            )
            response.raw_output_contents.append(bytes(output_bytes(output.array)))
        return response

    def _model(self, name: str, version: str) -> ServedModel:
        """Return a model; protobuf has an empty text where there is no version."""
        return self._models.get(name, version or None)


class TokenInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Asks for a token in every method but the server's health.

    Parameters
    ----------
    tokens : any of them is right, as metadata ``authorization: Bearer TOKEN``.
    refused : told of every refusal: no model, and its cause.
    """

    def __init__(
        self, tokens: Sequence[str], *, refused: Refused = lambda model, cause: None
    ) -> None:
        self._refused = refused
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]

    async def intercept_service(
        self,
        continuation: Callable[[Any], Awaitable[Any]],
        handler_call_details: Any,
    ) -> Any:
        """Return the method's handler, or one that refuses the call."""
        details = handler_call_details
        shown = dict(details.invocation_metadata or ()).get("authorization", "")
        if details.method in _OPEN_METHODS or self._is_right(shown):
            return await continuation(details)
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    async def _refuse(self, request: bytes, context: Any) -> Any:
        """Refuse a call without a right token."""
        error = Unauthenticated(
            "The call has no valid token; expected metadata authorization: Bearer TOKEN.", "token"
        )
        self._refused(None, error.cause)
        return await _refuse(context, error)

    def _is_right(self, shown: str | bytes) -> bool:
        """Compare with every token, in a time that does not depend on how much of it is right."""
        text = shown if isinstance(shown, str) else ""
        scheme, _, token = text.partition(" ")
        digest = hashlib.sha256(token.strip().encode()).digest()
        right = [hmac.compare_digest(digest, one) for one in self._digests]
        return scheme.lower() == "bearer" and any(right)


def add_to(
    server: grpc.aio.Server,
    models: Models,
    *,
    server_name: str = "ltdeploy",
    version: str,
    max_batch: int = ServeSettings.max_batch,
    refused: Refused = lambda model, cause: None,
) -> None:
    """Register the service on a server, under the name that its clients call.

    Parameters
    ----------
    models, server_name, version, max_batch : as of :class:`InferenceServicer`.
    refused : told of every refusal: the model's name as the client says it, None where it says
        none, and the cause.
    """
    servicer = InferenceServicer(
        models, server_name=server_name, version=version, max_batch=max_batch
    )
    handlers = {
        method.name: grpc.unary_unary_rpc_method_handler(
            _answering(getattr(servicer, method.name), refused),
            request_deserializer=getattr(pb, method.input_type.name).FromString,
            response_serializer=getattr(pb, method.output_type.name).SerializeToString,
        )
        for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))


def _answering(method: Method, refused: Refused) -> Method:
    """Return a method as gRPC calls it: its errors are statuses, and none shows a traceback."""

    async def call(request: Any, context: Any) -> Any:
        try:
            return await method(request, context)
        except RequestError as error:
            refusal = error
        except Exception:
            _log.exception("a gRPC method failed")
            refusal = Failed("The server failed on the request.", "internal")
        model = getattr(request, "model_name", "") or getattr(request, "name", "")
        refused(model or None, refusal.cause)
        return await _refuse(context, refusal)

    return call


async def _refuse(context: Any, error: RequestError) -> Any:
    """End a call with an error's status; gRPC does it with an exception of its own."""
    trailing = [("cause", error.cause)]
    if "Retry-After" in error.headers:
        trailing.append(("retry-after", error.headers["Retry-After"]))
    return await context.abort(grpc.StatusCode[error.grpc], error.reason, tuple(trailing))


def _asked(request: pb.ModelInferRequest, model: ServedModel) -> InferRequest:
    """Return what a message asks of a model, checked."""
    parameters = _parameters(request.parameters)
    wished = [(one.name, _parameters(one.parameters)) for one in request.outputs]
    return InferRequest(
        _feeds(request, model.inputs),
        wished_outputs(model.outputs, wished),
        request.id,
        deadline_of(parameters.get("timeout")),
    )


def _feeds(request: pb.ModelInferRequest, inputs: Sequence[TensorSpec]) -> Arrays:
    """Return the arrays of a message: all of them as bytes, or all as numbers."""
    tensors, raw = request.inputs, request.raw_input_contents
    check_names(inputs, [tensor.name for tensor in tensors])
    specs = {spec.name: spec for spec in inputs}
    if len(raw) not in (0, len(tensors)):
        raise BadRequest(
            f"The request has {len(tensors)} inputs and {len(raw)} raw_input_contents; expected "
            "one each, or no raw contents.",
            "wrong_size",
        )
    feeds: dict[str, npt.NDArray[Any]] = {}
    for place, tensor in enumerate(tensors):
        refuse_shared_memory(_parameters(tensor.parameters))
        spec, shape = specs[tensor.name], list(tensor.shape)
        if not raw:
            values = _values(tensor)
            feeds[spec.name] = feed_from_values(spec, tensor.datatype, shape, values)
        elif tensor.HasField("contents"):
            raise BadRequest(
                f"The input {spec.name} has both contents and raw_input_contents.",
                "wrong_parameter",
            )
        else:
            feeds[spec.name] = feed_from_bytes(spec, tensor.datatype, shape, raw[place])
    return feeds


def _values(tensor: pb.ModelInferRequest.InferInputTensor) -> list[Any]:
    """Return the numbers of a tensor's typed contents; empty where its datatype has none."""
    contents = _CONTENTS.get(tensor.datatype)
    return [] if contents is None else list(getattr(tensor.contents, contents))


def _parameters(parameters: Mapping[str, pb.InferParameter]) -> dict[str, object]:
    """Return parameters as values of Python."""
    return {
        key: getattr(value, kind)
        for key, value in parameters.items()
        if (kind := value.WhichOneof("parameter_choice")) is not None
    }


def _metadata(spec: TensorSpec) -> pb.ModelMetadataResponse.TensorMetadata:
    """Return a tensor as metadata has it."""
    return pb.ModelMetadataResponse.TensorMetadata(
        name=spec.name, datatype=datatype_of(spec.dtype), shape=metadata_shape(spec)
    )


def _config(spec: TensorSpec) -> dict[str, Any]:
    """Return the fields of a tensor in Triton's configuration."""
    data_type = pb.DataType.Value(f"TYPE_{datatype_of(spec.dtype)}")
    return {"name": spec.name, "data_type": data_type, "dims": batchless_dims(spec)}
