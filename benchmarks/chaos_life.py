"""One life of a run: started by a launcher, killed where the plan says, looked at when nothing of it is left.

Processes are known by the run's folder, which stands in their command line; a rank's phase by its heartbeat.
"""

import contextlib
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from storydist.training.checkpoint import damage
from storydist.training.heartbeat import SIGN_AT, WHERE_AT, heartbeat_path
from storydist.training.keep import FOLDER, checkpoint_path, list_steps
from storydist.training.log import LOG

ROOT = Path(__file__).resolve().parents[1]
TRAIN = "launch/train.py"
POLL_S = 0.002
AIM_S = 120.0  # most seconds until a life gets where it is to be killed
GONE_S = 120.0  # most seconds until its processes have ended by themselves; those left then are orphans
LAST_WORDS = 15  # lines

IMPORTS, WRITING = "imports", "write"  # besides the phases that a rank says: before the first; a checkpoint's thread
PHASES = (IMPORTS, "start", "data", "agree", "forward", "backward", "update", "log", "evaluate", "save", WRITING)
# What is done to whom. "then all": a moment later everything else is killed, while it saves, unwinds or waits.
DEEDS = (
    *("KILL rank", "KILL launcher", "KILL all", "TERM rank", "USR1 rank"),
    *("KILL launcher, then all", "TERM rank, then all"),
)
DEED_WEIGHTS = (30, 22, 22, 5, 5, 8, 8)
AIM_WEIGHTS = {IMPORTS: 6, "start": 8, "any": 14, "data": 8, "agree": 4, "forward": 8, "backward": 8, "update": 4}
AIM_WEIGHTS |= {"log": 2, "evaluate": 14, "save": 8, WRITING: 16}
KILL_ON_BAD_EXIT_S = 10.0  # ranks without a launcher that still wait for one that left while they met are ended then
SLOW = {IMPORTS: 6.0, "any": 1.5, "start": 0.2, "evaluate": 0.4, WRITING: 0.06}  # seconds in which the kill may fall


@dataclass(frozen=True)
class Plan:
    """How a life ends: `deed` is done to `rank` when it is in the phase `aim`, `delay_s` later, `steps` or more after
    the life's first step.
    """

    launcher: str
    deed: str
    rank: int
    aim: str
    steps: int
    delay_s: float
    then_s: float


@dataclass
class Life:
    """What became of it. `phase`: of the rank that was killed, as it left it; `problems`: whatever must not be."""

    plan: Plan
    resumed_at: int | None = None  # None: it did not get so far
    killed: bool = False
    phase: str = ""
    step: int = 0
    told_saved: int = 0  # step of the newest checkpoint that the run had told as saved
    newest: int = 0  # step of the newest there is
    gone_s: float = 0.0
    orphans: int = 0
    never_met: bool = False  # a rank without a launcher was gone before the others had met it; these were ended then
    code: int | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return not self.killed and self.code == 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def draw(generator: random.Random, launchers: tuple[str, ...], world_size: int) -> Plan:
    """The same from an equal generator."""
    launcher = generator.choice(launchers)
    (deed,) = generator.choices(DEEDS, DEED_WEIGHTS)
    (aim,) = generator.choices(list(AIM_WEIGHTS), list(AIM_WEIGHTS.values()))
    rank, steps = generator.randrange(world_size), generator.randint(1, 6)
    delay_s, then_s = generator.uniform(0, SLOW.get(aim, 0.003)), generator.uniform(0, 2.0)
    if launcher == "python" and "launcher" in deed:
        deed = "KILL all"
    return Plan(launcher, deed, 0 if aim in (WRITING, "log") else rank, aim, steps, delay_s, then_s)


