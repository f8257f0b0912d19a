"""A served model of numpy, a real server around it, and what any server of the protocol must do."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import numpy as np
import numpy.typing as npt
import tritonclient.grpc
import tritonclient.http
import uvicorn
from starlette.applications import Starlette
from tritonclient.utils import InferenceServerException, triton_to_np_dtype

from ltdeploy.classes import ClassTable
from ltdeploy.engines import TensorSpec
from ltdeploy.serve.failures import NotFound, RequestError
from ltdeploy.serve.grpc_v2 import TokenInterceptor, add_to
from ltdeploy.serve.http_v2 import refused, v2_routes

VERSION = "1.2.3"
SIDE_PX = 4
NAMES = ("cat", "dog", "lynx")
PATIENCE_S = 30.0


@dataclass
class NumpyModel:
    """A classifier of three classes: the logits are weighted sums of the pixels.

    Parameters
    ----------
    held : whether an answer waits until ``go`` is set.
    error : what inference raises, if anything.
    """

    name: str = "species"
    version: str = "1"
    is_ready: bool = True
    held: bool = False
    error: Exception | None = None
    calls: list[npt.NDArray[Any]] = field(default_factory=list)
    deadlines_s: list[float | None] = field(default_factory=list)
    started: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    go: threading.Event = field(default_factory=threading.Event)

    platform = "numpy-cpu"
    classes = ClassTable(NAMES, (500, 50, 5))
    inputs = (TensorSpec("images", "uint8", (None, SIDE_PX, SIDE_PX, 3)),)
    outputs = (TensorSpec("logits", "float32", (None, 3)),)

    async def infer(
        self, feeds: Mapping[str, npt.NDArray[np.generic]], *, deadline_s: float | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        self.calls.append(np.array(feeds["images"]))
        self.deadlines_s.append(deadline_s)
        self.started.set()
        if self.error is not None:
            raise self.error
        try:
            while self.held and not self.go.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return {"logits": self.compute(feeds["images"])}

    def compute(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        weights = np.random.default_rng(0).normal(size=(SIDE_PX * SIDE_PX * 3, 3))
        logits = images.reshape(len(images), -1).astype(np.float64) @ weights / 100
        return logits.astype(np.float32)


@dataclass
class NumpyModels:
    """The models of a server, and what was refused over gRPC."""

    models: Sequence[NumpyModel]
    is_ready: bool = True
    refusals: list[tuple[str | None, str]] = field(default_factory=list)

    def listed(self) -> Sequence[NumpyModel]:
        return self.models

    def get(self, name: str, version: str | None = None) -> NumpyModel:
        found = [one for one in self.models if one.name == name and version in (None, one.version)]
        if not found:
            raise NotFound("There is no such model.", "unknown_model")
        return found[-1]

    def refuse(self, model: str | None, cause: str) -> None:
        self.refusals.append((model, cause))


class HttpClient(tritonclient.http.InferenceServerClient):
    """Triton's client, closed by its block alone.

    The original closes itself again when it is collected, which may happen in the server's thread,
    where gevent does not allow it.
    """

    def __del__(self) -> None:
        pass


@dataclass(frozen=True)
class Addresses:
    """Where a server listens, each as ``host:port``."""

    http: str
    grpc: str


@contextlib.contextmanager
def running(models: NumpyModels, *, tokens: Sequence[str] = ()) -> Iterator[Addresses]:
    """Run uvicorn and a gRPC server in a thread until the block ends."""
    app = Starlette(
        routes=v2_routes(models, version=VERSION), exception_handlers={RequestError: refused}
    )
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none")
    http = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    # Else the second of an answer's two writes waits 40 ms for the client to confirm the first.
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    up, places, ends = threading.Event(), list[Addresses](), list[Callable[[], None]]()

    async def serve() -> None:
        guard = TokenInterceptor(tokens, refused=models.refuse)
        rpc = grpc.aio.server(interceptors=[guard] if tokens else [])
        add_to(rpc, models, version=VERSION, refused=models.refuse)
        port = rpc.add_insecure_port("127.0.0.1:0")
        await rpc.start()
        end, loop = asyncio.Event(), asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(end.set))
        serving = asyncio.create_task(http.serve(sockets=[listening]))
        while not http.started:
            await asyncio.sleep(0.005)
        places.append(Addresses(f"127.0.0.1:{listening.getsockname()[1]}", f"127.0.0.1:{port}"))
        up.set()
        await end.wait()
        http.should_exit = True
        await asyncio.gather(serving, rpc.stop(None))

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        assert up.wait(PATIENCE_S)
        yield places[0]
    finally:
        for end in ends:
            end()
        thread.join(PATIENCE_S)
    assert not thread.is_alive()


def images(count: int, seed: int = 1) -> npt.NDArray[np.uint8]:
    """Return random pictures for :class:`NumpyModel`."""
    shape = (count, SIDE_PX, SIDE_PX, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def check_conformance(http: str, grpc_address: str, model: str) -> None:
    """Raise unless a server does what the Open Inference Protocol says, over HTTP and gRPC.

    It knows nothing of who wrote the server, and of the model only what its metadata says: axes of
    any length are tried with lengths 1 and 2, and every protocol must give the same numbers.

    Parameters
    ----------
    http, grpc_address : ``host:port``.
    model : the name of a ready model whose inputs are numbers and which gives the same outputs for
        the same inputs.
    """
    answers = []
    for library, open_client in (
        (tritonclient.http, lambda: HttpClient(http)),
        (tritonclient.grpc, lambda: tritonclient.grpc.InferenceServerClient(grpc_address)),
    ):
        with open_client() as client:
            metadata = _check_metadata(client, model, over_http=library is tritonclient.http)
            answers.append([_check_inference(library, client, metadata, size) for size in (1, 2)])
            _check_refusals(library, client, metadata)
    for over_http, over_grpc in zip(*answers, strict=True):
        for name, array in over_http.items():
            np.testing.assert_array_equal(array, over_grpc[name])


def _check_metadata(client: Any, model: str, *, over_http: bool) -> dict[str, Any]:
    """Return a model's metadata, alike for both protocols; check what is said of the server."""
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(model)
    assert not client.is_model_ready("no-such-model")
    as_dict = {} if over_http else {"as_json": True}
    server = client.get_server_metadata(**as_dict)
    assert server["name"]
    assert server["version"]
    metadata: dict[str, Any] = client.get_model_metadata(model, **as_dict)
    assert metadata["name"] == model
    assert metadata["platform"]
    for version in metadata["versions"]:
        assert int(version) >= 1
        assert client.is_model_ready(model, version)
        assert client.get_model_metadata(model, version, **as_dict)["name"] == model
    for tensor in (*metadata["inputs"], *metadata["outputs"]):
        # Protobuf's JSON writes int64 as text.
        tensor["shape"] = [int(axis) for axis in tensor["shape"]]
        assert tensor["name"]
        assert triton_to_np_dtype(tensor["datatype"]) is not None
        assert all(axis == -1 or axis > 0 for axis in tensor["shape"])
    return metadata


