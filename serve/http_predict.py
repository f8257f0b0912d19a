"""``POST /v1/predict``: a photograph in, names and probabilities out."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any, TypeAlias

import numpy as np
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from .failures import BadRequest, ClientGone, UnsupportedMedia
from .http_v2 import read_body, unless_gone
from .repository import Repository
from .served import Asked

__all__ = ["predict_routes"]

Fields: TypeAlias = list[tuple[str, str]]

_KNOWN = ("model", "version", "top_k", "min_score", "timeout_ms", "log_prior")
_RAW = ("application/octet-stream", "application/x-www-form-urlencoded")  # the second is curl's
_MOST_FIELDS = 8
_LONGEST_FIELD = 1 << 20
_LARGEST_NUMBER = 1e9


def predict_routes(models: Repository) -> list[Route]:
    """Return the routes of photographs."""

    async def predict(request: Request) -> Response:
        body, fields = await _photograph(request)
        told = _single([*fields, *request.query_params.multi_items()])
        for name in told:
            if name not in _KNOWN:
                raise BadRequest(
                    f"Unknown parameter {name[:40]!r}; known are {', '.join(_KNOWN)}.", "parameter"
                )
        asked = Asked(
            top_k=_number(told, "top_k", int),
            min_score=_number(told, "min_score", float),
            deadline_s=_deadline(told),
            log_prior=_prior(told),
        )
        served = models.get(told.get("model") or _only(models), told.get("version"))
        request.state.model = served.name  # for log and metrics
        return JSONResponse(await unless_gone(request, served.answer(body, asked)))

    async def listed(_: Request) -> Response:
        return JSONResponse(
            {
                "models": [
                    {
                        "name": one.name,
                        "version": one.version,
                        "task": one.model.bundle.manifest.task,
                        "classes": len(one.classes),
                        "groups": {g: len(one.classes.members(g)) for g in one.classes.rule.names},
                    }
                    for one in models.listed()
                ]
            }
        )

    return [
        Route("/v1/predict", predict, methods=["POST"]),
        Route("/v1/models", listed, methods=["GET"]),
    ]


async def _photograph(request: Request) -> tuple[bytes, Fields]:
    """Return the photograph's bytes, and the other fields of a form."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return await _from_form(request)
    if kind and not (kind.startswith("image/") or kind in _RAW):
        raise UnsupportedMedia(
            f"The content type is {kind[:60]!r}; expected image/jpeg, image/png, image/webp, "
            "application/octet-stream, or multipart/form-data with a file.",
            "content_type",
        )
    body = await read_body(request)
    if not body:
        raise BadRequest("The body is empty; expected an encoded photograph.", "empty_body")
    return body, []


async def _from_form(request: Request) -> tuple[bytes, Fields]:
    try:
        form = await request.form(
            max_files=1, max_fields=_MOST_FIELDS, max_part_size=_LONGEST_FIELD
        )
    except ClientDisconnect:
        raise ClientGone from None
    except (MultiPartException, HTTPException, UnicodeError) as error:
        reason = getattr(error, "message", None) or getattr(error, "detail", "")
        what = str(reason).rstrip(".") or "its texts are not of the character set that it names"
        raise BadRequest(f"The form cannot be read: {what}.", "form") from error
    try:
        files = [one for _, one in form.multi_items() if isinstance(one, UploadFile)]
        if not files:
            raise BadRequest("The form holds no file; expected one photograph.", "form")
        body = await files[0].read()
        fields = [(name, one) for name, one in form.multi_items() if isinstance(one, str)]
    finally:
        with contextlib.suppress(OSError):
            await form.close()
    if not body:
        raise BadRequest("The file in the form is empty; expected a photograph.", "empty_body")
    return body, fields


def _single(fields: Fields) -> dict[str, str]:
    told: dict[str, str] = {}
    for name, value in fields:
        if name in told:
            raise BadRequest(f"The parameter {name[:40]!r} stands twice.", "parameter")
        told[name] = value
    return told


def _only(models: Repository) -> str:
    names = sorted({one.name for one in models.listed()})
    if len(names) != 1:
        raise BadRequest(
            f"Which model? Expected model=NAME, one of {', '.join(names)}.", "parameter"
        )
    return names[0]


def _number(told: dict[str, str], name: str, kind: type[Any]) -> Any:
    if name not in told:
        return None
    try:
        value = kind(told[name])
    except ValueError:
        value = math.nan
    if not abs(value) < _LARGEST_NUMBER:
        raise BadRequest(f"{name} is {told[name][:40]!r}; expected a number.", "parameter")
    return value


def _deadline(told: dict[str, str]) -> float | None:
    asked = _number(told, "timeout_ms", float)
    if asked is None:
        return None
    if asked <= 0:
        raise BadRequest(f"timeout_ms is {told['timeout_ms']}; expected above 0.", "parameter")
    return float(asked) / 1000


def _prior(told: dict[str, str]) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    if "log_prior" not in told:
        return None
    try:
        return np.array(json.loads(told["log_prior"]), dtype=np.float32)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise BadRequest(
            "log_prior cannot be read; expected a JSON list with a number per class.", "log_prior"
        ) from None
