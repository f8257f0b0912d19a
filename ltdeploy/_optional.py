"""The one place where optional packages are imported."""

from __future__ import annotations

import importlib
import importlib.util
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from .errors import MissingExtraError

_PACKAGE_OF = {
    "PIL": "Pillow",
    "google": "protobuf",
    "grpc": "grpcio",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}


def require(module: str, *, extra: str, purpose: str) -> Any:
    """Import `module`, or say which extra of ltdeploy brings it.

    Parameters
    ----------
    module : dotted module name, for example ``"torchvision.models"``.
    extra : the extra that installs it.
    purpose : what it is needed for, as the end of "needed to …".

    Raises
    ------
    MissingExtraError
        If the top-level package is not installed. A package that is installed and broken raises
        its own error: hiding it would send the user to reinstall for nothing.
    """
    package = module.partition(".")[0]
    try:
        missing = importlib.util.find_spec(package) is None
    except ValueError:
        missing = False  # a module made by hand in sys.modules has no __spec__
    if missing:
        raise MissingExtraError(
            f"{_PACKAGE_OF.get(package, package)} is needed to {purpose} and is not installed. "
            f"Install it with: pip install 'ltdeploy[{extra}]'"
        )
    return importlib.import_module(module)


def installed_version(module: str) -> str | None:
    """Return the version of an installed package by the name it is imported by, or None.

    Some distributions install a module under another name than their own (onnxruntime-gpu): those
    are asked for their ``__version__``.
    """
    if importlib.util.find_spec(module) is None:
        return None
    try:
        return version(_PACKAGE_OF.get(module, module))
    except PackageNotFoundError:
        return str(getattr(importlib.import_module(module), "__version__", "unknown"))
