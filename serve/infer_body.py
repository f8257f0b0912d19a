"""Inference requests and answers as HTTP bodies: JSON, and bytes after the JSON.

Written from the Open Inference Protocol's REST specification and its binary tensor extension: the
header ``Inference-Header-Content-Length`` says where the JSON ends, ``binary_data_size`` of a
tensor how many of the bytes after it are the tensor's, in the order of the list.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from ltdeploy.engines import TensorSpec

from .contracts import Arrays, ServedModel
from .failures import BadRequest, TooLarge
from .infer_request import (
    InferRequest,
    Output,
    check_names,
    deadline_of,
    refuse_shared_memory,
    wanted_outputs,
    wished_outputs,
)
from .tensors import feed_from_bytes, feed_from_values, output_bytes

__all__ = ["HEADER_LENGTH", "answer_body", "parse_body"]

HEADER_LENGTH = "Inference-Header-Content-Length"
_MOST_LENGTH_DIGITS = 18
# Parsing holds up everything else, and its lists take ten times the bytes.
_LARGEST_JSON_BYTES = 8 << 20


def parse_body(
    body: bytes,
    header_length: str | None,
    inputs: Sequence[TensorSpec],
    outputs: Sequence[TensorSpec],
) -> InferRequest:
    """Return what a body asks of a model with these inputs and outputs.

    Parameters
    ----------
    body : JSON, and the bytes of binary tensors after it.
    header_length : the header of that name; None where there is none, so that all is JSON.

    Raises
    ------
    BadRequest
        For anything that the protocol or the model's inputs and outputs do not allow.
    """
    end = _header_end(header_length, len(body))
    asked = _json_object(body[:end])
    parameters = _parameters(asked)
    binary = parameters.get("binary_data_output", False)
    if type(binary) is not bool:
        raise BadRequest("The parameter binary_data_output is no true or false.", "wrong_parameter")
    request_id = asked.get("id")
    request_id = "" if request_id is None else request_id
    if not isinstance(request_id, str):
        raise BadRequest("The request's id is no text.", "wrong_json")
    wished = [(_name(one), _parameters(one)) for one in _objects(asked, "outputs")]
    return InferRequest(
        _feeds(_objects(asked, "inputs"), memoryview(body)[end:], inputs),
        wished_outputs(outputs, wished, binary=binary),
        request_id,
        deadline_of(parameters.get("timeout")),
    )


def answer_body(
    request: InferRequest, answer: Arrays, model: ServedModel
) -> tuple[bytes, int | None]:
    """Return the body of an answer, and where its JSON ends if bytes come after it.

    Raises
    ------
    BadRequest
        If an output is wanted as JSON and holds NaN or infinity, which JSON cannot.
    """
    head: dict[str, Any] = {"model_name": model.name, "model_version": model.version}
    if request.id:
        head["id"] = request.id
    tail: list[bytes | memoryview] = []
    head["outputs"] = [
        _described(output, tail) for output in wanted_outputs(request, answer, model)
    ]
    # ASCII only: an id may hold half a surrogate pair, which no UTF-8 can say.
    text = json.dumps(head, separators=(",", ":")).encode("ascii")
    if not tail:
        return text, None
    return b"".join([text, *tail]), len(text)


def _described(output: Output, tail: list[bytes | memoryview]) -> dict[str, Any]:
    """Return an output's JSON; append its bytes to ``tail`` if it is binary."""
    array = output.array
    described: dict[str, Any] = {
        "name": output.wanted.name,
        "datatype": output.datatype,
        "shape": list(array.shape),
    }
    if output.wanted.binary:
        tail.append(output_bytes(array))
        described["parameters"] = {"binary_data_size": len(tail[-1])}
        return described
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise BadRequest(
            f"The output {output.wanted.name} holds values that are not finite and that JSON "
            "cannot hold; ask for it with binary_data.",
            "not_finite",
        )
    described["data"] = array.ravel().tolist()
    return described


def _header_end(header_length: str | None, size: int) -> int:
    """Return where the JSON of a body of ``size`` bytes ends."""
    if header_length is None:
        return size
    digits = header_length.strip(" \t")
    is_number = digits.isascii() and digits.isdigit() and len(digits) <= _MOST_LENGTH_DIGITS
    if not is_number or int(digits) > size:
        raise BadRequest(
            f"The header {HEADER_LENGTH} is no number of bytes from 0 to the body's {size}.",
            "wrong_header_length",
        )
    return int(digits)


def _json_object(text: bytes) -> dict[str, Any]:
    """Return the object that ``text`` holds."""
    if len(text) > _LARGEST_JSON_BYTES:
        raise TooLarge(
            f"The JSON has {len(text):,} bytes; expected {_LARGEST_JSON_BYTES:,} at most. Send "
            "tensors through the binary extension.",
            "json_size",
        )
    try:
        value = json.loads(text.decode(), parse_constant=_no_constant)
    # ValueError: no UTF-8, no JSON, or a number of thousands of digits.
    except (ValueError, RecursionError):
        raise BadRequest("The body is no JSON that the server can read.", "wrong_json") from None
    if not isinstance(value, dict):
        raise BadRequest("The body's JSON is no object.", "wrong_json")
    return value


def _no_constant(word: str) -> NoReturn:
    """Refuse NaN and Infinity, which Python reads and JSON does not have."""
    raise ValueError(word)


def _objects(asked: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return a list of objects of the request; an absent one and null are empty."""
    values = asked.get(key)
    values = [] if values is None else values
    if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
        raise BadRequest(f"The request's {key} are no list of objects.", "wrong_json")
    return values


def _parameters(owner: dict[str, Any]) -> dict[str, Any]:
    """Return the parameters of a request or a tensor."""
    parameters = owner.get("parameters")
    parameters = {} if parameters is None else parameters
    if not isinstance(parameters, dict):
        raise BadRequest("The parameters are no object.", "wrong_json")
    return parameters


def _name(tensor: dict[str, Any]) -> str:
    """Return a tensor's name."""
    name = tensor.get("name")
    if not isinstance(name, str):
        raise BadRequest("A tensor of the request has no name.", "wrong_json")
    return name


def _feeds(tensors: list[dict[str, Any]], tail: memoryview, inputs: Sequence[TensorSpec]) -> Arrays:
    """Return the arrays of a request's inputs; ``tail`` is what came after the JSON."""
    check_names(inputs, [_name(tensor) for tensor in tensors])
    specs = {spec.name: spec for spec in inputs}
    feeds: dict[str, npt.NDArray[Any]] = {}
    start = 0
    for tensor in tensors:
        spec, parameters = specs[tensor["name"]], _parameters(tensor)
        refuse_shared_memory(parameters)
        size = parameters.get("binary_data_size")
        if size is None:
            feeds[spec.name] = feed_from_values(
                spec, tensor.get("datatype"), tensor.get("shape"), tensor.get("data")
            )
            continue
        if type(size) is not int or size < 0:
            raise BadRequest(
                "The parameter binary_data_size is no number of bytes.", "wrong_parameter"
            )
        if "data" in tensor:
            raise BadRequest(
                f"The input {spec.name} has both data and binary_data_size.", "wrong_parameter"
            )
        if size > len(tail) - start:
            raise BadRequest(
                f"The body ends before the bytes of the input {spec.name} do.",
                "wrong_size",
            )
        piece = tail[start : start + size]
        feeds[spec.name] = feed_from_bytes(spec, tensor.get("datatype"), tensor.get("shape"), piece)
        start += size
    if start != len(tail):
        raise BadRequest(
            f"The body has {len(tail) - start} bytes more than its inputs say.", "wrong_size"
        )
    return feeds
