"""A folder has one run at a time."""

import errno
import fcntl
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from storydist.training.lock import locked

ROOT = Path(__file__).resolve().parents[1]
HOLD = """
import sys, time
from pathlib import Path
from storydist.training.lock import locked
with locked(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_a_second_run_is_refused_by_name_until_the_first_is_gone_however_it_went(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run"), "60"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(ValueError) as error, locked(tmp_path / "run", print):
            pass
        assert f"in use by another run: process {holder.pid} on {socket.gethostname()}; wait" in str(error.value)
    finally:
        os.kill(holder.pid, signal.SIGKILL)
        holder.communicate()
    with locked(tmp_path / "run", print):
        assert f"process {os.getpid()}" in (tmp_path / "run" / ".lock").read_text()


def test_a_run_that_is_leaving_is_waited_for(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run"), "0.5"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    told: list[str] = []
    with locked(tmp_path / "run", told.append, wait_s=60):
        assert holder.wait(timeout=60) == 0
    assert len(told) == 1 and f"process {holder.pid} on" in told[0] and "waiting up to 60 s" in told[0]


def test_one_that_does_not_leave_is_waited_for_only_so_long(tmp_path):
    with locked(tmp_path, print), pytest.raises(ValueError, match="in use by another run"):  # noqa: SIM117
        with locked(tmp_path, print, wait_s=0.2):
            pass


def test_it_is_given_back_on_leaving(tmp_path):
    for _ in range(2):
        with locked(tmp_path, print):
            pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, number):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    told: list[str] = []
    with locked(tmp_path, told.append):
        assert len(told) == 1 and ".lock: this file system keeps no locks" in told[0]


def test_any_other_failure_is_an_error(tmp_path, monkeypatch):
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path, print):
        pass
