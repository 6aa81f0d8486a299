"""Ranks without a model: each says its phases and does what is asked, as a process of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from storydist.data.index import ShardIndex
from storydist.training.heartbeat import Heartbeat, heartbeat_path, read_heartbeat, started
from storydist.training.preemption import REQUEUE
from storydist.training.watchdog import FAILED, Watchdog

ROOT = Path(__file__).resolve().parents[1]
HANG_S = 1.5
RANK = f"""
import sys, time
from pathlib import Path
from storydist.data.index import ShardIndex
from storydist.training import watchdog as room
from storydist.training.watchdog import Watchdog

room.GRACE_S = 1.0
run, rank, behaviour = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[4]
index = ShardIndex.open(sys.argv[3])
(run / f"begun-{{rank}}").touch()
while not all((run / f"begun-{{other}}").exists() for other in (0, 1)):
    time.sleep(0.01)
options = dict(rank=rank, world_size=2, hang_s={HANG_S}, life="this one", log=run / "train.log")
with Watchdog(run, index, ask=lambda reason: print("asked to stop by", reason, flush=True), **options) as watchdog:
    if "orphan" in behaviour:
        watchdog.launcher = 1
    watchdog.phase("data", 7)
    if behaviour == "reads for ever":
        index.reading.stories[0] = 3
        print("ready", flush=True)
        time.sleep(60)
    if behaviour == "fails":
        raise ValueError("no such story")
    if behaviour == "reads slowly":
        for _ in range(int({HANG_S} * 2 / 0.25)):
            index.reading.num_done += 1
            time.sleep(0.25)
    else:
        watchdog.phase("agree", 7)
        print("ready", flush=True)
        # An orphan and a rank whose other one takes its time get on in the end; all others wait for ever.
        time.sleep({HANG_S} * 2 if behaviour == "waits" else 0.3 if behaviour == "orphan" else 60)
