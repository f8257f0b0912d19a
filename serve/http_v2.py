"""The Open Inference Protocol over HTTP: health, metadata, configuration and inference.

Of Triton's extensions there are binary tensors, classification and the model's configuration.
Statistics stand in the metrics, and bundles are loaded by the files on disk: those addresses answer
404. Bodies that are compressed are refused, so that none is larger than it seems.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ltdeploy.engines import TensorSpec

from .contracts import Models, ServedModel
from .failures import ClientGone, RequestError, Unavailable, UnsupportedMedia
from .infer_body import HEADER_LENGTH, answer_body, parse_body
from .settings import ServeSettings
from .tensors import datatype_of, metadata_shape

__all__ = [
    "EXTENSIONS",
    "batchless_dims",
    "read_body",
    "refused",
    "unless_gone",
    "v2_routes",
    "versions_of",
]

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration")

Result = TypeVar("Result")


async def refused(request: Request, error: Exception) -> Response:
    """Answer with a :class:`RequestError` as JSON; for an app's ``exception_handlers``."""
    if not isinstance(error, RequestError):
        raise error
    return JSONResponse(error.to_dict(), error.status, error.headers)


async def read_body(request: Request) -> bytes:
    """Return a request's whole body as it was sent.

    Raises
    ------
    UnsupportedMedia
        If it is compressed.
    ClientGone
        If the client goes away before it has sent all of it.
    """
    if request.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise UnsupportedMedia(
            "The body is compressed; send it without a Content-Encoding.", "content_encoding"
        )
    try:
        return await request.body()
    except ClientDisconnect:
        raise ClientGone from None


async def unless_gone(request: Request, awaitable: Awaitable[Result]) -> Result:
    """Return what ``awaitable`` gives; cancel it as soon as the client goes away.

    Parameters
    ----------
    request : its body has been read, so that what comes next is the end of the connection.

    Raises
    ------
    ClientGone
        If the client went away first.
    """
    work = asyncio.ensure_future(awaitable)
    watch = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({work, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientGone
        return work.result()
    finally:
        work.cancel()
        watch.cancel()
        await asyncio.gather(work, watch, return_exceptions=True)


async def _gone(request: Request) -> None:
    """Wait until the client closes the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def v2_routes(
    models: Models,
    *,
    server_name: str = "ltdeploy",
    version: str,
    max_batch: int = ServeSettings.max_batch,
) -> list[Route]:
    """Return the protocol's routes; their errors are for :func:`refused`.

    Parameters
    ----------
    models : what the server has.
    server_name, version : of the server, as its metadata says them.
    max_batch : images in a request at most, as the models' configuration says it.
    """

    def model_of(request: Request) -> ServedModel:
        return models.get(request.path_params["name"], request.path_params.get("version"))

    async def server_metadata(request: Request) -> Response:
        return JSONResponse(
            {"name": server_name, "version": version, "extensions": list(EXTENSIONS)}
        )

    async def live(request: Request) -> Response:
        return JSONResponse({"live": True})  # KServe's client reads the body, Triton's the status

    async def ready(request: Request) -> Response:
        if not models.is_ready:
            raise Unavailable("The server is not ready.", "not_ready", retry_after_s=1)
        return JSONResponse({"ready": True})

    async def model_ready(request: Request) -> Response:
        model = model_of(request)
        if not model.is_ready:
            raise Unavailable("The model is not ready.", "not_ready", retry_after_s=1)
        return JSONResponse({"name": model.name, "ready": True})

    async def model_metadata(request: Request) -> Response:
        model = model_of(request)
        return JSONResponse(
            {
                "name": model.name,
                "versions": versions_of(models, model.name),
                "platform": model.platform,
                "inputs": [_metadata(spec) for spec in model.inputs],
                "outputs": [_metadata(spec) for spec in model.outputs],
            }
        )

    async def model_config(request: Request) -> Response:
        model = model_of(request)
        return JSONResponse(
            {
                "name": model.name,
                "platform": model.platform,
                "max_batch_size": max_batch,
                "input": [_config(spec) for spec in model.inputs],
                "output": [_config(spec) for spec in model.outputs],
            }
        )

    async def infer(request: Request) -> Response:
        body = await read_body(request)
        model = model_of(request)  # behind the upload, during which it may have been exchanged
        asked = parse_body(body, request.headers.get(HEADER_LENGTH), model.inputs, model.outputs)
        answer = await unless_gone(request, model.infer(asked.feeds, deadline_s=asked.deadline_s))
        content, json_bytes = answer_body(asked, answer, model)
        if json_bytes is None:
            return Response(content, media_type="application/json")
        return Response(
            content,
            media_type="application/octet-stream",
            headers={HEADER_LENGTH: str(json_bytes)},
        )

    async def index(request: Request) -> Response:
        return JSONResponse(
            [
                {
                    "name": model.name,
                    "version": model.version,
                    "state": "READY" if model.is_ready else "UNAVAILABLE",
                }
                for model in models.listed()
            ]
        )

    routes = [
        Route("/v2", server_metadata),
        Route("/v2/health/live", live),
        Route("/v2/health/ready", ready),
        Route("/v2/repository/index", index, methods=["POST"]),
    ]
    for path in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            Route(path, model_metadata),
            Route(f"{path}/ready", model_ready),
            Route(f"{path}/config", model_config),
            Route(f"{path}/infer", infer, methods=["POST"]),
        ]
    return routes


def versions_of(models: Models, name: str) -> list[str]:
    """Return the versions of a model."""
    return [model.version for model in models.listed() if model.name == name]


def batchless_dims(spec: TensorSpec) -> list[int]:
    """Return a shape as Triton's configuration has it: without the batch, -1 for any length."""
    return metadata_shape(spec)[1:]


def _metadata(spec: TensorSpec) -> dict[str, Any]:
    """Return a tensor as metadata has it."""
    return {
        "name": spec.name,
        "datatype": datatype_of(spec.dtype),
        "shape": metadata_shape(spec),
    }


def _config(spec: TensorSpec) -> dict[str, Any]:
    """Return a tensor as Triton's configuration has it."""
    return {
        "name": spec.name,
        "data_type": f"TYPE_{datatype_of(spec.dtype)}",
        "dims": batchless_dims(spec),
    }
