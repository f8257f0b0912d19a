"""A typed client of ``ltdeploy serve``, plain and asynchronous, that tries again when told to."""

from __future__ import annotations

import os
import random
import time
from asyncio import sleep as async_sleep
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import sleep
from types import TracebackType
from typing import Any

import httpx

from ltdeploy.detector import DetectionResult, FoundBox
from ltdeploy.errors import LtdeployError, UsageError
from ltdeploy.prediction import ClassScore, Prediction

__all__ = ["AsyncClient", "Client", "ServedInfo", "ServerRefusedError"]

Photo = str | os.PathLike[str] | bytes

_TRY_AGAIN = (429, 503)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.1, 5.0


class ServerRefusedError(LtdeployError):
    """The server refused a request, or could not be reached.

    Attributes
    ----------
    status : of HTTP; None where there was no answer.
    cause : the server's word for it, e.g. ``"queue_full"``; ``"connection"`` without an answer.
    """

    def __init__(self, text: str, status: int | None, cause: str) -> None:
        super().__init__(text)
        self.status, self.cause = status, cause


@dataclass(frozen=True)
class ServedInfo:
    """A model that a server has; ``groups`` counts the classes of each."""

    name: str
    version: str
    task: str
    classes: int
    groups: Mapping[str, int]


@dataclass(frozen=True)
class _Photograph:
    """A request for one photograph."""

    name: str
    body: bytes
    parameters: dict[str, str]

    @classmethod
    def of(cls, photo: Photo, **told: object) -> _Photograph:
        parameters = {name: str(value) for name, value in told.items() if value is not None}
        if isinstance(photo, bytes):
            return cls("#0", photo, parameters)
        try:
            return cls(os.fspath(photo), Path(photo).read_bytes(), parameters)
        except OSError as error:
            raise UsageError(f"{os.fspath(photo)} cannot be read: {error.strerror}.") from error

    def sent(self) -> dict[str, Any]:
        return {
            "content": self.body,
            "params": self.parameters,
            "headers": {"Content-Type": "application/octet-stream"},
        }

    def answer(self, told: Mapping[str, Any]) -> Prediction | DetectionResult:
        if "top" in told:
            return Prediction(self.name, tuple(ClassScore(**one) for one in told["top"]))
        boxes = ({**one, "box": tuple(one["box"])} for one in told["boxes"])
        return DetectionResult(self.name, tuple(FoundBox(**one) for one in boxes))


class _Tries:
    """How often a request is tried, and how long is waited in between.

    A wait is what ``Retry-After`` says, or else doubles from 0.1 s; half of it is drawn at random,
    so that clients which were refused together do not come back together.
    """

    def __init__(self, retries: int, deadline_s: float) -> None:
        self._left, self._ends = retries, time.monotonic() + deadline_s
        self._wait_s = _FIRST_WAIT_S

    def again_in(self, answer: httpx.Response | None) -> float | None:
        """Return the seconds until the next try; None if there is none."""
        if self._left == 0 or (answer is not None and answer.status_code not in _TRY_AGAIN):
            return None
        told = None if answer is None else answer.headers.get("Retry-After", "")
        wait_s = float(told) if told and told.isdigit() else self._wait_s
        wait_s *= random.uniform(1.0, 1.5)
        if time.monotonic() + wait_s >= self._ends:
            return None
        self._left -= 1
        self._wait_s = min(2 * self._wait_s, _LONGEST_WAIT_S)
        return wait_s


def _settled(answer: httpx.Response | None, error: httpx.TransportError | None) -> Any:
    """Return the body of a good answer, or raise what went wrong."""
    if answer is None:
        raise ServerRefusedError(
            f"The server cannot be reached: {error}. Expected an address like "
            "http://127.0.0.1:8000, where 'ltdeploy serve' runs.",
            None,
            "connection",
        ) from error
    if answer.is_success:
        return answer.json()
    try:
        told = answer.json()
        reason, cause = str(told["error"]), str(told.get("cause", "unknown"))
    except (ValueError, KeyError, TypeError):
        reason, cause = answer.text[:300] or answer.reason_phrase, "unknown"
    raise ServerRefusedError(f"{answer.status_code}: {reason}", answer.status_code, cause)


