"""One life of a run: started by a launcher, killed where the plan says, looked at when nothing of it is left."""

import contextlib
import random
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.chaos_processes import IMPORTS, TRAIN, kill, living, place, rank_process, start, who, writing
from storydist.training.keep import list_steps, problem_of
from storydist.training.log import LOG

POLL_S = 0.002
AIM_S = 120.0  # most seconds until a life gets where it is to be killed
GONE_S = 120.0  # most seconds until its processes have ended by themselves; those left then are orphans
LAST_WORDS = 15  # lines

WRITING = "write"  # besides the phases that a rank says: its thread is in the middle of a checkpoint
PHASES = (IMPORTS, "start", "data", "agree", "forward", "backward", "update", "log", "evaluate", "save", WRITING)
# What is done to whom. "then all": a moment later everything else is killed, while it saves, unwinds or waits.
DEEDS = (
    *("KILL rank", "KILL launcher", "KILL all", "TERM rank", "USR1 rank"),
    *("KILL launcher, then all", "TERM rank, then all"),
)
DEED_WEIGHTS = (30, 22, 22, 5, 5, 8, 8)
AIM_WEIGHTS = {IMPORTS: 6, "start": 8, "any": 14, "data": 8, "agree": 4, "forward": 8, "backward": 8, "update": 4}
AIM_WEIGHTS |= {"log": 2, "evaluate": 14, "save": 8, WRITING: 16}
AT_ONCE = 0.5  # share of killed launchers after which nobody waits for their ranks
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
    world_size: int
    strategy: str
    at_once: bool = False  # the next life begins while the ranks of a killed launcher are still saving


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
    waited_for_lock: bool = False  # for ranks of the life before
    code: int | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        return not self.killed and self.code == 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def draw(
    generator: random.Random, launchers: Sequence[str], world_sizes: Sequence[int], strategies: Sequence[str]
) -> Plan:
    """The same from an equal generator."""
    launcher = generator.choice(launchers)
    (deed,) = generator.choices(DEEDS, DEED_WEIGHTS)
    (aim,) = generator.choices(list(AIM_WEIGHTS), list(AIM_WEIGHTS.values()))
    rank, steps = generator.randrange(max(world_sizes)), generator.randint(1, 6)
    delay_s, then_s = generator.uniform(0, SLOW.get(aim, 0.003)), generator.uniform(0, 2.0)
    world_size, strategy = generator.choice(world_sizes), generator.choice(strategies)
    if launcher == "accelerate" and world_size == 1 and strategy != "ddp":
        launcher = "torchrun"  # it tells a single process nothing of ranks, without which there is no ZeRO
    if launcher == "python" and "launcher" in deed:
        deed = "KILL all"
    rank = 0 if aim in (WRITING, "log") else rank % world_size
    at_once = generator.random() < AT_ONCE and deed == "KILL launcher"
    return Plan(launcher, deed, rank, aim, steps, delay_s, then_s, world_size, strategy, at_once)


def undisturbed(launcher: str, world_size: int, strategy: str) -> Plan:
    """To run to the end."""
    return Plan(launcher, "", 0, "", 0, 0.0, 0.0, world_size, strategy)


def live(run: Path, plan: Plan, train: Sequence[str], environment: Mapping[str, str]) -> Life:
    """Starts `train` (its words after launch/train.py) with --resume, ends it by the plan, and waits until it is gone.

    Without a deed it runs to its end.
    """
    life = Life(plan)
    former, expected, overlaps = told_saved(run), max(list_steps(run), default=0), bool(living(run))
    words = run.with_suffix(".log")
    begin = words.stat().st_size if words.exists() else 0
    former_heartbeats = [who(run, rank) for rank in range(plan.world_size)]
    with words.open("ab") as output:
        program = [TRAIN, *train, f"train.strategy={plan.strategy}", "--resume"]
        processes = start(plan.launcher, program, plan.world_size, environment, output)
    try:
        life.killed = bool(plan.deed) and _aim_and_strike(run, plan, life, processes, former_heartbeats)
        if life.killed and plan.at_once:
            life.code = processes[0].wait()
            return life  # what is left is judged by the next one
        _wait_until_gone(run, life, processes, former_heartbeats)
    except BaseException:
        kill(living(run))
        raise
    kill(living(run))
    life.code = max(abs(process.wait()) for process in processes)
    told = words.read_bytes()[begin:].decode(errors="replace")
    life.waited_for_lock = "for it to leave" in told
    _judge(run, life, told, former, expected, overlaps)
    return life