def _feeds(metadata: dict[str, Any], size: int) -> dict[str, npt.NDArray[Any]]:
    """Return an array for every input; axes of any length are ``size`` long."""
    rng = np.random.default_rng(size)
    return {
        tensor["name"]: rng.integers(
            0, 100, [size if axis == -1 else axis for axis in tensor["shape"]]
        ).astype(triton_to_np_dtype(tensor["datatype"]))
        for tensor in metadata["inputs"]
    }


def _inputs(library: Any, metadata: dict[str, Any], size: int, **how: bool) -> list[Any]:
    """Return the inputs as a client sends them."""
    sent = []
    for tensor in metadata["inputs"]:
        array = _feeds(metadata, size)[tensor["name"]]
        sent.append(library.InferInput(tensor["name"], list(array.shape), tensor["datatype"]))
        sent[-1].set_data_from_numpy(array, **how)
    return sent


def _check_inference(
    library: Any, client: Any, metadata: dict[str, Any], size: int
) -> dict[str, npt.NDArray[Any]]:
    """Return the outputs for one size, after asking for them in every way there is."""
    model, names = metadata["name"], [tensor["name"] for tensor in metadata["outputs"]]
    ways: list[dict[str, bool]] = [{}]
    if library is tritonclient.http:
        ways = [{"binary_data": True}, {"binary_data": False}]
    first: dict[str, npt.NDArray[Any]] | None = None
    for sending in ways:
        inputs = _inputs(library, metadata, size, **sending)
        wishes: list[list[Any] | None] = [None]
        for way in ways:
            wishes.append([library.InferRequestedOutput(name, **way) for name in names])
        wishes.append([library.InferRequestedOutput(names[0])])
        for wish in wishes:
            result = client.infer(model, inputs, outputs=wish, request_id="a word")
            response = result.get_response(**({} if library is tritonclient.http else _AS_JSON))
            assert response["model_name"] == model
            assert response["id"] == "a word"
            assert int(response["model_version"]) >= 1
            got = [tensor["name"] for tensor in response["outputs"]]
            assert got == (names if wish is None else [one.name() for one in wish])
            arrays = {name: result.as_numpy(name) for name in got}
            first = first or arrays
            for tensor in metadata["outputs"][: len(got)]:
                array = arrays[tensor["name"]]
                assert array.dtype == triton_to_np_dtype(tensor["datatype"])
                assert len(array.shape) == len(tensor["shape"])
                np.testing.assert_array_equal(array, first[tensor["name"]])
    later = client.infer(model, _inputs(library, metadata, size), model_version=_newest(metadata))
    for name, array in (first or {}).items():
        np.testing.assert_array_equal(array, later.as_numpy(name))
    assert first
    return first