def _options(url: str, token: str | None, timeout_s: float, verify: object) -> dict[str, Any]:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"The address is {url!r}; expected http://HOST:PORT or https://HOST:PORT.")
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    return {"base_url": url, "headers": headers, "timeout": timeout_s, "verify": verify}


class Client:
    """Asks a server, one request at a time per call; thread-safe.

    Parameters
    ----------
    url : ``http://HOST:PORT`` or ``https://HOST:PORT``.
    token : of the server, where it asks for one.
    timeout_s : for each answer, and for all tries and waits of a call together.
    retries : how often a call is tried again on 429, 503 and broken connections.
    verify : False, or an ``ssl.SSLContext`` with the authorities to trust; True are the system's.

    Raises
    ------
    UsageError
        For an address that is none.

    Examples
    --------
    ::

        with Client("http://127.0.0.1:8000") as client:
            print(client.predict("photo.jpg", top_k=3).top)
    """

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        verify: Any = True,
    ) -> None:
        self._http = httpx.Client(**_options(url, token, timeout_s, verify))
        self._timeout_s, self._retries = timeout_s, retries

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def predict(
        self,
        photo: Photo,
        *,
        model: str | None = None,
        version: str | None = None,
        top_k: int | None = None,
        min_score: float | None = None,
    ) -> Prediction | DetectionResult:
        """Return what is in a photograph, a path or encoded bytes.

        Parameters
        ----------
        model, version : None is the only model, in its newest version.
        top_k, min_score : as of the server; None is its default.

        Raises
        ------
        ServerRefusedError
            If the server refuses it after all tries.
        UsageError
            If the file cannot be read.
        """
        asked = _Photograph.of(
            photo, model=model, version=version, top_k=top_k, min_score=min_score
        )
        return asked.answer(self._asked("POST", "/v1/predict", **asked.sent()))

    def models(self) -> tuple[ServedInfo, ...]:
        """Return every version of every model that the server has."""
        return tuple(ServedInfo(**one) for one in self._asked("GET", "/v1/models")["models"])

    def _asked(self, method: str, path: str, **sent: Any) -> Any:
        tries = _Tries(self._retries, self._timeout_s)
        while True:
            answer, error = None, None
            try:
                answer = self._http.request(method, path, **sent)
            except httpx.TransportError as failed:
                error = failed
            wait_s = tries.again_in(answer)
            if (answer is not None and answer.is_success) or wait_s is None:
                return _settled(answer, error)
            sleep(wait_s)


class AsyncClient:
    """The same for asyncio; any number of calls at once. Parameters as of :class:`Client`."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        verify: Any = True,
    ) -> None:
        self._http = httpx.AsyncClient(**_options(url, token, timeout_s, verify))
        self._timeout_s, self._retries = timeout_s, retries

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def predict(
        self,
        photo: Photo,
        *,
        model: str | None = None,
        version: str | None = None,
        top_k: int | None = None,
        min_score: float | None = None,
    ) -> Prediction | DetectionResult:
        """Return what is in a photograph; see :meth:`Client.predict`."""
        asked = _Photograph.of(
            photo, model=model, version=version, top_k=top_k, min_score=min_score
        )
        return asked.answer(await self._asked("POST", "/v1/predict", **asked.sent()))

    async def models(self) -> tuple[ServedInfo, ...]:
        """Return every version of every model that the server has."""
        told = await self._asked("GET", "/v1/models")
        return tuple(ServedInfo(**one) for one in told["models"])

    async def _asked(self, method: str, path: str, **sent: Any) -> Any:
        tries = _Tries(self._retries, self._timeout_s)
        while True:
            answer, error = None, None
            try:
                answer = await self._http.request(method, path, **sent)
            except httpx.TransportError as failed:
                error = failed
            wait_s = tries.again_in(answer)
            if (answer is not None and answer.is_success) or wait_s is None:
                return _settled(answer, error)
            await async_sleep(wait_s)
