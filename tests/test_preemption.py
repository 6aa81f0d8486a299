import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storydist.training.preemption import REQUEUE, SAME_S, SIGNALS, Preemption

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_only_sets_the_flag(number: signal.Signals):
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert preemption.asked is None
        os.kill(os.getpid(), number)
        assert preemption.asked == number.name
    assert signal.getsignal(number) is before


LATE = """
import os
import signal
from storydist.training.preemption import leave_at_once_on_signals

class Late:  # deleted when the interpreter no longer has its handlers
    def __del__(self, kill=os.kill, pid=os.getpid(), number=signal.SIGUSR1):
        kill(pid, number)

leave_at_once_on_signals()
late = Late()
raise SystemExit(3)
"""


def test_a_signal_while_the_interpreter_ends_changes_no_exit_code():
    assert subprocess.run([sys.executable, "-c", LATE], cwd=ROOT, timeout=60, check=False).returncode == 3


STUCK = """
import ctypes
from storydist.training.preemption import Preemption
lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
with Preemption():
    print(flush=True)
    lock(mutex)
    lock(mutex)  # as a collective whose other end is gone: never back in Python
"""


def test_a_second_signal_leaves_at_once_from_a_call_that_never_returns():
    process = subprocess.Popen([sys.executable, "-c", STUCK], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    for _ in range(3):  # the same one, passed on by a launcher
        process.send_signal(signal.SIGTERM)
    time.sleep(SAME_S + 0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == REQUEUE
    process.stdout.close()
