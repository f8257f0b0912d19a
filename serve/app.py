"""The application: every route behind every guard."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

import ltdeploy

from .failures import RequestError
from .guards import LastResort, protect
from .http_predict import predict_routes
from .http_v2 import refused, v2_routes
from .metrics import Metrics
from .repository import Repository
from .settings import ServeSettings

__all__ = ["create_app"]


def create_app(models: Repository, settings: ServeSettings, metrics: Metrics) -> ASGIApp:
    """Return the ASGI application: photographs, tensors, health and metrics.

    Parameters
    ----------
    models : what it answers with; loaded and closed by the caller.
    settings : limits and tokens.
    metrics : shown at ``/metrics``.
    """

    async def shown(_: Request) -> Response:
        body, kind = metrics.render()
        return Response(body, headers={"content-type": kind})

    async def counted(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestError)
        # Metrics take the names of models that are there, and count any other under none.
        told = request.path_params.get("name") or getattr(request.state, "model", None)
        metrics.refused(told, error.cause)
        return await refused(request, error)

    routes = [
        *v2_routes(models, version=ltdeploy.__version__, max_batch=settings.max_batch),
        *predict_routes(models),
        Route("/metrics", shown, methods=["GET"]),
    ]

    def noted(cause: str) -> None:
        metrics.refused(None, cause)

    app = Starlette(
        routes=routes,
        # Starlette's own last resort, outside of these, would answer in plain text.
        middleware=[Middleware(LastResort, refused=noted)],
        exception_handlers={RequestError: counted, HTTPException: _no_such_address},
    )
    return protect(
        app,
        tokens=settings.tokens,
        max_body_bytes=settings.max_body_bytes,
        read_timeout_s=settings.read_timeout_s,
        max_bytes_at_once=settings.max_bytes_at_once,
        refused=noted,
    )


async def _no_such_address(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    causes = {404: "address", 405: "method"}
    said = {404: "There is no such address.", 405: "The address does not take this method."}
    status = error.status_code
    return JSONResponse(
        {"error": said.get(status, error.detail), "cause": causes.get(status, "request")},
        status,
        error.headers,
    )
