import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from storydist.training.preemption import REQUEUE, SIGNALS, Preemption

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_only_sets_the_flag(number: signal.Signals):
    before = signal.getsignal(number)
    with Preemption() as preemption:
        assert preemption.asked is None
        os.kill(os.getpid(), number)
        assert preemption.asked is number
    assert signal.getsignal(number) is before


def test_a_second_signal_leaves_at_once():
    program = "\n".join(
        [
            "import time",
            "from storydist.training.preemption import Preemption",
            "with Preemption():",
            "    print(flush=True)",
            "    time.sleep(60)",
        ]
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == REQUEUE
    process.stdout.close()
