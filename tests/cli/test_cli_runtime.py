"""Ctrl-C, in a process of its own: signals reach whatever other tests have loaded."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

CASES = Path(__file__).with_name("interrupt_cases.py")


def test_ctrl_c_ends_a_command_wherever_it_is_lost() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(CASES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) == 20  # none was skipped or left out