"""


def start(index: ShardIndex, run: Path, *behaviours: str) -> list[subprocess.Popen]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(run), str(rank), str(index.root), behaviour],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, behaviour in enumerate(behaviours)
    ]


def ended(processes: list[subprocess.Popen]) -> tuple[list[int], str]:
    """Exit codes, and all that was told."""
    told = "".join("".join(process.communicate(timeout=60)) for process in processes)
    return [process.returncode for process in processes], told


def test_a_rank_that_is_stuck_is_named_with_phase_and_shard_and_all_leave(tiny_index, tmp_path):
    processes = start(tiny_index, tmp_path, "waits for ever", "reads for ever")
    codes, told = ended(processes)
    assert codes == [REQUEUE, REQUEUE]
    shard = tiny_index.info.shards[0].name
    assert f"rank 1 (process {processes[1].pid} on" in told
    assert "is stuck: phase data of step 7 since" in told and f"reading {shard}: story 'train/3'" in told
    assert "rank 0" not in told
    assert (tmp_path / "train.log").read_text().count("no progress for") == 1
    for rank in (0, 1):
        stacks = (tmp_path / f"stacks-rank-{rank}.txt").read_text()
        assert "rank 1" in stacks and "Thread 0x" in stacks and 'File "<string>"' in stacks


def test_a_rank_that_is_stopped_is_named_and_ended(tiny_index, tmp_path):
    processes = start(tiny_index, tmp_path, "waits for ever", "reads for ever")
    assert processes[1].stdout is not None and processes[1].stdout.readline() == "ready\n"
    os.kill(processes[1].pid, signal.SIGSTOP)
    codes, told = ended(processes)
    assert codes == [REQUEUE, -signal.SIGKILL]
    assert "gives no sign of life: phase data of step 7" in told
    assert "rank 1" in (tmp_path / "stacks-rank-0.txt").read_text()


def test_a_rank_that_gets_on_is_waited_for(tiny_index, tmp_path):
    codes, told = ended(start(tiny_index, tmp_path, "waits", "reads slowly"))
    assert codes == [0, 0] and "no progress" not in told


def test_ranks_that_were_all_stopped_go_on_together(tiny_index, tmp_path):
    processes = start(tiny_index, tmp_path, "reads slowly", "reads slowly")
    while not all(read_heartbeat(heartbeat_path(tmp_path, rank), "this one") for rank in (0, 1)):
        time.sleep(0.01)
    for number, pause_s in ((signal.SIGSTOP, 2 * HANG_S), (signal.SIGCONT, 0)):
        for process in processes:
            process.send_signal(number)
        time.sleep(pause_s)
    codes, told = ended(processes)
    assert codes == [0, 0] and "no progress" not in told


def test_a_rank_that_goes_on_after_the_others_left_leaves_too(tiny_index, tmp_path):
    processes = start(tiny_index, tmp_path, "reads slowly", "reads slowly")
    while (record := read_heartbeat(heartbeat_path(tmp_path, 1), "this one")) is None:
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGSTOP)
    processes[0].kill()
    processes[0].wait()
    left = Heartbeat(heartbeat_path(tmp_path, 0), "this one")  # from another node, where nobody can end it
    left.where(record.passed + 1, "agree", 7, 0, "")
    left.sign(ticks=9, num_reads=0, reading="", left="", verdict="rank 1 was silent", code=REQUEUE, teller=0)
    left.close()
    time.sleep(2 * HANG_S)
    processes[1].send_signal(signal.SIGCONT)
    assert ended(processes)[0][1] == REQUEUE


def test_a_rank_that_failed_is_not_waited_for_and_not_run_again(tiny_index, tmp_path):
    codes, told = ended(start(tiny_index, tmp_path, "waits for ever", "fails"))
    assert codes == [FAILED, 1]
    assert "has left: failed with ValueError: no such story" in told


def test_the_end_of_the_launcher_asks_for_a_stop(tiny_index, tmp_path):
    codes, told = ended(start(tiny_index, tmp_path, "orphan", "orphan that is stuck"))
    assert codes == [0, REQUEUE] and told.count("asked to stop by the end of its launcher") == 2
    assert "the launcher of rank 1 is gone, and it could not stop in order" in told


def test_a_rank_of_an_earlier_life_that_is_about_to_end_says_nothing_in_this_one(tmp_path):
    path = heartbeat_path(tmp_path, 1)
    former, present = Heartbeat(path, "former"), Heartbeat(path, "present")
    present.where(1, "data", 8, 0.0, "")
    sign = partial(Heartbeat.sign, ticks=1, num_reads=0, reading="", left="", code=REQUEUE, teller=1)
    sign(present, verdict="")
    former.where(9, "barrier", 3, 0.0, "")
    sign(former, verdict="its launcher is gone")
    record = read_heartbeat(path, "present")
    assert record is not None and (record.phase, record.step, record.verdict) == ("data", 8, "")
    former.close()
    present.close()


def test_a_record_of_an_earlier_life_counts_as_none(tmp_path):
    path = heartbeat_path(tmp_path, 0)
    heartbeat = Heartbeat(path, "now")
    assert read_heartbeat(path, "now") is None, "nothing was told yet"
    heartbeat.where(4, "forward", 2, 1000.5, "a story\nof two lines, \N{SNOWMAN}" * 100)
    heartbeat.sign(ticks=3, num_reads=9, reading="x" * 5000, left="", verdict="\N{SNOWMAN}" * 5000, code=75, teller=1)
    record = read_heartbeat(path, "now")
    assert record is not None
    assert (record.passed, record.phase, record.step, record.since, record.ticks) == (4, "forward", 2, 1000.5, 3)
    assert record.pid == os.getpid() and record.started == started(os.getpid()) and record.verdict[0] == "\N{SNOWMAN}"
    assert read_heartbeat(path, "before") is None
    heartbeat.close()


@pytest.mark.parametrize("content", [b"", b"x" * 6000, b"\xff" * 6000])
def test_a_damaged_record_counts_as_none(tmp_path, content):
    path = heartbeat_path(tmp_path, 0)
    path.parent.mkdir()
    path.write_bytes(content)
    assert read_heartbeat(path, "now") is None


def alone(index: ShardIndex, run: Path, hang_s: float) -> Watchdog:
    log = run / "train.log"
    return Watchdog(run, index, rank=0, world_size=1, hang_s=hang_s, life="this one", ask=print, log=log)


def test_a_single_process_that_failed_and_goes_on_is_left_alone(tiny_index, tmp_path):
    with pytest.raises(KeyError), alone(tiny_index, tmp_path, hang_s=0.2):
        raise KeyError
    assert "watchdog" not in {thread.name for thread in threading.enumerate()}
    record = read_heartbeat(heartbeat_path(tmp_path, 0), "this one")
    assert record is not None and record.left.startswith("failed with KeyError")


DEBUGGED = """
import sys
from pathlib import Path
from storydist.data.index import ShardIndex
from storydist.training.watchdog import Watchdog
index, run = ShardIndex.open(sys.argv[1]), Path(sys.argv[2])
with Watchdog(run, index, rank=0, world_size=1, hang_s=0.5, life="", ask=print, log=run / "train.log"):
    breakpoint()
    print("goes on")
"""


def test_a_debugger_may_hold_the_main_thread(tiny_index, tmp_path):
    command = [sys.executable, "-c", DEBUGGED, str(tiny_index.root), str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline().startswith("> <string>")  # where it holds, and then its prompt
    time.sleep(2)
    told, _ = process.communicate("continue\n", timeout=60)
    assert process.returncode == 0 and "goes on" in told
