"""slurm/train.sbatch on a real Slurm, unchanged: what ends a life, whether there is another, and that nothing is lost.

After each row the run equals one that was left alone, bit for bit: weights, average, moments, lines of metrics. With
LIFE_CYCLE_TABLE=FILE the rows are written there as a table.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from storydist.training.keep import list_steps
from tests.slurm.box import ROOT
from tests.slurm.training import ONE_NODE, Training, kill

pytestmark = pytest.mark.slurm

Begin = Callable[..., Training]


@pytest.fixture
def begin(box, tiny_index, tmp_path) -> Begin:
    return lambda **changes: Training(box, tiny_index, tmp_path, **changes).submit()


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    rows: list[str] = []
    yield rows
    if path := os.environ.get("LIFE_CYCLE_TABLE"):
        head = ["| what happens | what came of it | lives | seconds |", "|---|---|---|---|"]
        Path(path).write_text("\n".join(head + rows) + "\n")


@pytest.fixture
def tell(table) -> Callable[[str, str, Training], None]:
    started = time.monotonic()

    def tell(what: str, outcome: str, training: Training) -> None:
        table.append(f"| {what} | {outcome} | {len(training.lives)} | {time.monotonic() - started:.0f} |")

    return tell


@pytest.fixture(scope="module")
def undisturbed(box, tiny_index, tmp_path_factory) -> Training:
    training = Training(box, tiny_index, tmp_path_factory.mktemp("undisturbed")).submit()
    training.wait()
    return training


def test_it_starts_and_finishes(undisturbed, tell):
    undisturbed.must_equal(undisturbed, lives=1)
    assert "life 1: finished" in undisturbed.log
    tell("nothing", "finished", undisturbed)


def test_it_saves_before_the_time_limit_and_goes_on_in_another_life(box, begin, undisturbed, tell):
    training = begin(options=("--nodes=2", "--ntasks-per-node=1", "--signal=B:USR1@120"))
    training.wait_for_step(5)
    training.hold()  # Slurm looks once a minute, and the run may not end before
    box.run("scontrol", "update", f"JobId={training.job}", "TimeLimit=2")  # minutes: the signal is due now
    training.wait(lambda: "USR1 came" in training.log)
    training.let_go()
    training.wait(lambda: box.job(training.job)["JobState"] == "PENDING")
    box.run("scontrol", "update", f"JobId={training.job}", "TimeLimit=60")
    training.must_equal(undisturbed, lives=2)
    assert "USR1 came, the ranks are told" in training.log and "requeued: a signal to the job" in training.log
    tell("time limit near (`--signal=B:USR1`)", "saved, requeued, went on", training)


def test_it_makes_room_for_a_job_of_a_higher_partition(box, begin, undisturbed, tell):
    training = begin()
    training.wait_for_step(5)
    training.hold()  # until Slurm sends CONT with its TERM
    other = box.submit("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    assert box.wait(other, seconds=60)["JobState"] == "COMPLETED"
    training.must_equal(undisturbed, lives=2)
    assert "stopped by SIGTERM at step" in training.log and "requeued: preemption, exit code 75" in training.log
    tell("preempted (TERM, GraceTime 8 s)", "saved, made room, requeued, went on", training)


def test_a_user_may_requeue_it(box, begin, undisturbed, tell):
    training = begin()
    training.wait_for_step(5)
    box.run("scontrol", "requeue", training.job)
    training.must_equal(undisturbed, lives=2)
    assert "stopped by SIGTERM at step" in training.log
    tell("`scontrol requeue`", "saved, went on", training)


def test_it_survives_the_loss_of_a_node(box, begin, undisturbed, tell):
    training = begin()
    training.wait_for_step(45)  # a checkpoint exists
    lost = training.ranks()["n2"]
    kill(box.daemon_of("n2"), box.processes()[lost].parent, lost)
    training.wait(lambda: box.job(training.job)["Restarts"] == "1")
    box.start_node("n2")
    training.must_equal(undisturbed, lives=2)
    log = (box.folder / "slurmctld.log").read_text()
    assert f"requeue job JobId={training.job} due to failure of node n2" in log
    tell("a node lost: slurmd and all its processes killed -9", "requeued by Slurm (NODE_FAIL), went on", training)


def test_a_killed_rank_is_a_fault_and_it_goes_on(begin, undisturbed, tell):
    training = begin()
    training.wait_for_step(45)
    kill(training.ranks()["n2"])
    training.must_equal(undisturbed, lives=2)
    assert "fault: a rank was killed by KILL, exit code 137 (1 in a row, at most 3)" in training.log
    tell("a rank killed -9 (memory ran out)", "fault 1 of 3, requeued, went on", training)


def test_cancelled_it_saves_once_and_stays_away(box, begin, undisturbed, tell):
    training = begin()
    training.wait_for_step(5)
    box.run("scancel", training.job)
    told = training.wait(lambda: box.job(training.job)["JobState"] == "CANCELLED")
    training.must_be_gone()
    (step,) = list_steps(training.run)
    assert f"stopped by SIGTERM at step {step};" in training.log
    assert told["Restarts"] == "0" and box.run("squeue", "-h") == "" and "requeued:" not in training.log
    training.submit().wait()
    training.must_have_trained(undisturbed)
    tell("`scancel`", "one checkpoint, not requeued; the same command again went on", training)


DEFECT = """#!{python}
import os, runpy, sys
sys.path.insert(0, ".")
if os.path.exists("{flag}"):
    from storydist.training import trainer
    update = trainer.update
    def defective(run, *arguments):
        if os.environ["RANK"] == "1" and run.state.step == 50:
            raise KeyError("a defect")
        return update(run, *arguments)
    trainer.update = defective
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_a_defect_is_told_and_not_repeated(begin, undisturbed, tmp_path, tell):
    flag, python = tmp_path / "flag", tmp_path / "python"
    flag.touch()
    python.write_text(DEFECT.format(python=sys.executable, flag=flag))
    python.chmod(0o755)
    training = begin(environment={"PYTHON": str(python)})
    told = training.wait()
    assert (told["JobState"], told["ExitCode"], told["Restarts"]) == ("FAILED", "1:0", "0"), training.short_log
    assert "KeyError: 'a defect'" in training.log and "not requeued: exit code 1: a defect" in training.log
    training.must_be_gone()
    flag.unlink()
    training.submit().wait()
    training.must_have_trained(undisturbed)
    tell("an exception on one rank", "exit code 1 and traceback in the log, not requeued; mended, it went on", training)


