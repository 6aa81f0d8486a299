import stat

import pytest

from storydist.cluster.lead import Measured, lead_time, measure
from storydist.training.ledger import LEDGER
from tests.ledger_lines import begin, line, write_ledger, written


@pytest.fixture
def run(tmp_path):
    """A run that saved twice: its first steps are not like the others, its second save waited for the first."""
    run = tmp_path / "run"
    lines = [line("steps", 120, 1, 40), line("steps", 130, 3, 50, waiting=4), line("steps", 140, 5, 62, waiting=8)]
    saves = [written(3, write_s=20, stall_s=1), written(5, write_s=30.5, stall_s=11.5, waited_s=10)]
    write_ledger(run, begin(100, started=90), *lines, *saves)
    return run


def test_the_slowest_step_and_save_are_measured(run, tmp_path):
    assert measure(run) == Measured(step_s=8.0, save_s=32.0)
    assert measure(tmp_path / "no run") is None


def test_what_was_slow_long_ago_does_not_count(run):
    slow = [line("steps", 120, 1, 40), line("steps", 900, 2, 800), written(2, write_s=600, stall_s=1)]
    steps = [line("steps", 898 + step, step, 798 + step) for step in range(3, 53)]
    write_ledger(run, begin(100, started=90), *slow, *steps, *[written(3, write_s=2, stall_s=1)] * 50)
    assert measure(run) == Measured(step_s=1.0, save_s=3.0)


def test_what_a_run_does_not_tell_is_not_measured(run):
    write_ledger(run, begin(100, started=90), line("steps", 120, 1, 40))
    assert measure(run) is None
    (run / LEDGER).write_text("cut by a full di")
    assert measure(run) is None


def test_two_steps_two_saves_and_slurms_minute_are_needed(run):
    (short,) = lead_time(run, 139, None)
    assert short.level == "FAIL" and "needed are 140" in short.what
    assert lead_time(run, 140, None)[0].level == "ok"


def test_before_anything_is_measured_only_slurms_minute_counts(tmp_path):
    assert lead_time(tmp_path, 60, None)[0].level == "FAIL"
    assert lead_time(tmp_path, 61, None)[0].level == "ok"


def test_the_lead_is_that_of_the_jobs_own_script(tmp_path, monkeypatch):
    program = tmp_path / "scontrol"
    program.write_text(
        "#!/bin/sh\n[ \"$*\" = 'write batch_script 17 -' ] && printf '%s\\n' '#!/bin/sh' \"$SCRIPT\" true\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("SCRIPT", "#SBATCH --signal=B:USR1@240")
    (found,) = lead_time(tmp_path / "run", None, "17")
    assert found.level == "ok" and found.what.startswith("240 s")
    monkeypatch.setenv("SCRIPT", "#SBATCH --requeue")
    assert lead_time(tmp_path / "run", None, "17")[0].level == "warn"


def test_without_a_job_nothing_is_asked(tmp_path):
    assert lead_time(tmp_path, None, None)[0].what == "no Slurm job"