# Aiming and striking


def _aim_and_strike(run: Path, plan: Plan, life: Life, processes: list[subprocess.Popen], former: list[bytes]) -> bool:
    """Whether the deed was done; not when the run ended before."""
    if not _aimed(run, plan, processes, former):
        return False
    time.sleep(plan.delay_s)
    launcher = {process.pid for process in processes} if plan.launcher != "python" else set()
    found = living(run, processes)
    ranks = [pid for pid in found if pid not in launcher]
    if not found:
        return False
    life.phase, life.step = place(run, plan.rank, former)
    number, whom = plan.deed.split(",")[0].split(" ")
    if whom == "rank" and not ranks:  # the launcher has not started any
        whom = "launcher"
    one = rank_process(run, plan.rank, ranks)
    targets = {"all": [*ranks, *launcher], "launcher": sorted(launcher), "rank": [one]}[whom]
    kill(targets, signal.Signals[f"SIG{number}"])
    if number == "KILL" and whom != "launcher":
        life.phase, life.step = place(run, plan.rank, former)  # it says no more
    if plan.rank == 0 and writing(run, [one] if whom == "rank" else ranks):
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
        phase, step = place(run, plan.rank, former)
        if plan.aim == "start" == phase:
            return True
        if phase not in (IMPORTS, "start"):
            if first is None:
                first, living_ranks = step, living(run)
            near = step >= first + plan.steps or (plan.aim == "evaluate" and step > first)
            if near and plan.aim in ("any", phase):
                return True
            if near and plan.aim == WRITING and writing(run, living_ranks):
                return True
        if all(process.poll() is not None for process in processes):
            return False
        time.sleep(POLL_S)
    return True  # and strike where it is


# Looking at what is left


def _wait_until_gone(run: Path, life: Life, processes: list[subprocess.Popen], former: list[bytes]) -> None:
    begin = time.monotonic()
    limit_s = GONE_S if life.killed else 10 * GONE_S
    while found := living(run, processes):
        life.gone_s = time.monotonic() - begin
        if life.gone_s > limit_s:
            life.orphans = len(found)
            life.problems.append(f"left: {len(found)} process(es) after {life.gone_s:.0f} s")
            return
        # As `srun --kill-on-bad-exit` does; torch itself would wait for half an hour.
        have_met = any(place(run, rank, former)[0] != IMPORTS for rank in range(len(former)))
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


def _judge(run: Path, life: Life, told: str, former: int, expected: int, overlaps: bool = False) -> None:
    """Adds what must not be to the life's problems. `overlaps`: ranks of the one before might still save a later step
    than `expected`.
    """
    resumed = re.search(r": step (\d+) of \d+, ", told)
    if resumed:
        life.resumed_at = int(resumed[1])
        if life.resumed_at != expected and not (overlaps and life.resumed_at > expected):
            life.problems.append(f"wrong: it went on from step {life.resumed_at}, not from {expected}")
    for step in list_steps(run):
        if problem := problem_of(run, step):
            life.problems.append(f"wrong: {problem}")
    life.told_saved, life.newest = told_saved(run), max(list_steps(run), default=0)
    if life.newest < max(life.told_saved, former):
        life.problems.append(f"lost: step {life.told_saved} was told as saved, the newest is of step {life.newest}")
    if not life.killed and life.code != 0:
        words = "\n".join(told.splitlines()[-LAST_WORDS:])
        life.problems.append(f"lost: it ended by itself with {life.code}: {words}")