_AS_JSON = {"as_json": True}


def _newest(metadata: dict[str, Any]) -> str:
    """Return the highest version."""
    return max(metadata["versions"], key=int)


def _check_refusals(library: Any, client: Any, metadata: dict[str, Any]) -> None:
    """Check that what cannot be answered is refused with a reason, and that the server lives on."""
    model, good = metadata["name"], _inputs(library, metadata, 1)
    tensor = metadata["inputs"][0]
    array = _feeds(metadata, 1)[tensor["name"]]

    def changed(
        name: str, sent: npt.NDArray[Any], datatype: str, shape: Sequence[int] | None = None
    ) -> list[Any]:
        one = library.InferInput(name, list(sent.shape), datatype)
        one.set_data_from_numpy(sent)
        one.set_shape(list(shape if shape is not None else sent.shape))
        return [one, *good[1:]]

    other = "FP64" if tensor["datatype"] != "FP64" else "FP32"
    wrong: list[tuple[str, list[Any], dict[str, Any]]] = [
        ("no-such-model", good, {}),
        (model, good, {"model_version": "987654"}),
        (model, good, {"outputs": [library.InferRequestedOutput("no-such-output")]}),
        (model, good[1:], {}),
        (model, changed("no-such-input", array, tensor["datatype"]), {}),
        (model, changed(tensor["name"], array.astype(triton_to_np_dtype(other)), other), {}),
        (model, changed(tensor["name"], array[..., None], tensor["datatype"]), {}),
        (
            model,
            changed(tensor["name"], array, tensor["datatype"], [7 * n for n in array.shape]),
            {},
        ),
    ]
    for place, (name, inputs, options) in enumerate(wrong):
        refusal = _refusal(client.infer, name, inputs, **options)
        assert refusal is not None, f"the wrong request {place} was answered"
        assert refusal.message(), place
        if library is tritonclient.http:
            assert 400 <= int(refusal.status()) < 500, (place, refusal)
    client.infer(model, good)
    assert _refusal(client.get_model_metadata, "no-such-model") is not None
    assert _refusal(client.get_model_config, "no-such-model") is not None


def _refusal(ask: Callable[..., Any], *what: Any, **options: Any) -> Any:
    """Return the exception of a call that the server refuses; None where it answers."""
    try:
        ask(*what, **options)
    except InferenceServerException as error:
        return error
    return None