def live(run: Path, plan: Plan | None, train: list[str], world_size: int, environment: Mapping[str, str]) -> Life:
    """Starts `train` (its words after launch/train.py) with --resume, ends it by the plan, and waits until it is gone.

    Without a plan it runs to its end.
    """
    plan = plan or Plan("torchrun", "", 0, "", 0, 0.0, 0.0)
    life = Life(plan)
    former, expected = told_saved(run), max(list_steps(run), default=0)
    words = run.with_suffix(".log")
    begin = words.stat().st_size if words.exists() else 0
    former_heartbeats = [_who(run, rank) for rank in range(world_size)]
    with words.open("ab") as output:
        processes = _start(plan.launcher, [TRAIN, *train, "--resume"], world_size, environment, output)
    try:
        life.killed = bool(plan.deed) and _aim_and_strike(run, plan, life, processes, former_heartbeats)
        _wait_until_gone(run, life, processes, former_heartbeats)
    finally:
        kill(living(run))
        life.code = max(abs(process.wait()) for process in processes)
    told = words.read_bytes()[begin:].decode(errors="replace")
    _judge(run, life, told, former, expected)
    return life


# Starting


def _start(launcher: str, program: list[str], world_size: int, environment: Mapping[str, str], output: Any) -> list:
    """One process of a launcher, or of Python for each rank, as srun starts them."""
    path = Path(sys.executable).parent
    count = str(world_size)
    if launcher == "python":
        return [
            _process([sys.executable, *program], dict(environment) | place, output) for place in _places(world_size)
        ]
    if launcher == "torchrun":
        command = [str(path / "torchrun"), "--standalone", "--nproc_per_node", count]
    else:
        command = [str(path / "accelerate"), "launch", "--num_processes", count, "--num_machines", "1"]
        command += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", str(_free_port())]
        command += ["--multi_gpu"] if world_size > 1 else ["--cpu"]
    return [_process([*command, *program], dict(environment), output)]


def _process(command: list[str], environment: dict[str, str], output: Any) -> subprocess.Popen:
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
    )