@pytest.mark.parametrize(
    ("setting", "message"),
    [("optim.learning_rte=1", "optim.learning_rate"), ("optim.learning_rate=1e30", "not finite at step")],
)
def test_a_mistake_is_told_and_not_repeated(begin, setting, message, tell):
    training = begin(settings=(setting,))
    told = training.wait()
    assert (told["JobState"], told["ExitCode"], told["Restarts"]) == ("FAILED", "2:0", "0"), training.short_log
    assert message in training.log and "not requeued: exit code 2: a mistake in settings" in training.log
    training.must_be_gone()
    tell(f"`{setting}`", "exit code 2 and reason in the log, not requeued", training)


def test_faults_in_a_row_are_counted_and_bounded(begin, tmp_path, tell):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    training = begin(environment={"PYTHON": str(python), "MAX_FAULTS": "1"})
    told = training.wait()
    assert (told["JobState"], told["Restarts"]) == ("FAILED", "1") and training.lives == [1, 2]
    assert "(2 in a row, at most 1)" in training.log and "not requeued: exit code 75: 1 faults in a row" in training.log
    training.must_be_gone()
    tell("ranks killed in every life, MAX_FAULTS=1", "requeued once, then not again", training)


def test_a_full_disk_loses_nothing(box, begin, tiny_index, undisturbed, tmp_path, tell):
    disk = tmp_path / "run"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "scratch", disk], check=True)
    try:
        training = begin()
        told = training.wait()
        assert (told["JobState"], told["ExitCode"], told["Restarts"]) == ("FAILED", "2:0", "0"), training.short_log
        assert "No space left on device" in training.log and "not requeued: exit code 2" in training.log
        training.must_be_gone()
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        training.submit().wait()
        training.must_have_trained(undisturbed)
    finally:
        subprocess.run(["umount", disk], check=True)
    tell("full disk", "exit code 2 and reason in the log, not requeued; with room, it went on", training)


BLAMES = """import os
if os.environ["SLURMD_NODENAME"] == "n1":
    print("bad nodes: n1")
    raise SystemExit(3)
"""


def test_a_bad_node_is_named_and_left_out(begin, undisturbed, tmp_path, tell):
    preflight = tmp_path / "preflight.py"
    preflight.write_text(BLAMES)
    training = begin(options=ONE_NODE, environment={"PREFLIGHT": str(preflight)})
    training.must_equal(undisturbed, lives=2)
    assert "fault: the preflight blames n1 (1 in a row" in training.log and "without n1 from now on" in training.log
    assert training.wait()["NodeList"] == "n2"
    tell("a bad node on start", "named, left out, requeued on the other", training)


def test_slurm_takes_it_as_it_is(box):
    done = subprocess.run(
        ["sbatch", "--test-only", "--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "slurm/train.sbatch", "x"],
        env=box.environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
