"""What a client asks of a model and what it is sent, the same over HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ltdeploy.classes import ClassTable
from ltdeploy.engines import TensorSpec

from .contracts import Arrays, ServedModel
from .failures import BadRequest
from .tensors import MOST_INT64, datatype_of, shown

__all__ = [
    "InferRequest",
    "Output",
    "WantedOutput",
    "check_names",
    "deadline_of",
    "refuse_shared_memory",
    "wanted_outputs",
    "wished_outputs",
]

_SHARED_MEMORY = "shared_memory_region"


@dataclass(frozen=True)
class WantedOutput:
    """An output that a request asks for.

    Parameters
    ----------
    name : of the graph's output.
    binary : over HTTP, whether as bytes rather than as JSON.
    top : where above 0, this many best classes as text instead of the numbers, as Triton's
        classification extension has it.
    """

    name: str
    binary: bool = False
    top: int = 0


@dataclass(frozen=True)
class InferRequest:
    """What a client asks of a model, checked against the model's inputs and outputs.

    Parameters
    ----------
    feeds : arrays by input name; they may look into the request's own bytes and are read-only.
    outputs : what is to be answered, in this order.
    id : the client's word for the request, given back with the answer.
    deadline_s : seconds after which the answer is of no use; None where the request names none.
    """

    feeds: Arrays
    outputs: tuple[WantedOutput, ...]
    id: str = ""
    deadline_s: float | None = None


@dataclass(frozen=True)
class Output:
    """An output as it is sent: numbers, or text in an array of objects."""

    wanted: WantedOutput
    datatype: str
    array: npt.NDArray[Any]


def check_names(inputs: Sequence[TensorSpec], names: Sequence[str]) -> None:
    """Raise unless a request brings every input of the model once, and nothing else.

    Raises
    ------
    BadRequest
        Causes ``unknown_input``, ``input_twice``, ``missing_input``.
    """
    known = [spec.name for spec in inputs]
    for name in names:
        if name not in known:
            raise BadRequest(
                f"The model has no input {shown(name)}; expected {', '.join(known)}.",
                "unknown_input",
            )
    if len(set(names)) != len(names):
        raise BadRequest("An input stands twice in the request; expected it once.", "input_twice")
    for name in known:
        if name not in names:
            raise BadRequest(f"The input {name} is missing from the request.", "missing_input")


def deadline_of(timeout_us: object) -> float | None:
    """Return the seconds of a ``timeout`` parameter in microseconds, as Triton has it; 0 is none.

    Raises
    ------
    BadRequest
        Cause ``wrong_parameter``.
    """
    if timeout_us is None:
        return None
    if type(timeout_us) is not int or not 0 <= timeout_us <= MOST_INT64:
        raise BadRequest(
            "The parameter timeout is no whole number of microseconds, 0 or more.",
            "wrong_parameter",
        )
    return timeout_us / 1e6 or None


def wished_outputs(
    model_outputs: Sequence[TensorSpec],
    wished: Sequence[tuple[str, Mapping[str, object]]],
    *,
    binary: bool = False,
) -> tuple[WantedOutput, ...]:
    """Return which outputs a request wants; all of them where it names none.

    Parameters
    ----------
    model_outputs : what the model gives.
    wished : names and parameters: ``binary_data`` and ``classification``.
    binary : what holds for an output that does not say.

    Raises
    ------
    BadRequest
        Causes ``unknown_output``, ``output_twice``, ``wrong_parameter``, ``shared_memory``.
    """
    known = {spec.name: spec for spec in model_outputs}
    wanted = []
    for name, parameters in wished or [(spec.name, {}) for spec in model_outputs]:
        if name not in known:
            raise BadRequest(
                f"The model has no output {shown(name)}; expected {', '.join(known)}.",
                "unknown_output",
            )
        refuse_shared_memory(parameters)
        one_binary, top = parameters.get("binary_data", binary), parameters.get("classification", 0)
        if type(one_binary) is not bool:
            raise BadRequest("The parameter binary_data is no true or false.", "wrong_parameter")
        if type(top) is not int or top < 0:
            raise BadRequest(
                "The parameter classification is no whole number of classes, 0 or more.",
                "wrong_parameter",
            )
        if top and (name != "logits" or len(known[name].shape) != 2):
            raise BadRequest(
                f"The output {name} has no classes; the parameter classification is for a "
                "classifier's logits.",
                "wrong_parameter",
            )
        wanted.append(WantedOutput(name, one_binary, top))
    if len({one.name for one in wanted}) != len(wanted):
        raise BadRequest("An output stands twice in the request; expected it once.", "output_twice")
    return tuple(wanted)


def refuse_shared_memory(parameters: Mapping[str, object]) -> None:
    """Raise where a tensor is said to be in shared memory, which the server does not map."""
    if _SHARED_MEMORY in parameters:
        raise BadRequest(
            "The server reads no shared memory; send the tensor with the request.", "shared_memory"
        )


def wanted_outputs(request: InferRequest, answer: Arrays, model: ServedModel) -> list[Output]:
    """Return the outputs of an answer that the request wants, as they are sent."""
    outputs = []
    for wanted in request.outputs:
        array = answer[wanted.name]
        if wanted.top:
            array = _best_classes(array, wanted.top, model.classes)
        outputs.append(Output(wanted, datatype_of(array.dtype.name), array))
    return outputs


def _best_classes(
    logits: npt.NDArray[Any], top: int, classes: ClassTable
) -> npt.NDArray[np.object_]:
    """Return ``value:label:name`` of the best classes, shape (N, k), best first."""
    order = np.argsort(-logits, axis=1, kind="stable")[:, :top]
    best = np.empty(order.shape, np.object_)
    for row, labels in enumerate(order.tolist()):
        for place, label in enumerate(labels):
            name = f":{classes.names[label]}" if classes.is_named else ""
            best[row, place] = f"{logits[row, label]:.6f}:{label}{name}"
    return best
