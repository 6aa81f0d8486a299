"""Preflights of several ranks, each of which takes itself for a node of its own. All scenarios run in one process that
has imported torch, which takes longer than they do; each rank is forked from it.

    python -m tests.cluster.forked FOLDER      scenarios.json in FOLDER; codes, outputs and errors are left there

A scenario is {"ranks": {rank: {"words", "environment", "folder", "constants", "calls"}}, "world_size"}. `constants` and
`calls` replace what a dotted name means to one rank: by a value, or by something that goes wrong.
"""

import importlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import launch.preflight
from storydist.cluster import preflight  # noqa: F401 (imported here, once for all)
from storydist.command import run_command


def _hang(*_: Any) -> None:
    time.sleep(60)


def _die(*_: Any) -> None:
    os._exit(9)


def _fail_to_read(*_: Any) -> None:
    raise OSError(5, "Input/output error", "/data/a-shard.tar")


def _have_a_defect(*_: Any) -> None:
    raise ZeroDivisionError("division by zero")


BEHAVIOURS: dict[str, Callable[..., None]] = {
    "hang": _hang,
    "die": _die,
    "fail to read": _fail_to_read,
    "have a defect": _have_a_defect,
}


def _replace(name: str, value: object) -> None:
    module, _, attribute = name.rpartition(".")
    setattr(importlib.import_module(module), attribute, value)


def _be_rank(rank: int, world_size: int, port: int, told: dict[str, Any], folder: Path) -> None:
    with open(folder / f"out-{rank}", "w") as out, open(folder / f"err-{rank}", "w") as err:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
    place = {"RANK": rank, "LOCAL_RANK": 0, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    slurm = {"SLURMD_NODENAME": f"n{rank + 1}", "SLURM_JOB_NODELIST": f"n[1-{world_size}]"}
    slurm |= {"SLURM_TASKS_PER_NODE": f"1(x{world_size})", "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(world_size)}
    os.environ |= {name: str(value) for name, value in place.items()} | slurm | {"MASTER_ADDR": "127.0.0.1"}
    os.environ |= told.get("environment", {})
    os.chdir(told.get("folder", "."))
    for name, value in told.get("constants", {}).items():
        _replace(name, value)
    for name, behaviour in told.get("calls", {}).items():
        _replace(name, BEHAVIOURS[behaviour])
    sys.argv = ["launch/preflight.py", *told["words"]]
    code = run_command(launch.preflight.main)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_scenario(scenario: dict[str, Any], folder: Path) -> dict[str, int]:
    """Exit code of each rank."""
    folder.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        if not scenario.get("port taken"):
            probe.close()
        else:
            probe.listen()
        pids = {}
        for rank, told in scenario["ranks"].items():
            pids[rank] = os.fork()
            if pids[rank] == 0:
                try:
                    _be_rank(int(rank), scenario["world_size"], port, told, folder)
                finally:
                    os._exit(99)
        return {rank: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for rank, pid in pids.items()}


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    scenarios = json.loads((folder / "scenarios.json").read_text())
    codes = {name: run_scenario(scenario, folder / name) for name, scenario in scenarios.items()}
    (folder / "codes.json").write_text(json.dumps(codes))