def _places(world_size: int) -> Iterator[dict[str, str]]:
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    world = {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
    for rank in map(str, range(world_size)):
        yield {"RANK": rank, "LOCAL_RANK": rank} | world | meeting


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Aiming and striking


def _aim_and_strike(run: Path, plan: Plan, life: Life, processes: list[subprocess.Popen], former: list[bytes]) -> bool:
    """Whether the deed was done; not when the run ended before."""
    if not _aimed(run, plan, processes, former):
        return False
    time.sleep(plan.delay_s)
    launcher = {process.pid for process in processes} if plan.launcher != "python" else set()
    found = living(run)
    ranks = [pid for pid in found if pid not in launcher]
    if not found:
        return False
    life.phase, life.step = _place(run, plan.rank, former)
    who, number = plan.deed.split(",")[0].split(" ")[1], signal.Signals[f"SIG{plan.deed.split(' ')[0]}"]
    if who == "rank" and not ranks:  # the launcher has not started any
        who = "launcher"
    targets = {"all": [*ranks, *launcher], "launcher": sorted(launcher), "rank": [_rank(run, plan.rank, ranks)]}[who]
    kill(targets, number)
    if number == signal.SIGKILL and who != "launcher":
        life.phase, life.step = _place(run, plan.rank, former)  # it says no more
    if plan.rank == 0 and _writing(run, [targets[0]] if who == "rank" else ranks):
        life.phase = WRITING
    if plan.deed.endswith("then all"):
        time.sleep(plan.then_s)
        kill(living(run))
    return True


def _aimed(run: Path, plan: Plan, processes: list[subprocess.Popen], former: list[bytes]) -> bool:
    """Waits until a life is where the plan wants it; False when it ended before."""
    if plan.aim == IMPORTS:
        return True
    deadline, first, living_ranks = time.monotonic() + AIM_S, None, list[int]()
    while time.monotonic() < deadline:
        phase, step = _place(run, plan.rank, former)
        if plan.aim == "start" == phase:
            return True
        if phase not in (IMPORTS, "start"):
            if first is None:
                first, living_ranks = step, living(run)
            near = step >= first + plan.steps or (plan.aim == "evaluate" and step > first)
            if near and plan.aim in ("any", phase):
                return True
            if near and plan.aim == WRITING and _writing(run, living_ranks):
                return True
        if all(process.poll() is not None for process in processes):
            return False
        time.sleep(POLL_S)
    return True  # and strike where it is


def _writing(run: Path, ranks: list[int]) -> bool:
    """Whether one of these processes is, or was when it was killed, in the middle of a checkpoint."""
    return any(list((run / FOLDER).glob(f".step-*.tmp-{pid}")) for pid in ranks)


def _who(run: Path, rank: int) -> bytes:
    with contextlib.suppress(OSError):
        return heartbeat_path(run, rank).read_bytes()[:WHERE_AT]
    return b""


def _place(run: Path, rank: int, former: list[bytes]) -> tuple[str, int]:
    """Phase and step of a rank; IMPORTS while its heartbeat is that of a former life."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        content = heartbeat_path(run, rank).read_bytes()
        if content[:WHERE_AT] != former[rank]:
            words = content[WHERE_AT:SIGN_AT].split()
            return words[1].decode(), int(words[2])
    return IMPORTS, 0


def _rank(run: Path, rank: int, ranks: list[int]) -> int:
    """The process of a rank; any while it is not known which is which."""
    with contextlib.suppress(StopIteration):
        return next(pid for pid in ranks if f'"pid": {pid},'.encode() in _who(run, rank))
    return sorted(ranks)[rank % len(ranks)] if ranks else 0


def living(run: Path) -> list[int]:
    """Processes, ours or a launcher's, that train in `run`."""
    found, word = [], f"run.dir={run}".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            if word in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def kill(pids: list[int], number: signal.Signals = signal.SIGKILL) -> None:
    for pid in pids:
        if pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


# Looking at what is left


def _wait_until_gone(run: Path, life: Life, processes: list[subprocess.Popen], former: list[bytes]) -> None:
    begin = time.monotonic()
    limit_s = GONE_S if life.killed else 10 * GONE_S
    while found := living(run):
        life.gone_s = time.monotonic() - begin
        if life.gone_s > limit_s:
            life.orphans = len(found)
            life.problems.append(f"left: {len(found)} process(es) after {life.gone_s:.0f} s")
            return
        # As `srun --kill-on-bad-exit` does; torch itself would wait for half an hour.
        have_met = any(_place(run, rank, former)[0] != IMPORTS for rank in range(len(former)))
        left = any(process.poll() is not None for process in processes)
        if life.plan.launcher == "python" and left and not have_met and life.gone_s > KILL_ON_BAD_EXIT_S:
            life.never_met = True
            kill(found)
        time.sleep(0.05)


def told_saved(run: Path) -> int:
    """Step of the newest checkpoint that the run has told as saved; 0: none."""
    with contextlib.suppress(OSError):
        steps = re.findall(r" step (\d+) saved in .*before\n", (run / LOG).read_text(errors="replace"))
        return max(map(int, steps), default=0)
    return 0


def _judge(run: Path, life: Life, told: str, former: int, expected: int) -> None:
    """Adds what must not be to the life's problems."""
    resumed = re.search(r": step (\d+) of \d+, ", told)
    if resumed:
        life.resumed_at = int(resumed[1])
        if life.resumed_at != expected:
            life.problems.append(f"wrong: it went on from step {life.resumed_at}, not from {expected}")
    for step in list_steps(run):
        problem = damage(checkpoint_path(run, step))
        if problem:
            life.problems.append(f"wrong: {problem}")
    life.told_saved, life.newest = told_saved(run), max(list_steps(run), default=0)
    if life.newest < max(life.told_saved, former):
        life.problems.append(f"lost: step {life.told_saved} was told as saved, the newest is of step {life.newest}")
    if not life.killed and life.code != 0:
        life.problems.append(
            f"lost: it ended by itself with {life.code}: " + "\n".join(told.splitlines()[-LAST_WORDS:])
        )
