"""Ranks that share one import: torch takes seconds to load, and a test needs up to four ranks on two cores."""

import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.state import AcceleratorState

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_module(module: str, *words: object, timeout_s: float = 240) -> str:
    """`python -m module words`, in a process of its own; returns what it printed. Fails with what it said."""
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        cwd=ROOT,
        env=os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
    return done.stdout


def fork_ranks(world_size: int, work: Callable[[], None]) -> None:
    """Calls `work()` in `world_size` new processes, with the environment that a launcher gives. This process must not
    have used torch yet. Exits when a rank fails.
    """
    torch.set_num_threads(1)
    port, pids = free_port(), []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
            os.environ |= {k: str(v) for k, v in where.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            code = 1
            try:
                work()
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(codes):
        sys.exit(f"exit codes of the ranks: {codes}")


def fresh_accelerate() -> None:
    """Lets a process build another run: Accelerate keeps device, precision and strategy otherwise."""
    AcceleratorState._reset_state(reset_partial_state=True)
    os.environ.pop("ACCELERATE_USE_DEEPSPEED", None)
    os.environ["ACCELERATE_USE_CPU"] = "true"
