"""Nothing here talks to a network: a guard that sees native code too, and its controls."""

from __future__ import annotations

import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SOCKET_CALL = {"x86_64": 41, "aarch64": 198}.get(platform.machine())

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux") or SOCKET_CALL is None,
    reason="the guard is a filter of Linux system calls, known for x86_64 and aarch64",
)

# A seccomp filter: any socket that is not a local one ends the process, whoever opens it. Python's
# audit hooks would miss what a C++ library does.
GUARD = f"""
import ctypes, os, sys

class Instruction(ctypes.Structure):
    _fields_ = [("code", ctypes.c_ushort), ("jt", ctypes.c_ubyte), ("jf", ctypes.c_ubyte),
                ("k", ctypes.c_uint)]

class Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("first", ctypes.POINTER(Instruction))]

AF_UNIX, LOAD, EQUAL, RETURN = 1, 0x20, 0x15, 0x06
program = (Instruction * 6)(
    Instruction(LOAD, 0, 0, 0),                 # the call's number
    Instruction(EQUAL, 0, 3, {SOCKET_CALL}),    # not socket(): allow
    Instruction(LOAD, 0, 0, 16),                # its first argument, the family
    Instruction(EQUAL, 1, 0, AF_UNIX),          # a local one: allow
    Instruction(RETURN, 0, 0, 0x80000000),      # end the process
    Instruction(RETURN, 0, 0, 0x7FFF0000),      # allow
)
libc = ctypes.CDLL(None, use_errno=True)
if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(Program(6, program)), 0, 0):
    sys.exit("no seccomp")
"""

PREDICT = """
import ltdeploy, numpy as np, time
with ltdeploy.load(sys.argv[1], engine=sys.argv[3], threads=1, verify=True) as model:
    model(np.zeros((40, 50, 3), dtype=np.uint8))
    time.sleep(float(sys.argv[2]))
print("answered")
"""

# ONNX Runtime sends its first report about nine seconds after it was imported.
UNTIL_TELEMETRY_S = "20"


def start(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start code under the guard, without the variable that switches telemetry off."""
    return subprocess.Popen(
        [sys.executable, "-c", GUARD + code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={"PATH": "/usr/bin:/bin"},
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for a guarded process; skip where this machine has no such filters."""
    out, errors = process.communicate()
    if "no seccomp" in errors:
        pytest.skip("this machine does not allow system call filters")
    return process.returncode, out + errors


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_load_and_predict_open_no_socket(bundle_path: Path, engine: str) -> None:
    code, said = finish(start(PREDICT, str(bundle_path), "0", engine))
    assert (code, said) == (0, "answered\n")


@pytest.mark.parametrize(
    "socket",
    ["import socket; socket.socket()", "libc.socket(2, 1, 0)", "libc.socket(10, 2, 0)"],
    ids=["python", "native", "native, IPv6 datagrams"],
)
def test_a_socket_is_seen(socket: str) -> None:
    code, _ = finish(start(socket))
    assert code == -signal.SIGSYS


def test_a_local_socket_is_not_a_network() -> None:
    assert finish(start("import socket; socket.socket(socket.AF_UNIX).close()"))[0] == 0


@pytest.mark.slow
def test_the_engine_sends_no_report_later(bundle_path: Path) -> None:
    quiet = start(PREDICT, str(bundle_path), UNTIL_TELEMETRY_S, "onnxruntime")
    switched_on = "os.environ['ORT_DISABLE_TELEMETRY'] = '0'\n" + PREDICT
    talking = start(switched_on, str(bundle_path), UNTIL_TELEMETRY_S, "onnxruntime")
    code, said = finish(quiet)
    assert (code, said) == (0, "answered\n")
    assert finish(talking)[0] == -signal.SIGSYS, "telemetry on was not seen: is the guard blind?"
