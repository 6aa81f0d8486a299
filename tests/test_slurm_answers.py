"""What Slurm answers is read as it writes it; the answers here are a real controller's (22.05), shortened."""

import stat
from datetime import datetime
from pathlib import Path

import pytest

from storydist.cluster.slurm import duration_s, job_of, partition_limits

PARTITIONS = """\
PartitionName=short AllowGroups=ALL Default=YES DefaultTime=NONE MaxTime=00:10:00 MinNodes=0 Nodes=p1 State=UP
PartitionName=long AllowGroups=ALL Default=NO DefaultTime=NONE MaxTime=2-00:00:00 MinNodes=0 Nodes=p1 State=UP
PartitionName=any AllowGroups=ALL Default=NO DefaultTime=NONE MaxTime=UNLIMITED MinNodes=0 Nodes=p1 State=UP
PartitionName=closed AllowGroups=ALL Default=NO MaxTime=01:00:00 MinNodes=0 Nodes=p1 State=DOWN
"""
JOB = (
    "JobId=1 JobName=wrap UserId=root(0) JobState=RUNNING Dependency=(null) Requeue=1 Restarts=2 BatchFlag=1 "
    "SubmitTime=2026-11-26T06:36:09 EligibleTime=2026-11-26T06:38:09 StartTime=2026-11-26T06:36:10 Power=\n"
)


@pytest.fixture
def answering(tmp_path, monkeypatch):
    """A scontrol that gives an answer, with an exit code."""

    def answer(text: str, code: int = 0) -> None:
        program = tmp_path / "scontrol"
        (tmp_path / "answer").write_text(text)
        program.write_text(f"#!/bin/sh\ncat {tmp_path / 'answer'}\nexit {code}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")

    return answer


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("90:30", 5430),
        ("01:02:03", 3723),
        ("2-0", 172800),
        ("1-02:03", 93780),
        ("1-02:03:04", 93784),
        ("UNLIMITED", None),
        ("infinite", None),
    ],
)
def test_every_form_of_a_limit(text, seconds):
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "1h", "1:2:3:4", "-5", "2-"])
def test_what_is_no_limit_is_named(text):
    with pytest.raises(ValueError, match="is no time limit; use for example"):
        duration_s(text)


def test_partitions_that_are_up(answering):
    answering(PARTITIONS)
    assert partition_limits() == {"short": 600, "long": 172800, "any": None}


def test_a_job_s_times(answering):
    answering(JOB)
    submitted = datetime(2026, 11, 26, 6, 36, 9).timestamp()
    assert job_of("1") == {
        "id": "1", "restarts": 2, "submitted": submitted, "eligible": submitted + 120, "started": submitted + 1,
    }  # fmt: skip


def test_times_that_slurm_does_not_know_are_left_out(answering):
    answering("JobId=1 Restarts=0 BatchFlag=1 SubmitTime=Unknown StartTime=Tomorrow\n")
    assert job_of("1") == {"id": "1", "restarts": 0}


def test_an_interactive_allocation_tells_nothing_of_a_run(answering):
    answering(JOB.replace("BatchFlag=1", "BatchFlag=0"))
    assert job_of("1") == {}


def test_nobody_answers(answering, monkeypatch):
    answering("slurm_load_jobs error: Invalid job id specified\n", code=1)
    assert job_of("99") == {} == partition_limits()
    assert job_of(None) == {}
    monkeypatch.setenv("PATH", str(Path("/nowhere")))
    assert partition_limits() == {}


def test_a_controller_that_is_silent_is_not_waited_for_long(answering, tmp_path, monkeypatch):
    answering("")
    (tmp_path / "scontrol").write_text("#!/bin/sh\nexec sleep 1000\n")  # longer than a test may take
    monkeypatch.setattr("storydist.cluster.slurm.ASKED_S", 0.2)
    assert job_of("1") == {}
